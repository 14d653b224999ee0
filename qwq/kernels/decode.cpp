// One decode step of a dense decoder (Llama, Qwen2, Qwen3) for a batch of rows, on CPU threads.
//
// The weights are read once for all rows of the batch, in the form they have in memory: float32, or blocks of 32
// quantised weights. Activations are float32, so that the result is the dequantised model's up to the order of
// summation. The reference is qwq/model (tests/kernels compares them); qwq/kernels/decode.py describes the structs.
//
// Everything is written with the vector extensions of GCC and Clang: LANES floats a vector, chosen by the compiler's
// target flags (qwq/kernels/compile.py chooses those at run time).
//
// Shapes: B batch, C hidden_size, F intermediate_size, H query heads, K key/value heads, D head_dim, V vocab_size.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __F16C__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int GROUP = 16, BLOCK = 32;  // output rows that are interleaved; weights that share a scale
#ifndef AHEAD
#define AHEAD 4096
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

enum Format : int32_t { F32 = 0, Q4_0 = 1, Q4_1 = 2, Q8_0 = 3 };
enum Activation : int32_t { SILU = 0, RELU2 = 1 };

extern "C" {
struct Matrix {           // [rows, columns], y = W x + bias
    const void* weights;  // F32: row by row. Else: groups of 16 rows, as Quantised.interleaved (quantised.py) makes them
    const float* bias;    // [rows] or null
    int32_t format, rows, columns;
};
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
}

namespace {

inline Vector load(const float* p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline Words load(const uint32_t* p) {
    Words v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Vector v) { memcpy(p, &v, sizeof v); }

inline Vector load_some(const float* p, int count) {
    Vector v = {};
    memcpy(&v, p, sizeof(float) * count);
    return v;
}

inline float sum(Vector v) {
    float total[LANES];
    memcpy(total, &v, sizeof v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) total[i] += total[i + width];
    return total[0];
}

inline Vector load_half(const uint16_t* p) {
#if defined(__AVX512F__)
    return (Vector)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    Words bits;  // the exponent and fraction in place; 2^112 puts the exponent right, of subnormal numbers too
    for (int i = 0; i < LANES; i++) bits[i] = (p[i] & 0x7FFFu) << 13;
    Vector v = (Vector)bits * 0x1p112f;
    for (int i = 0; i < LANES; i++) v[i] = p[i] >> 15 ? -v[i] : v[i];
    return v;
#endif
}

inline float dot(const float* a, const float* b, int n) {
    Vector total = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES) total += load(a + i) * load(b + i);
    if (i < n) total += load_some(a + i, n - i) * load_some(b + i, n - i);
    return sum(total);
}

// exp within 2 units in the last place: 2^n times the series of e^r, |r| <= ln(2) / 2. Loops over it vectorise.
inline float exp_fast(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer, in its low bits
    float shifted = x * 1.44269504f + shift, n = shifted - shift;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return series * power;
}

// Who computes: a thread of the team, and the memory of its own.
struct Worker {
    int index, count;
    float* scratch;

    // This worker's share of `total` things, as [first, last).
    void share(int64_t total, int64_t& first, int64_t& last) const {
        first = total * index / count;
        last = total * (index + 1) / count;
    }

    // The same of a matrix's rows, in whole groups: alike for every format.
    void share_rows(int rows, int& first, int& last) const {
        int64_t a, b;
        share((rows + GROUP - 1) / GROUP, a, b);
        first = std::min<int64_t>(rows, a * GROUP);
        last = std::min<int64_t>(rows, b * GROUP);
    }
};

inline void barrier() {
#pragma omp barrier
}

// Where a matrix product goes: y [B, stride], replaced or added to.
struct Output {
    float* y;
    int64_t stride;
    bool add;

    void put(int row, int column, float value) const {
        float& place = y[row * stride + column];
        place = add ? place + value : value;
    }
};

// float32 weights, row by row: four rows of W at a time, so that each x is used four times.
template <int B>
void rows_f32(const Matrix& w, int first, int count, const float* x, int batch_row, const Output& out) {
    const int n = w.columns;
    const float* rows[4];
    for (int r = 0; r < 4; r++) rows[r] = (const float*)w.weights + (int64_t)(first + std::min(r, count - 1)) * n;
    Vector total[4][B] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int b = 0; b < B; b++) {
            Vector v = load(x + (int64_t)b * n + i);
            for (int r = 0; r < 4; r++) total[r][b] += load(rows[r] + i) * v;
        }
    if (i < n)
        for (int b = 0; b < B; b++) {
            Vector v = load_some(x + (int64_t)b * n + i, n - i);
            for (int r = 0; r < 4; r++) total[r][b] += load_some(rows[r] + i, n - i) * v;
        }
    for (int r = 0; r < count; r++)
        for (int b = 0; b < B; b++)
            out.put(batch_row + b, first + r, sum(total[r][b]) + (w.bias ? w.bias[first + r] : 0.0f));
}

// Where the weights of a word stand in their block: 4-bit word j is GGUF's bytes 4 j ... 4 j + 3, and a byte holds the
// weights i (low half) and i + 16 (high half); an 8-bit word holds neighbours.
template <Format format>
constexpr int column(int word, int i) {
    return format == Q8_0 ? 4 * word + i : 4 * word + i / 2 + 16 * (i % 2);
}

// Quantised weights: 16 rows of W at a time, one in each lane. A weight is not shifted down in its word but masked where
// it stands: at bit s it counts 2^s times too much, and x has been multiplied by 2^-s instead (`prepare`), which is exact.
template <Format format, int B>
void rows_quantised(const Matrix& w, int group, const float* x, const float* sums, int batch_row, const Output& out) {
    constexpr int WORDS = format == Q8_0 ? 8 : 4, EACH = BLOCK / WORDS, CHAINS = B == 1 ? 4 : B == 2 ? 2 : 1;
    const int n = w.columns, blocks = n / BLOCK, half_bytes = blocks * GROUP * 2;
    const int64_t group_bytes = half_bytes * (format == Q4_1 ? 2 : 1) + blocks * WORDS * GROUP * 4;
    const char* bytes = (const char*)w.weights + group * group_bytes;
    const uint16_t* scales = (const uint16_t*)bytes;
    const uint16_t* minima = (const uint16_t*)(bytes + half_bytes);
    const uint32_t* words = (const uint32_t*)(bytes + half_bytes * (format == Q4_1 ? 2 : 1));
    for (int lane = 0; lane < GROUP; lane += LANES) {
        Vector total[B] = {};
        for (int block = 0; block < blocks; block++) {
            Vector part[B][CHAINS] = {};
            for (int j = 0; j < WORDS; j++) {
                const uint32_t* place = words + (block * WORDS + j) * GROUP + lane;
                __builtin_prefetch((const char*)place + AHEAD);
                const Words word = load(place);
#pragma GCC unroll 8
                for (int i = 0; i < EACH; i++) {
                    Ints q;
                    if constexpr (format == Q8_0)
                        q = (Ints)(word << (24 - 8 * i) & 0xFF000000u);
                    else
                        q = i == 7 ? (Ints)(word >> 28) : (Ints)(word & 15u << 4 * i);
                    const Vector value = __builtin_convertvector(q, Vector);
                    for (int b = 0; b < B; b++)
                        part[b][i % CHAINS] += value * x[(int64_t)b * n + block * BLOCK + column<format>(j, i)];
                }
            }
            const Vector scale = load_half(scales + block * GROUP + lane);
            for (int b = 0; b < B; b++) {
                Vector all = part[b][0];
                for (int c = 1; c < CHAINS; c++) all += part[b][c];
                const float block_sum = sums[(int64_t)b * blocks + block];
                if constexpr (format == Q4_0) all -= 8.0f * block_sum;
                total[b] += scale * all;
                if constexpr (format == Q4_1) total[b] += load_half(minima + block * GROUP + lane) * block_sum;
            }
        }
        for (int b = 0; b < B; b++)
            for (int i = 0; i < LANES; i++) {
                const int row = group * GROUP + lane + i;
                if (row < w.rows) out.put(batch_row + b, row, total[b][i] + (w.bias ? w.bias[row] : 0.0f));
            }
    }
}

// x [B, columns] as `rows_quantised` wants it, in the worker's scratch; after it the sum of every block.
template <Format format>
const float* prepare(const Matrix& w, const float* x, int batch, float* scratch) {
    constexpr int WORDS = format == Q8_0 ? 8 : 4, EACH = BLOCK / WORDS;
    float power[BLOCK];
    for (int j = 0; j < WORDS; j++)
        for (int i = 0; i < EACH; i++)
            power[column<format>(j, i)] = format == Q8_0 ? 0x1p-24f : i == 7 ? 1.0f : 1.0f / (1 << 4 * i);
    const int64_t blocks = (int64_t)batch * w.columns / BLOCK;
    float* sums = scratch + blocks * BLOCK;
    for (int64_t block = 0; block < blocks; block++) {
        float total = 0;
        for (int i = 0; i < BLOCK; i++) {
            scratch[block * BLOCK + i] = x[block * BLOCK + i] * power[i];
            total += x[block * BLOCK + i];
        }
        sums[block] = total;
    }
    return sums;
}

template <typename Rows>
void in_batches(int batch, Rows rows) {
    int b = 0;
    for (; b + 4 <= batch; b += 4) rows(b, std::integral_constant<int, 4>());
    if (batch - b >= 2) rows(b, std::integral_constant<int, 2>()), b += 2;
    if (batch - b == 1) rows(b, std::integral_constant<int, 1>());
}

template <Format format>
void product_quantised(const Worker& me, const Matrix& w, const float* x, int batch, const Output& out) {
    const float* sums = prepare<format>(w, x, batch, me.scratch);
    int first, last;
    me.share_rows(w.rows, first, last);
    for (int row = first; row < last; row += GROUP)
        in_batches(batch, [&](int b, auto size) {
            rows_quantised<format, size.value>(w, row / GROUP, me.scratch + (int64_t)b * w.columns,
                                               sums + (int64_t)b * (w.columns / BLOCK), b, out);
        });
}

// This worker's rows of y = W x (+ bias), x [B, columns].
void product(const Worker& me, const Matrix& w, const float* x, int batch, const Output& out) {
    switch (w.format) {
        case Q4_0: return product_quantised<Q4_0>(me, w, x, batch, out);
        case Q4_1: return product_quantised<Q4_1>(me, w, x, batch, out);
        case Q8_0: return product_quantised<Q8_0>(me, w, x, batch, out);
        default: break;
    }
    int first, last;
    me.share_rows(w.rows, first, last);
    for (int row = first; row < last; row += 4)
        in_batches(batch, [&](int b, auto size) {
            rows_f32<size.value>(w, row, std::min(4, last - row), x + (int64_t)b * w.columns, b, out);
        });
}

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
                std::fill_n(mine + 2, d, 0.0f);
            }
            for (int64_t t = 0; t < count; t++)
                for (int h = 0; h < each; h++) {
                    float* mine = shares.at(me.index, b, g * each + h) + 2;
                    const float weight = scores[h * count + t], *value = values + (first + t) * d;
                    for (int i = 0; i < d; i++) mine[i] += weight * value[i];
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

void run(const Model& m, const Batch& batch, const Memory& memory, float* all, int index, int count) {
    float *q = all, *k = q + memory.q, *v = k + memory.kv, *gate = v + memory.kv, *up = gate + memory.mlp;
    const Shares shares{up + memory.mlp, m.heads, m.head_dim, batch.size};
    float* own = all + memory.shared() + index * (memory.own + memory.scratch);
    const Worker me{index, count, own + memory.own};
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
        barrier();
        attend(me, m, layer, batch, index, q, k, v, shares);
        barrier();
        join(m, count, shares, own);
        product(me, layer.o, own, size, residual);
        barrier();
        normalise(layer.post_norm);
        product(me, layer.gate, own, size, {gate, m.intermediate, false});
        product(me, layer.up, own, size, {up, m.intermediate, false});
        activate(me, m, size, gate, up);
        barrier();
        product(me, layer.down, gate, size, residual);
        barrier();
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
#ifdef _OPENMP
#pragma omp parallel num_threads(batch->threads)
    run(*model, *batch, memory, all, omp_get_thread_num(), omp_get_num_threads());
#else
    run(*model, *batch, memory, all, 0, 1);
#endif
    return 0;
}
