// Stacked gated feed-forwards (mixture of experts) in float32 on CPU threads, forward and gradients; experts.py calls it
// and is its reference. Between the two products of an expert nothing leaves the cache.
//
// Shapes: N tokens, A experts of a token, S = N * A pairs sorted by expert, E experts, C hidden_size, I width of an
// expert. Matrices of weights are read where they are; only what is at their right is packed.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vector.h"

constexpr int TILE = 2 * LANES;                 // columns computed together
constexpr int ROWS = LANES == 16 ? 12 : 6;      // rows computed together: the tile fills the registers
constexpr int AHEAD = 8;                        // rows: how far before its use one is fetched
constexpr int BLOCK = 8 * ROWS;                 // pairs of a task of the backward pass, at least

enum Activation : int32_t { SILU = 0, RELU2 = 1, RELU = 2 };

struct Call {
    const float *x, *gate_up, *down, *weights;  // [N, C], [E, 2 I, C], [E, C, I], [N, A]
    const int64_t* chosen;                      // [N, A]
    int32_t *starts, *token, *place;            // [E + 1] and [S] by expert; [S]: where pair (n, a) has gone
    float *hidden, *out;                        // [S, 2 I] before the activation, or null; [N, C]
    const float* grad;                          // of out; what follows are the gradients to write
    float *grad_x, *grad_gate_up, *grad_down, *grad_weights;
    int32_t tokens, each, experts, size, inner, activation, threads;

    int64_t pairs() const { return (int64_t)tokens * each; }
};

namespace {

// Not filled with zeros; in large pages, where the system has them: to be given small ones one by one takes longer than
// to fill them.
struct Memory {
    float* data;

    explicit Memory(int64_t count) {
        const int64_t huge = 1 << 21, wanted = count * sizeof(float), page = wanted < huge ? 64 : huge;
        const int64_t bytes = (wanted / page + 1) * page;
        data = (float*)std::aligned_alloc(page, bytes);
        if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        if (page == huge) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    }
    Memory(const Memory&) = delete;
    ~Memory() { std::free(data); }
};

// out [R, columns] = left [R, depth] x panel [depth, TILE]; left(r, k) is at left[r * row + k * step].
template <int R, int N, bool ALONG>
void tile(const float* left, int64_t row, int64_t step, const float* panel, int depth, float* out, int64_t stride,
          int columns) {
    Vector total[R][N] = {};
    const int64_t next = ALONG ? 1 : step, down = ALONG ? row : 1;
    for (int k = 0; k < depth; k++) {
        Vector right[N];
        for (int n = 0; n < N; n++) right[n] = load(panel + k * TILE + n * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const float value = left[r * down + k * next];
            for (int n = 0; n < N; n++) total[r][n] += value * right[n];
        }
    }
    if (columns == N * LANES) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) store(out + r * stride + n * LANES, total[r][n]);
        return;
    }
    for (int r = 0; r < R; r++) memcpy(out + r * stride, total[r], sizeof(float) * columns);
}

template <int R, bool ALONG>
void tiles(int rows, const float* left, int64_t row, int64_t step, const float* panel, int depth, float* out,
           int64_t stride, int columns) {
    if (rows < R) {
        if constexpr (R > 1) tiles<R - 1, ALONG>(rows, left, row, step, panel, depth, out, stride, columns);
        return;
    }
    if (columns > LANES)
        tile<R, 2, ALONG>(left, row, step, panel, depth, out, stride, columns);
    else
        tile<R, 1, ALONG>(left, row, step, panel, depth, out, stride, columns);
}

// out [rows, columns] = left [rows, depth] x panel [depth, TILE], where left lies row by row or column by column.
void multiply(int rows, const float* left, int64_t row, int64_t step, const float* panel, int depth, float* out,
              int64_t stride, int columns) {
    for (int r = 0; r < rows; r += ROWS) {
        if (step == 1)
            tiles<ROWS, true>(rows - r, left + r * row, row, 1, panel, depth, out + r * stride, stride, columns);
        else
            tiles<ROWS, false>(rows - r, left + r, 1, step, panel, depth, out + r * stride, stride, columns);
    }
}

// panel [depth, TILE] = columns first ... of a matrix whose row k is at row(k).
template <class Row>
void pack(Row row, int depth, int columns, float* panel) {
    for (int k = 0; k < depth; k++, panel += TILE) {
        const float* from = row(k);
        if (k + AHEAD < depth) __builtin_prefetch(row(k + AHEAD)), __builtin_prefetch(row(k + AHEAD) + LANES);
        if (columns >= TILE) {
            for (int i = 0; i < TILE; i += LANES) store(panel + i, load(from + i));
        } else {
            std::copy_n(from, columns, panel);
            std::fill(panel + columns, panel + TILE, 0.0f);
        }
    }
}

inline Vector shuffle(Vector a, Vector b, Ints from) {
#ifdef __clang__
    Vector v;
    for (int i = 0; i < LANES; i++) v[i] = from[i] < LANES ? a[from[i]] : b[from[i] - LANES];
    return v;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Exchanges, in a square of LANES vectors, what a transpose moves by S rows and S columns.
template <int S>
__attribute__((always_inline)) inline void exchange(Vector* v) {
    Ints low, high;
    for (int i = 0; i < LANES; i++) {
        low[i] = i & S ? LANES + i - S : i;
        high[i] = i & S ? LANES + i : i + S;
    }
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        if (!(r & S)) {
            const Vector a = v[r], b = v[r + S];
            v[r] = shuffle(a, b, low);
            v[r + S] = shuffle(a, b, high);
        }
}

// to [columns, stride] = the transpose of from [rows, from_stride].
void transpose(const float* from, int64_t from_stride, int rows, int columns, float* to, int64_t stride) {
    for (int c = 0; c < columns; c += LANES)
        for (int r = 0; r < rows; r += LANES) {
            if (c + LANES > columns || r + LANES > rows) {
                for (int i = c; i < std::min(c + LANES, columns); i++)
                    for (int j = r; j < std::min(r + LANES, rows); j++) to[i * stride + j] = from[j * from_stride + i];
                continue;
            }
            Vector v[LANES];
#pragma GCC unroll 16
            for (int j = 0; j < LANES; j++) v[j] = load(from + (r + j) * from_stride + c);
            if constexpr (LANES == 16) exchange<LANES / 2>(v);
            exchange<4>(v);
            exchange<2>(v);
            exchange<1>(v);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(to + (c + i) * stride + r, v[i]);
        }
}

// act(x) and its derivative, of n numbers.
template <Activation A>
void activate(int n, const float* __restrict x, float* __restrict value, float* __restrict slope) {
    for (int i = 0; i < n; i++) {
        if constexpr (A == SILU) {
            const float s = 1.0f / (1.0f + exp_fast(-x[i]));
            value[i] = x[i] * s;
            slope[i] = s + value[i] * (1.0f - s);
        } else {
            const float r = x[i] > 0 ? x[i] : 0.0f;
            value[i] = A == RELU ? r : r * r;
            slope[i] = A == RELU ? (x[i] > 0 ? 1.0f : 0.0f) : 2.0f * r;
        }
    }
}

// The gated unit backwards, for one pair: `inner` [n] = act(gate) * up, which g is the gradient of (but for the weight
// w); the gradients of gate and up. Returns the weight's own.
template <Activation A>
float gate_backward(int n, float w, const float* __restrict gate, const float* __restrict up,
                    const float* __restrict g, float* __restrict grad_gate, float* __restrict grad_up,
                    float* __restrict inner) {
    activate<A>(n, gate, inner, grad_gate);
    for (int i = 0; i < n; i++) {
        grad_up[i] = w * g[i] * inner[i];
        grad_gate[i] *= w * g[i] * up[i];
        inner[i] *= up[i];
    }
    const float grad_weight = dot(g, inner, n);
    for (int i = 0; i < n; i++) inner[i] *= w;
    return grad_weight;
}

// Pairs that share an expert, at most `most` to a task, an expert's tasks alike but for multiples of `step`.
struct Task {
    int expert, first, count;
};

std::vector<Task> tasks(const Call& c, int most, int step) {
    std::vector<Task> found;
    for (int e = 0; e < c.experts; e++) {
        const int end = c.starts[e + 1], count = end - c.starts[e], parts = (count + most - 1) / most;
        const int each = parts ? std::min(most, ((count + parts - 1) / parts + step - 1) / step * step) : 0;
        for (int first = c.starts[e]; first < end; first += each) found.push_back({e, first, std::min(each, end - first)});
    }
    return found;
}

void sort(const Call& c) {
    std::fill(c.starts, c.starts + c.experts + 1, 0);
    for (int64_t s = 0; s < c.pairs(); s++) c.starts[c.chosen[s] + 1]++;
    for (int e = 0; e < c.experts; e++) c.starts[e + 1] += c.starts[e];
    std::vector<int32_t> next(c.starts, c.starts + c.experts);
    for (int64_t s = 0; s < c.pairs(); s++) {
        c.place[s] = next[c.chosen[s]]++;
        c.token[c.place[s]] = s / c.each;
    }
}

// The weights of the pairs, by expert.
void sort_weights(const Call& c, float* to) {
    for (int64_t s = 0; s < c.pairs(); s++) to[c.place[s]] = c.weights[s];
}

// to [N, C] = for each token the sum over its pairs of rows [S, C].
void gather(const Call& c, const float* rows, float* to) {
#pragma omp for schedule(static)
    for (int n = 0; n < c.tokens; n++) {
        float* sum = to + (int64_t)n * c.size;
        for (int a = 0; a < c.each; a++) {
            const float* row = rows + (int64_t)c.place[(int64_t)n * c.each + a] * c.size;
            for (int i = 0; i < c.size; i++) sum[i] = a ? sum[i] + row[i] : row[i];
        }
    }
}

int thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Tokens are columns here, so that the weights are read as they lie. A task's columns that have no token hold what was
// there before, with weight 0: nobody reads them.
template <Activation A>
void forward(const Call& c) {
    sort(c);
    const auto work = tasks(c, TILE, TILE);
    const int64_t C = c.size, I = c.inner, scratch = (3 * C + 4 * I) * TILE;
    const Memory rows(c.pairs() * C), all(c.threads * scratch), weight(c.pairs());
    sort_weights(c, weight.data);
#pragma omp parallel num_threads(c.threads)
    {
        float *x = all.data + thread() * scratch, *both = x + C * TILE, *y = both + 2 * I * TILE, *value = y + C * TILE;
        float *slope = value + I * TILE, *gathered = slope + I * TILE;
        std::fill(x, x + scratch, 0.0f);
#pragma omp for schedule(dynamic)
        for (size_t t = 0; t < work.size(); t++) {
            const auto [expert, first, count] = work[t];
            const float *gate_up = c.gate_up + expert * 2 * I * C, *down = c.down + expert * C * I;
            float w[TILE] = {};
            for (int j = 0; j < count; j++) {
                std::copy_n(c.x + c.token[first + j] * C, C, gathered + j * C);
                w[j] = weight.data[first + j];
            }
            transpose(gathered, C, TILE, C, x, TILE);
            multiply(2 * I, gate_up, C, 1, x, C, both, TILE, count);
            if (c.hidden) transpose(both, TILE, 2 * I, count, c.hidden + first * 2 * I, 2 * I);
            activate<A>(I * TILE, both, value, slope);
            for (int i = 0; i < I; i++)
                for (int j = 0; j < TILE; j++) value[i * TILE + j] *= both[(I + i) * TILE + j] * w[j];
            multiply(C, down, I, 1, value, I, y, TILE, count);
            transpose(y, TILE, C, count, rows.data + first * C, C);
        }
        gather(c, rows.data, c.out);
    }
}

// Tokens are rows here. The strides of what is read down its columns are no powers of two: they would meet in the cache.
template <Activation A>
void backward(const Call& c) {
    const int64_t C = c.size, I = c.inner, S = c.pairs(), wide = C + LANES, both_wide = 2 * I + LANES;
    const int block = std::clamp<int64_t>(S / (4 * c.threads), BLOCK, 4 * BLOCK);  // a task packs all of its weights
    const auto work = tasks(c, block, ROWS);
    const int64_t most = std::max<int64_t>({C, 2 * I, S}), scratch = most * TILE + block * I;
    const Memory rows(S * C), out(S * wide), both(S * both_wide), inner(S * I);
    const Memory all(c.threads * scratch), weight(S), grad_weight(S);
    sort_weights(c, weight.data);
    const int strips_down = (I + TILE - 1) / TILE, strips = strips_down + (C + TILE - 1) / TILE;
#pragma omp parallel num_threads(c.threads)
    {
        float *panel = all.data + thread() * scratch, *grad_inner = panel + most * TILE;
#pragma omp for schedule(dynamic)
        for (size_t t = 0; t < work.size(); t++) {
            const auto [expert, first, count] = work[t];
            const float *gate_up = c.gate_up + expert * 2 * I * C, *down = c.down + expert * C * I;
            for (int j = first; j < first + count; j++) std::copy_n(c.grad + c.token[j] * C, C, out.data + j * wide);
            for (int64_t i = 0; i < I; i += TILE) {
                const int columns = std::min<int64_t>(TILE, I - i);
                pack([&](int k) { return down + k * I + i; }, C, columns, panel);
                multiply(count, out.data + first * wide, wide, 1, panel, C, grad_inner + i, I, columns);
            }
            for (int j = first; j < first + count; j++) {
                const float *gate = c.hidden + j * 2 * I, *g = grad_inner + (j - first) * I;
                float* to = both.data + j * both_wide;
                grad_weight.data[j] =
                    gate_backward<A>(I, weight.data[j], gate, gate + I, g, to, to + I, inner.data + j * I);
            }
            for (int64_t i = 0; i < C; i += TILE) {
                const int columns = std::min<int64_t>(TILE, C - i);
                pack([&](int k) { return gate_up + k * C + i; }, 2 * I, columns, panel);
                const float* left = both.data + first * both_wide;
                multiply(count, left, both_wide, 1, panel, 2 * I, rows.data + first * C + i, C, columns);
            }
        }
        gather(c, rows.data, c.grad_x);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < S; s++) c.grad_weights[s] = grad_weight.data[c.place[s]];
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < (int64_t)c.experts * strips; t++) {
            const int64_t expert = t / strips, strip = t % strips, first = c.starts[expert];
            const int count = c.starts[expert + 1] - first;
            if (strip < strips_down) {
                const int64_t i = strip * TILE, columns = std::min<int64_t>(TILE, I - i);
                pack([&](int k) { return inner.data + (first + k) * I + i; }, count, columns, panel);
                multiply(C, out.data + first * wide, 1, wide, panel, count, c.grad_down + expert * C * I + i, I, columns);
            } else {
                const int64_t i = (strip - strips_down) * TILE, columns = std::min<int64_t>(TILE, C - i);
                pack([&](int k) { return c.x + c.token[first + k] * C + i; }, count, columns, panel);
                float* to = c.grad_gate_up + expert * 2 * I * C + i;
                multiply(2 * I, both.data + first * both_wide, 1, both_wide, panel, count, to, C, columns);
            }
        }
    }
}

}  // namespace

// 0, or 1 where there is no memory. Without `grad` the forward pass, with it the gradients.
extern "C" int qwq_experts(const Call* call) {
    try {
        const Call& c = *call;
        if (c.activation == SILU) c.grad ? backward<SILU>(c) : forward<SILU>(c);
        if (c.activation == RELU2) c.grad ? backward<RELU2>(c) : forward<RELU2>(c);
        if (c.activation == RELU) c.grad ? backward<RELU>(c) : forward<RELU>(c);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
