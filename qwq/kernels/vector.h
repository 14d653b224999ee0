// LANES floats at once, with the vector extensions of GCC and Clang. How many is chosen by the compiler's target flags
// (compile.py chooses those at run time).
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
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

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

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
    typedef float Four __attribute__((vector_size(16)));
    Four parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
    for (int i = 1; i < LANES / 4; i++) parts[0] += parts[i];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
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

template <size_t... I>
Vector zipped(Vector a, Vector b, std::index_sequence<I...>) {  // a[0] b[0] a[1] ... + the same of the upper halves
    constexpr int half = LANES / 2;
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, (I % 2 * LANES + I / 2)...) +
           __builtin_shufflevector(a, b, (I % 2 * LANES + I / 2 + half)...);
#else
    return Vector{(I % 2 ? b[I / 2] + b[I / 2 + half] : a[I / 2] + a[I / 2 + half])...};
#endif
}

// Lane i of the result is the sum of v[i], for all N at once (a power of two, up to LANES): far fewer steps than N sums.
template <int N>
Vector sums(Vector* v) {
#pragma GCC unroll 4
    for (int half = N / 2; half >= 1; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) v[i] = zipped(v[i], v[i + half], std::make_index_sequence<LANES>());
    Vector found = v[0];  // lane k N + i: a part of sum i
    for (int parts = LANES / N; parts > 1; parts /= 2) {
        Vector other;
        for (int i = 0; i < LANES; i++) other[i] = found[(i + parts / 2 * N) % LANES];
        found += other;
    }
    return found;
}

// x [n] times each row of y [count, n], times scale -> out [count]
inline void dots(const float* x, const float* y, int count, int n, float scale, float* out) {
    int t = 0;
    for (; t + LANES <= count; t += LANES, y += (int64_t)LANES * n) {
        Vector total[LANES] = {};
        int i = 0;
        for (; i + LANES <= n; i += LANES) {
            const Vector v = load(x + i);
            for (int r = 0; r < LANES; r++) total[r] += v * load(y + (int64_t)r * n + i);
        }
        if (i < n) {
            const Vector v = load_some(x + i, n - i);
            for (int r = 0; r < LANES; r++) total[r] += v * load_some(y + (int64_t)r * n + i, n - i);
        }
        store(out + t, scale * sums<LANES>(total));
    }
    for (; t < count; t++, y += n) out[t] = scale * dot(x, y, n);
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
