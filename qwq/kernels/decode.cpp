// One decode step of a dense decoder (Llama, Qwen2, Qwen3) for a batch of rows, on CPU threads.
//
// The weights are read once for all rows of the batch, in the form they have in memory: float32, or blocks of 32
// quantised weights. Activations are float32, so that the result is the dequantised model's up to the order of
// summation. The reference is qwq/model (tests/kernels compares them); decode.py fills the structs.
//
// Shapes: B batch, C hidden_size, F intermediate_size, H query heads, K key/value heads, D head_dim, V vocab_size.

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
    Matrix head;
    const float *norm, *cos, *sin;  // cos, sin [positions, D / 2]
    float eps;
    int32_t num_layers, hidden, intermediate, heads, kv_heads, head_dim, activation;
};
struct Batch {
    float* x;                 // [B, C] embeddings of the tokens; overwritten
    float* logits;            // [B, V]
    float *keys, *values;     // of the first layer's first row: [layers, rows, K, capacity, D]
    const int32_t* lengths;   // [B] tokens that each row holds already
    int64_t layer_stride, row_stride, head_stride;  // floats
    int32_t size, threads;
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

void attend(const Worker& me, const Model& m, const Layer& layer, const Batch& batch, int index, const float* q,
            const float* k, const float* v, const Shares& shares) {
    const int d = m.head_dim, each = m.heads / m.kv_heads;
    const float scale = 1.0f / std::sqrt((float)d);
    float *query = me.scratch, *scores = me.scratch + each * d;
    for (int b = 0; b < batch.size; b++) {
        const int length = batch.lengths[b];
        int64_t first, last;
        me.share(length + 1, first, last);
        const int count = last - first;
        for (int g = 0; g < m.kv_heads; g++) {
            const int64_t place = index * batch.layer_stride + b * batch.row_stride + g * batch.head_stride;
            float *keys = batch.keys + place, *values = batch.values + place;
            if (last == length + 1 && count) {  // the new token is in this worker's share
                turn(m, layer.k_norm, length, k + ((int64_t)b * m.kv_heads + g) * d, keys + (int64_t)length * d);
                std::copy_n(v + ((int64_t)b * m.kv_heads + g) * d, d, values + (int64_t)length * d);
            }
            for (int h = 0; h < each; h++)
                turn(m, layer.q_norm, length, q + ((int64_t)b * m.heads + g * each + h) * d, query + h * d);
            for (int64_t t = 0; t < count; t++)
                for (int h = 0; h < each; h++)
                    scores[h * count + t] = scale * dot(query + h * d, keys + (first + t) * d, d);
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

// Floats that a batch needs: shared by all workers, and of each worker's own.
struct Memory {
    int64_t q, kv, mlp, shares, own, scratch;

    Memory(const Model& m, const Batch& batch) {
        const int64_t wide = std::max({m.hidden, m.intermediate, m.heads * m.head_dim});
        const int longest = 1 + *std::max_element(batch.lengths, batch.lengths + batch.size);
        q = (int64_t)batch.size * m.heads * m.head_dim;
        kv = (int64_t)batch.size * m.kv_heads * m.head_dim;
        mlp = (int64_t)batch.size * m.intermediate;
        shares = (int64_t)batch.threads * batch.size * m.heads * (m.head_dim + 2);
        own = batch.size * wide;
        const int64_t prepared = batch.size * (wide + wide / BLOCK + 1);
        const int64_t attention = (m.heads / m.kv_heads) * (int64_t)(m.head_dim + longest);
        scratch = std::max(prepared, attention);
    }
    int64_t shared() const { return q + 2 * kv + 2 * mlp + shares; }
    int64_t total(int threads) const { return shared() + threads * (own + scratch); }
};

void run(const Model& m, const Batch& batch, const Memory& memory, float* all, Barrier& meeting, int index, int count) {
    float *q = all, *k = q + memory.q, *v = k + memory.kv, *gate = v + memory.kv, *up = gate + memory.mlp;
    const Shares shares{up + memory.mlp, m.heads, m.head_dim, batch.size};
    float* own = all + memory.shared() + index * (memory.own + memory.scratch);
    const Worker me{index, count, own + memory.own, meeting};
    const int size = batch.size, width = m.heads * m.head_dim, kv_width = m.kv_heads * m.head_dim;
    const Output residual{batch.x, m.hidden, true};
    auto normalise = [&](const float* weight) {  // by every worker for itself: cheaper than to wait for one
        for (int b = 0; b < size; b++)
            rms_norm(batch.x + (int64_t)b * m.hidden, weight, m.eps, m.hidden, own + (int64_t)b * m.hidden);
    };
    for (int index = 0; index < m.num_layers; index++) {
        const Layer& layer = m.layers[index];
        normalise(layer.input_norm);
        product(me, layer.q, own, size, {q, width, false});
        product(me, layer.k, own, size, {k, kv_width, false});
        product(me, layer.v, own, size, {v, kv_width, false});
        me.wait();
        attend(me, m, layer, batch, index, q, k, v, shares);
        me.wait();
        join(m, count, shares, own);
        product(me, layer.o, own, size, residual);
        me.wait();
        normalise(layer.post_norm);
        product(me, layer.gate, own, size, {gate, m.intermediate, false});
        product(me, layer.up, own, size, {up, m.intermediate, false});
        activate(me, m, size, gate, up);
        me.wait();
        product(me, layer.down, gate, size, residual);
        me.wait();
    }
    normalise(m.norm);
    product(me, m.head, own, size, {batch.logits, m.head.rows, false});
}

}  // namespace

// One token for every row of the batch: fills `logits`, adds the token to the cache. Returns 0, or 1 without memory.
extern "C" int qwq_decode(const Model* model, const Batch* batch) {
    const Memory memory(*model, *batch);
    static thread_local std::vector<float> kept;
    try {
        kept.resize(std::max<size_t>(kept.size(), memory.total(batch->threads)));
    } catch (const std::bad_alloc&) {
        return 1;
    }
    float* all = kept.data();
    Barrier meeting;
#ifdef _OPENMP
#pragma omp parallel num_threads(batch->threads)
    run(*model, *batch, memory, all, meeting, omp_get_thread_num(), omp_get_num_threads());
#else
    run(*model, *batch, memory, all, meeting, 0, 1);
#endif
    return 0;
}
