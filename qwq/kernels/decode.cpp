// Decode steps of a dense decoder (Llama, Qwen2, Qwen3) for a batch of rows, on CPU threads: some tokens of every row
// through some of the layers (`qwq_decode`), or a draft of several tokens by the first layers (`qwq_draft`).
//
// The weights are read once for all rows of the batch, in the form they have in memory: float32, or blocks of 32
// quantised weights. Activations are float32, so that the result is the dequantised model's up to the order of
// summation. The reference is qwq/model (tests/kernels compares them); decode.py fills the structs.
//
// Shapes: R rows, N new tokens of each, B = R N tokens in all, C hidden_size, F intermediate_size, H query heads, K key/value heads, D head_dim, V vocab_size.

#include <cmath>
#include <new>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "product.h"

enum Activation : int32_t { SILU = 0, RELU2 = 1 };

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two or null
};
struct Model {
    const Layer* layers;
    Matrix head, draft_head;
    const float *embed, *norm, *cos, *sin;  // embed [V, C]; cos, sin [positions, D / 2]
    float eps;
    int32_t num_layers, hidden, intermediate, heads, kv_heads, head_dim, activation;
};
struct Batch {
    int64_t* ids;             // [R, N]; a draft is given the first of each row and writes the others
    float* states;            // [R, N, C]: before layer `first` (read unless that is 0), after layer `last` - 1 (written)
    float* logits;            // [R, N, V] written; a draft reads here [R, N - 1, V] to add to its logits
    float *keys, *values;     // of the first layer's first row: [layers, rows, K, capacity, D]
    const int32_t* lengths;   // [R] tokens that each row holds already
    int64_t layer_stride, row_stride, head_stride;  // floats
    int32_t rows, tokens, first, last, threads;
};

namespace {

void rms_norm(const float* x, const float* weight, float eps, int n, float* y) {
    const float factor = 1.0f / std::sqrt(dot(x, x, n) / n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

// One head: normalised where the model does so, then turned by its position's angles. [D] -> [D]
void turn(const Model& m, const float* norm, int position, const float* x, float* y) {
    const int half = m.head_dim / 2;
    const float *cos = m.cos + (int64_t)position * half, *sin = m.sin + (int64_t)position * half;
    if (norm)
        rms_norm(x, norm, m.eps, m.head_dim, y);
    else
        std::copy_n(x, m.head_dim, y);
    for (int i = 0; i < half; i++) {
        const float a = y[i], b = y[i + half];
        y[i] = a * cos[i] - b * sin[i];
        y[i + half] = b * cos[i] + a * sin[i];
    }
}

// What one worker found in its share of a row's tokens, per query head: maximum, sum of exponentials, weighted values [D].
// The shares are joined in `join` (as in flash decoding): the cache is read once, whatever the number of workers.
struct Shares {
    float* data;
    int heads, head_dim, batch;

    float* at(int worker, int b, int head) const {
        return data + (((int64_t)worker * batch + b) * heads + head) * (head_dim + 2);
    }
};

// weights [count] x values [count, d] -> out [d]; N vectors of it at a time.
template <int N>
void weighted_columns(const float* weights, const float* values, int64_t count, int d, float* out) {
    Vector total[N] = {};
    for (int64_t t = 0; t < count; t++)
        for (int i = 0; i < N; i++) total[i] += weights[t] * load(values + t * d + i * LANES);
    for (int i = 0; i < N; i++) store(out + i * LANES, total[i]);
}

void weighted_sum(const float* weights, const float* values, int64_t count, int d, float* out) {
    int i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES) weighted_columns<4>(weights, values + i, count, d, out + i);
    for (; i + LANES <= d; i += LANES) weighted_columns<1>(weights, values + i, count, d, out + i);
    for (; i < d; i++) {
        out[i] = 0;
        for (int64_t t = 0; t < count; t++) out[i] += weights[t] * values[t * d + i];
    }
}

// What the layers work on: `tokens` of each row that follow `before(row)` others; vectors x [B, C].
struct Call {
    const Batch& batch;
    float* x;
    int tokens, offset;

    int size() const { return batch.rows * tokens; }
    int before(int row) const { return batch.lengths[row] + offset; }
};

void attend(const Worker& me, const Model& m, const Layer& layer, const Call& call, int index, const float* q,
            const float* k, const float* v, const Shares& shares) {
    const int d = m.head_dim, each = m.heads / m.kv_heads;
    const float scale = 1.0f / std::sqrt((float)d);
    float *query = me.scratch, *scores = me.scratch + each * d;
    for (int row = 0; row < call.batch.rows; row++) {
        const int before = call.before(row), first_token = row * call.tokens;
        int64_t first, last;
        me.share(before + call.tokens, first, last);
        for (int g = 0; g < m.kv_heads; g++) {
            const int64_t place =
                index * call.batch.layer_stride + row * call.batch.row_stride + g * call.batch.head_stride;
            float *keys = call.batch.keys + place, *values = call.batch.values + place;
            for (int t = std::max<int>(first, before); t < last; t++) {  // the new tokens in this worker's share
                const int64_t from = (first_token + t - before) * m.kv_heads + g;
                turn(m, layer.k_norm, t, k + from * d, keys + (int64_t)t * d);
                std::copy_n(v + from * d, d, values + (int64_t)t * d);
            }
            for (int b = first_token; b < first_token + call.tokens; b++) {
                const int position = before + b - first_token;
                const int count = std::max<int64_t>(0, std::min<int64_t>(last, position + 1) - first);
                for (int h = 0; h < each; h++)
                    turn(m, layer.q_norm, position, q + ((int64_t)b * m.heads + g * each + h) * d, query + h * d);
                for (int h = 0; h < each; h++)
                    dots(query + h * d, keys + first * d, count, d, scale, scores + (int64_t)h * count);
                for (int h = 0; h < each; h++) {
                    float *mine = shares.at(me.index, b, g * each + h), *score = scores + (int64_t)h * count, total = 0;
                    const float top = count ? *std::max_element(score, score + count) : -INFINITY;
                    for (int t = 0; t < count; t++) score[t] = exp_fast(score[t] - top);
                    for (int t = 0; t < count; t++) total += score[t];
                    mine[0] = top, mine[1] = total;
                    weighted_sum(score, values + first * d, count, d, mine + 2);
                }
            }
        }
    }
}

// All workers' shares -> attention's output [B, H * D].
void join(const Model& m, int workers, const Shares& shares, float* out) {
    for (int b = 0; b < shares.batch; b++)
        for (int head = 0; head < m.heads; head++, out += m.head_dim) {
            float top = -INFINITY, total = 0;
            for (int w = 0; w < workers; w++) top = std::max(top, shares.at(w, b, head)[0]);
            std::fill_n(out, m.head_dim, 0.0f);
            for (int w = 0; w < workers; w++) {
                const float* share = shares.at(w, b, head);
                const float factor = std::exp(share[0] - top);
                total += factor * share[1];
                for (int i = 0; i < m.head_dim; i++) out[i] += factor * share[2 + i];
            }
            for (int i = 0; i < m.head_dim; i++) out[i] /= total;
        }
}

// gate, up [B, F] -> act(gate) * up, in gate; this worker's columns.
void activate(const Worker& me, const Model& m, int batch, float* gates, const float* ups) {
    int first, last;
    me.share_rows(m.intermediate, first, last);
    for (int b = 0; b < batch; b++) {
        float* gate = gates + (int64_t)b * m.intermediate;
        const float* up = ups + (int64_t)b * m.intermediate;
        if (m.activation == SILU)
            for (int i = first; i < last; i++) gate[i] = gate[i] / (1.0f + exp_fast(-gate[i])) * up[i];
        else
            for (int i = first; i < last; i++) {
                const float positive = gate[i] < 0 ? 0.0f : gate[i];
                gate[i] = positive * positive * up[i];
            }
    }
}

// Floats that `size` tokens at a time need: shared by all workers, and of each worker's own.
struct Memory {
    int64_t x, q, kv, mlp, shares, scores, own, scratch;

    Memory(const Model& m, const Batch& batch, int size) {
        const int64_t wide = std::max({m.hidden, m.intermediate, m.heads * m.head_dim});
        const int longest = batch.tokens + *std::max_element(batch.lengths, batch.lengths + batch.rows);
        x = (int64_t)size * m.hidden;
        q = (int64_t)size * m.heads * m.head_dim;
        kv = (int64_t)size * m.kv_heads * m.head_dim;
        mlp = (int64_t)size * m.intermediate;
        shares = (int64_t)batch.threads * size * m.heads * (m.head_dim + 2);
        scores = (int64_t)size * m.head.rows;
        own = size * wide;
        const int64_t prepared = size * (wide + wide / BLOCK + 1);
        const int64_t attention = (m.heads / m.kv_heads) * (int64_t)(m.head_dim + longest);
        scratch = std::max(prepared, attention);
    }
    int64_t shared() const { return x + q + 2 * kv + 2 * mlp + shares + scores; }
    int64_t total(int threads) const { return shared() + threads * (own + scratch); }
};

// One worker's way through the model.
struct Run {
    const Model& m;
    const Memory& memory;
    float *x, *q, *k, *v, *gate, *up, *shares, *scores, *own;  // x and scores: for who has no place of his own for them
    Worker me;

    Run(const Model& m, const Memory& memory, float* all, Barrier& meeting, int index, int count)
        : m(m), memory(memory), x(all), q(x + memory.x), k(q + memory.q), v(k + memory.kv), gate(v + memory.kv),
          up(gate + memory.mlp), shares(up + memory.mlp), scores(shares + memory.shares),
          own(all + memory.shared() + index * (memory.own + memory.scratch)),
          me{index, count, own + memory.own, meeting} {}

    void normalise(const float* x, int size, const float* weight) const {  // by every worker: cheaper than to wait
        for (int b = 0; b < size; b++)
            rms_norm(x + (int64_t)b * m.hidden, weight, m.eps, m.hidden, own + (int64_t)b * m.hidden);
    }

    // The tokens `stride` apart -> x [B, C]
    void embed(const int64_t* ids, int stride, const Call& call) const {
        if (me.index == 0)
            for (int b = 0; b < call.size(); b++)
                std::copy_n(m.embed + ids[b * stride] * m.hidden, m.hidden, call.x + (int64_t)b * m.hidden);
        me.wait();
    }

    void layers(const Call& call) const {
        const int size = call.size(), width = m.heads * m.head_dim, kv_width = m.kv_heads * m.head_dim;
        const Output residual{call.x, m.hidden, true};
        const Shares found{shares, m.heads, m.head_dim, size};
        for (int index = call.batch.first; index < call.batch.last; index++) {
            const Layer& layer = m.layers[index];
            normalise(call.x, size, layer.input_norm);
            product(me, layer.q, own, size, {q, width, false});
            product(me, layer.k, own, size, {k, kv_width, false});
            product(me, layer.v, own, size, {v, kv_width, false});
            me.wait();
            attend(me, m, layer, call, index, q, k, v, found);
            me.wait();
            join(m, me.count, found, own);
            product(me, layer.o, own, size, residual);
            me.wait();
            normalise(call.x, size, layer.post_norm);
            product(me, layer.gate, own, size, {gate, m.intermediate, false});
            product(me, layer.up, own, size, {up, m.intermediate, false});
            activate(me, m, size, gate, up);
            me.wait();
            product(me, layer.down, gate, size, residual);
            me.wait();
        }
    }

    void head(const Matrix& head, const Call& call, float* logits) const {
        normalise(call.x, call.size(), m.norm);
        product(me, head, own, call.size(), {logits, head.rows, false});
    }

    void decode(const Batch& batch) const {
        const Call call{batch, batch.states, batch.tokens, 0};
        if (batch.first == 0) embed(batch.ids, 1, call);
        layers(call);
        head(m.head, call, batch.logits);
    }

    void draft(const Batch& batch) const {
        for (int step = 0; step < batch.tokens; step++) {
            const Call call{batch, x, 1, step};
            embed(batch.ids + step, batch.tokens, call);
            layers(call);
            const bool guess = step + 1 < batch.tokens;
            if (guess) {
                head(m.draft_head, call, scores);
                me.wait();
            }
            if (me.index == 0)
                for (int row = 0; row < batch.rows; row++) {
                    const int64_t place = (int64_t)row * batch.tokens + step;
                    std::copy_n(x + (int64_t)row * m.hidden, m.hidden, batch.states + place * m.hidden);
                    if (guess) batch.ids[place + 1] = luckiest(row, batch.logits + (place - row) * m.head.rows);
                }
        }
    }

    int luckiest(int row, const float* luck) const {
        const int count = m.draft_head.rows;
        float* score = scores + (int64_t)row * count;
        for (int i = 0; i < count; i++) score[i] += luck[i];
        return std::max_element(score, score + count) - score;
    }
};

int start(const Model& model, const Batch& batch, int size, void (Run::*step)(const Batch&) const) {
    const Memory memory(model, batch, size);
    static thread_local std::vector<float> kept;
    try {
        kept.resize(std::max<size_t>(kept.size(), memory.total(batch.threads)));
    } catch (const std::bad_alloc&) {
        return 1;
    }
    float* all = kept.data();
    Barrier meeting;
#ifdef _OPENMP
#pragma omp parallel num_threads(batch.threads)
    (Run(model, memory, all, meeting, omp_get_thread_num(), omp_get_num_threads()).*step)(batch);
#else
    (Run(model, memory, all, meeting, 0, 1).*step)(batch);
#endif
    return 0;
}

}  // namespace

// `tokens` of every row through the layers from `first` on, from their ids or from the states before `first`. Fills
// `states` and `logits`; adds keys and values to the cache. Returns 0, or 1 without memory.
extern "C" int qwq_decode(const Model* model, const Batch* batch) {
    return start(*model, *batch, batch->rows * batch->tokens, &Run::decode);
}

// The first token of every row through the layers [0, last), then the best next one by `draft_head` and luck, and so on:
// fills `ids`, `states` and those layers' cache. Returns 0, or 1 without memory.
extern "C" int qwq_draft(const Model* model, const Batch* batch) {
    return start(*model, *batch, batch->rows, &Run::draft);
}
