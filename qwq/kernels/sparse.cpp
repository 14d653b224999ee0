// Attention of blocks to blocks in float32, forward and backward (sparse.py has the layout and the plain forms).
//
// Everything is computed transposed, with the queries of a tile as columns: keys and values are read where they stand,
// the softmax runs along whole vectors, and only queries and results are turned.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "vector.h"

namespace {

constexpr int COLUMNS = 64;      // queries that are computed together
constexpr int FEW = 8;           // so many are not turned into columns
constexpr float LOWEST = -1e30f; // logit of what is not seen

struct Table {  // integers [B, n], or [n] for all rows of the batch
    const int64_t* data;
    int64_t batch;  // 0 where all rows are alike
    int64_t at(int64_t b, int64_t i) const { return data[b * batch + i]; }
};

struct Strided {  // [B, heads, tokens, width], the last dimension without gaps
    float* data;
    int64_t batch, head, token;
    float* at(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * token; }
};

struct Problem {
    Strided query, key, value, out, grad_out, grad_query, grad_key, grad_value;  // grad_key: [parts, B, K, S, D] dense
    Strided asked, pooled;       // [B, K, Q, D], [B, K, pools, D]: what `top_k` more entries are chosen by
    float *lse, *grad_bias;      // [B, H, T]; [B, K, Q, N]
    const float* gate;           // [D, D] is added to the identity between the two
    const float* bias;           // [B, K, Q, N] or null
    const int64_t* index;        // [B, K, Q, N]
    int64_t index_batch, index_head;
    Table start, rows, begun, first, limit;  // of tiles
    Table diagonal;                          // the tile's own block, -1 where order is free
    Table key_start, key_rows;               // of blocks
    int64_t batch, heads, kv_heads, tiles, entries, block, width, value_width, queries, keys, pools;
    int32_t parts, threads, top_k;
};

Vector exponential(Vector x) {  // exp_fast of vector.h on a whole vector; 0 where that would leave the normal numbers
    const Vector low = Vector{} - 87.0f, high = Vector{} + 88.0f;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Vector shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector series = Vector{} + 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return x > low ? series * (Vector)(((Words)shifted + 127) << 23) : Vector{};
}

// C (+)= A B for M rows and NV vectors of columns; A[i][p] is a[i * row + p * step], B and C have rows of COLUMNS or
// of `ldb`, `ldc` floats.
template <int M, int NV>
inline void micro(const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, int k,
                  bool add) {
    Vector total[M][NV] = {};
    if (add)
        for (int i = 0; i < M; i++)
            for (int v = 0; v < NV; v++) total[i][v] = load(c + i * ldc + v * LANES);
    for (int p = 0; p < k; p++) {
        Vector right[NV];
        for (int v = 0; v < NV; v++) right[v] = load(b + p * ldb + v * LANES);
        for (int i = 0; i < M; i++) {
            const float left = a[i * row + p * step];
            for (int v = 0; v < NV; v++) total[i][v] += right[v] * left;
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) store(c + i * ldc + v * LANES, total[i][v]);
}

template <int NV>
void panel(const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, int m, int k,
           bool add) {
    int i = 0;
    if (NV == 1)  // as many sums at once as hide the time that one addition takes
        for (; i + 12 <= m; i += 12) micro<12, NV>(a + i * row, row, step, b, ldb, c + i * ldc, ldc, k, add);
    for (; i + 6 <= m; i += 6) micro<6, NV>(a + i * row, row, step, b, ldb, c + i * ldc, ldc, k, add);
    if (m - i >= 4) micro<4, NV>(a + i * row, row, step, b, ldb, c + i * ldc, ldc, k, add), i += 4;
    for (; i < m; i++) micro<1, NV>(a + i * row, row, step, b, ldb, c + i * ldc, ldc, k, add);
}

// C [m, n] (+)= A [m, k] B [k, n]; n is a multiple of 16.
void gemm(const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, int m, int n,
          int k, bool add) {
    constexpr int WIDE = LANES == 16 ? 4 : 2;
    int j = 0;
    for (; j + WIDE * LANES <= n; j += WIDE * LANES)
        panel<WIDE>(a, row, step, b + j, ldb, c + j, ldc, m, k, add);
    for (; j < n; j += LANES) panel<1>(a, row, step, b + j, ldb, c + j, ldc, m, k, add);
}

// Up to COLUMNS queries of one tile: column j is query `token(j)` of head `head(j)`.
struct Columns {
    const Problem& p;
    int64_t b, kv, tile;
    int first, count, padded;  // of the tile's rows x group
    int64_t rows, start, begun;

    Columns(const Problem& p, int64_t b, int64_t kv, int64_t tile, int first)
        : p(p), b(b), kv(kv), tile(tile), first(first), rows(p.rows.at(b, tile)), start(p.start.at(b, tile)),
          begun(p.begun.at(b, tile)) {
        const int64_t all = rows * (p.heads / p.kv_heads);
        count = std::min<int64_t>(COLUMNS, all - first);
        padded = (count + 15) / 16 * 16;
    }
    int64_t row(int j) const { return (first + j) % rows; }
    int64_t head(int j) const { return kv * (p.heads / p.kv_heads) + (first + j) / rows; }
    float* of(const Strided& x, int j) const { return x.at(b, head(j), start + row(j)); }
    float& lse(int j) const { return p.lse[(b * p.heads + head(j)) * p.queries + start + row(j)]; }

    // x of every column times `scale`, turned: to [width][COLUMNS]; zero for columns that only fill the vector.
    void turn_in(const Strided& x, int64_t width, float scale, float* to) const {
        for (int j = 0; j < padded; j++) {
            const float* from = j < count ? of(x, j) : nullptr;
            for (int64_t d = 0; d < width; d++) to[d * COLUMNS + j] = from ? from[d] * scale : 0.0f;
        }
    }
    void turn_out(const float* from, int64_t width, const float* scale, const Strided& x) const {
        for (int j = 0; j < count; j++) {
            float* to = of(x, j);
            for (int64_t d = 0; d < width; d++) to[d] = from[d * COLUMNS + j] * scale[j];
        }
    }
    // The same without turning: [COLUMNS][width].
    void copy_in(const Strided& x, int64_t width, float scale, float* to) const {
        for (int j = 0; j < count; j++) {
            const float* from = of(x, j);
            for (int64_t d = 0; d < width; d++) to[j * width + d] = from[d] * scale;
        }
    }
};

// One entry of a tile's list, and which of its keys each column may see.
struct Entry {
    int64_t block, key_start, place;  // place in the list's tensor
    int rows;
    float bias;
    bool diagonal;

    Entry(const Problem& p, int64_t b, int64_t tile, int64_t block, int64_t place, float bias)
        : block(block), key_start(p.key_start.at(b, block)), place(place), rows(p.key_rows.at(b, block)), bias(bias),
          diagonal(block == p.diagonal.at(b, tile)) {}

    // S^T [rows][COLUMNS] = K q^T + bias, LOWEST where the query stands before the key.
    void logits(const Problem& p, const Columns& c, const float* query, float* s) const {
        gemm(p.key.at(c.b, c.kv, key_start), p.width, 1, query, COLUMNS, s, COLUMNS, rows, c.padded, p.width, false);
        if (bias != 0)
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < c.padded; j++) s[i * COLUMNS + j] += bias;
        if (diagonal)
            for (int j = 0; j < c.count; j++)
                for (int64_t i = c.begun + c.row(j) + 1; i < rows; i++) s[i * COLUMNS + j] = LOWEST;
    }
};

struct Scratch {
    std::vector<float> memory, scores;
    std::vector<Entry> entries;
    float *query, *result, *logits, *grads, *turned, *plain, *rows;
    explicit Scratch(const Problem& p) {
        const int64_t width = std::max(p.width, p.value_width);
        const int64_t block = std::max<int64_t>(p.block, 16);
        memory.resize((5 * width + 2 * block) * COLUMNS + 16);
        float* next = (float*)(((uintptr_t)memory.data() + 63) / 64 * 64);
        auto take = [&](int64_t count) { return std::exchange(next, next + count * COLUMNS); };
        query = take(width), result = take(width), turned = take(width), plain = take(width), rows = take(width);
        logits = take(block), grads = take(block);
    }
};

// The blocks that a tile sees: those in its list, then the `top_k` that are not and score highest.
void list(const Problem& p, int64_t b, int64_t kv, int64_t tile, Scratch& m) {
    auto& entries = m.entries;
    entries.clear();
    const int64_t* index = p.index + (b * p.index_batch + kv * p.index_head + tile) * p.entries;
    const int64_t place = ((b * p.kv_heads + kv) * p.tiles + tile) * p.entries;
    for (int64_t n = 0; n < p.entries; n++)
        if (index[n] >= 0) entries.emplace_back(p, b, tile, index[n], place + n, p.bias ? p.bias[place + n] : 0.0f);
    if (!p.top_k) return;
    const int64_t first = p.first.at(b, tile), end = std::min(first + p.limit.at(b, tile), p.pools);
    if (end <= first) return;
    const float* asked = p.asked.at(b, kv, tile);
    m.scores.resize(end - first);
    dots(asked, p.gate, p.width, p.width, 1.0f, m.rows);
    for (int64_t d = 0; d < p.width; d++) m.rows[d] += asked[d];
    dots(m.rows, p.pooled.at(b, kv, first), end - first, p.width, 1.0f, m.scores.data());
    std::vector<std::pair<float, int64_t>> best;
    for (int64_t block = first; block < end; block++) {
        const float score = m.scores[block - first];
        if ((int)best.size() == p.top_k && score <= best.back().first) continue;
        if (std::find(index, index + p.entries, block) != index + p.entries) continue;
        if ((int)best.size() == p.top_k) best.pop_back();
        best.insert(std::find_if(best.begin(), best.end(), [&](auto& x) { return x.first < score; }), {score, block});
    }
    for (auto& [score, block] : best) {
        const float x = score / std::sqrt((float)p.width);
        entries.emplace_back(p, b, tile, block, -1, std::min(x, 0.0f) - std::log1p(std::exp(-std::abs(x))));
    }
}

void forward(const Problem& p, const Columns& c, Scratch& m) {
    alignas(64) float top[COLUMNS], sum[COLUMNS], fade[COLUMNS];
    std::fill_n(top, COLUMNS, LOWEST), std::fill_n(sum, COLUMNS, 0.0f);
    c.turn_in(p.query, p.width, 1.0f / std::sqrt((float)p.width), m.query);
    std::fill_n(m.result, p.value_width * COLUMNS, 0.0f);
    for (const Entry& entry : m.entries) {
        entry.logits(p, c, m.query, m.logits);
        for (int j = 0; j < c.padded; j += LANES) {
            Vector highest = load(top + j), total = {};
            const Vector before = highest;
            for (int i = 0; i < entry.rows; i++) {
                const Vector s = load(m.logits + i * COLUMNS + j);
                highest = s > highest ? s : highest;
            }
            for (int i = 0; i < entry.rows; i++) {
                const Vector e = exponential(load(m.logits + i * COLUMNS + j) - highest);
                store(m.logits + i * COLUMNS + j, e);
                total += e;
            }
            const Vector factor = exponential(before - highest);
            store(top + j, highest), store(fade + j, factor);
            store(sum + j, load(sum + j) * factor + total);
        }
        for (int64_t d = 0; d < p.value_width; d++)
            for (int j = 0; j < c.padded; j += LANES)
                store(m.result + d * COLUMNS + j, load(m.result + d * COLUMNS + j) * load(fade + j));
        gemm(p.value.at(c.b, c.kv, entry.key_start), 1, p.value_width, m.logits, COLUMNS, m.result, COLUMNS,
             p.value_width, c.padded, entry.rows, true);
    }
    for (int j = 0; j < c.count; j++) {
        if (p.lse) c.lse(j) = top[j] + std::log(sum[j]);
        sum[j] = sum[j] > 0 ? 1 / sum[j] : 0;
    }
    c.turn_out(m.result, p.value_width, sum, p.out);
}

// The same for a few queries, as in decoding: their vectors run along the widths, where columns would be mostly empty.
void forward_few(const Problem& p, const Columns& c, Scratch& m) {
    float top[FEW], sums[FEW] = {};
    const int64_t stride = (p.block + 15) / 16 * 16;
    std::fill_n(top, FEW, LOWEST);
    c.copy_in(p.query, p.width, 1.0f / std::sqrt((float)p.width), m.rows);
    std::fill_n(m.plain, c.count * p.value_width, 0.0f);
    for (const Entry& entry : m.entries) {
        const float* key = p.key.at(c.b, c.kv, entry.key_start);
        for (int j = 0; j < c.count; j++) {
            float *s = m.logits + j * stride, *result = m.plain + j * p.value_width;
            dots(m.rows + j * p.width, key, entry.rows, p.width, 1.0f, s);
            const int64_t seen = entry.diagonal ? std::min<int64_t>(entry.rows, c.begun + c.row(j) + 1) : entry.rows;
            std::fill(s + seen, s + stride, LOWEST);
            Vector total = {};
            float highest = top[j] - entry.bias;
            for (int64_t i = 0; i < seen; i++) highest = std::max(highest, s[i]);
            for (int64_t i = 0; i < entry.rows; i += LANES) {
                const Vector e = exponential(load(s + i) - highest);
                store(s + i, e);
                total += e;
            }
            highest += entry.bias;
            const float factor = std::exp(top[j] - highest);
            top[j] = highest, sums[j] = sums[j] * factor + sum(total);
            for (int64_t d = 0; d < p.value_width; d++) result[d] *= factor;
        }
        gemm(m.logits, stride, 1, p.value.at(c.b, c.kv, entry.key_start), p.value_width, m.plain, p.value_width,
             c.count, p.value_width, entry.rows, true);
    }
    for (int j = 0; j < c.count; j++) {
        if (p.lse) c.lse(j) = top[j] + std::log(sums[j]);
        float* to = c.of(p.out, j);
        for (int64_t d = 0; d < p.value_width; d++) to[d] = sums[j] > 0 ? m.plain[j * p.value_width + d] / sums[j] : 0;
    }
}

void backward(const Problem& p, const Columns& c, Scratch& m, int part) {
    alignas(64) float lse[COLUMNS] = {}, delta[COLUMNS] = {}, scales[COLUMNS];
    const float scale = 1.0f / std::sqrt((float)p.width);
    std::fill_n(scales, COLUMNS, scale);
    c.turn_in(p.query, p.width, scale, m.query);
    c.copy_in(p.query, p.width, scale, m.rows);
    c.turn_in(p.grad_out, p.value_width, 1.0f, m.turned);
    c.copy_in(p.grad_out, p.value_width, 1.0f, m.plain);
    for (int j = 0; j < c.count; j++) {
        lse[j] = c.lse(j);
        delta[j] = dot(c.of(p.out, j), m.plain + j * p.value_width, p.value_width);
    }
    std::fill_n(m.result, p.width * COLUMNS, 0.0f);
    const int64_t head = (part * p.batch + c.b) * p.kv_heads + c.kv;
    for (const Entry& entry : m.entries) {
        const float *key = p.key.at(c.b, c.kv, entry.key_start), *value = p.value.at(c.b, c.kv, entry.key_start);
        entry.logits(p, c, m.query, m.logits);
        gemm(value, p.value_width, 1, m.turned, COLUMNS, m.grads, COLUMNS, entry.rows, c.padded, p.value_width, false);
        Vector total = {};
        for (int i = 0; i < entry.rows; i++)
            for (int j = 0; j < c.padded; j += LANES) {
                float *s = m.logits + i * COLUMNS + j, *g = m.grads + i * COLUMNS + j;
                const Vector e = exponential(load(s) - load(lse + j)), ds = e * (load(g) - load(delta + j));
                store(s, e), store(g, ds);
                total += ds;
            }
        if (p.grad_bias) p.grad_bias[entry.place] += sum(total);
        gemm(m.logits, COLUMNS, 1, m.plain, p.value_width,
             p.grad_value.data + (head * p.keys + entry.key_start) * p.value_width, p.value_width, entry.rows,
             p.value_width, c.count, true);
        gemm(m.grads, COLUMNS, 1, m.rows, p.width, p.grad_key.data + (head * p.keys + entry.key_start) * p.width,
             p.width, entry.rows, p.width, c.count, true);
        gemm(key, 1, p.width, m.grads, COLUMNS, m.result, COLUMNS, p.width, c.padded, entry.rows, true);
    }
    c.turn_out(m.result, p.width, scales, p.grad_query);
}

// Jobs 0 .. count - 1 on the threads, each thread with a scratch of its own. 1 where there is no memory for one.
template <typename Job>
int share(const Problem& p, int64_t count, Job job) {
    std::atomic<int64_t> next{0};
    std::atomic<int> failed{0};
    auto work = [&] {
        try {
            Scratch scratch(p);
            for (int64_t i; (i = next.fetch_add(1)) < count;) job(i, scratch);
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    };
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    work();
    return failed;
}

// The columns of a tile, all heads of a group, up to COLUMNS at a time.
template <typename Call>
void columns(const Problem& p, int64_t b, int64_t kv, int64_t tile, Scratch& scratch, Call call) {
    list(p, b, kv, tile, scratch);
    const int64_t all = p.rows.at(b, tile) * (p.heads / p.kv_heads);
    for (int64_t first = 0; first < all; first += COLUMNS) call(Columns(p, b, kv, tile, first));
}

}  // namespace

// All return 0, or 1 where there is no memory.
extern "C" int qwq_sparse_forward(const Problem* problem) {
    const Problem& p = *problem;
    return share(p, p.batch * p.kv_heads * p.tiles, [&](int64_t job, Scratch& scratch) {
        const int64_t b = job / (p.kv_heads * p.tiles), kv = job / p.tiles % p.kv_heads, tile = job % p.tiles;
        columns(p, b, kv, tile, scratch,
                [&](const Columns& c) { (c.count > FEW ? forward : forward_few)(p, c, scratch); });
    });
}

// The tiles of a head are shared out to `parts` jobs, each with sums of its own for the keys and values.
extern "C" int qwq_sparse_backward(const Problem* problem) {
    const Problem& p = *problem;
    return share(p, p.batch * p.kv_heads * p.parts, [&](int64_t job, Scratch& scratch) {
        const int64_t b = job / (p.kv_heads * p.parts), kv = job / p.parts % p.kv_heads, part = job % p.parts;
        for (int64_t tile = part; tile < p.tiles; tile += p.parts)
            columns(p, b, kv, tile, scratch, [&](const Columns& c) { backward(p, c, scratch, part); });
    });
}
