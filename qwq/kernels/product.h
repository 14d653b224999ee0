// y = W x for a batch of x, where W is float32 or quantised in blocks of 32 (GGUF's Q4_0, Q4_1, Q8_0) and x is float32.
// W is read once for the whole batch.
#pragma once

#include <type_traits>

#include "vector.h"
#include "workers.h"

constexpr int BLOCK = 32;     // weights that share a scale
constexpr int AHEAD = 16384, AHEAD_F32 = 8192;  // bytes: how far before its use a weight is fetched

enum Format : int32_t { F32 = 0, Q4_0 = 1, Q4_1 = 2, Q8_0 = 3 };

struct Matrix {           // [rows, columns], y = W x + bias
    const void* weights;  // F32: row by row. Else: groups of 16 rows, as Quantised.interleave (quantised.py) makes them
    const float* bias;    // [rows] or null
    int32_t format, rows, columns;
};

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
    Vector total[B * 4] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int r = 0; r < 4; r++) __builtin_prefetch((const char*)(rows[r] + i) + AHEAD_F32);
        for (int b = 0; b < B; b++) {
            Vector v = load(x + (int64_t)b * n + i);
            for (int r = 0; r < 4; r++) total[b * 4 + r] += load(rows[r] + i) * v;
        }
    }
    if (i < n)
        for (int b = 0; b < B; b++) {
            Vector v = load_some(x + (int64_t)b * n + i, n - i);
            for (int r = 0; r < 4; r++) total[b * 4 + r] += load_some(rows[r] + i, n - i) * v;
        }
    constexpr int TOGETHER = std::min(4 * B, LANES);
    for (int part = 0; part < 4 * B; part += TOGETHER) {
        const Vector found = sums<TOGETHER>(total + part);
        for (int b = 0; b < TOGETHER / 4; b++)
            for (int r = 0; r < count; r++)
                out.put(batch_row + part / 4 + b, first + r, found[b * 4 + r] + (w.bias ? w.bias[first + r] : 0.0f));
    }
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
    constexpr int WORDS = format == Q8_0 ? 8 : 4, EACH = BLOCK / WORDS, CHAINS = B == 1 ? 4 : 2;
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
