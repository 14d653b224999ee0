// The words and single characters of a text as numbers: each one, every few in a row, and MinHash of these. The plain
// form, to the bit, is in minhash.py, which also makes the tables.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

constexpr uint32_t SINGLE = 1u << 31;
constexpr uint64_t CHARACTER = 0x9E3779B97F4A7C15, TOKEN = 0xC2B2AE3D27D4EB4F;
constexpr int LANES = 32;  // hash functions whose minima stay in registers

uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93;
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93;
    return x ^ (x >> 32);
}

// One code point of well-formed UTF-8.
inline uint32_t next(const uint8_t*& p) {
    const uint32_t c = *p++;
    if (c < 0x80) return c;
    if (c < 0xE0) return (c & 31) << 6 | (*p++ & 63);
    if (c < 0xF0) return p += 2, (c & 15) << 12 | (p[-2] & 63u) << 6 | (p[-1] & 63u);
    return p += 3, (c & 7) << 18 | (p[-3] & 63u) << 12 | (p[-2] & 63u) << 6 | (p[-1] & 63u);
}

uint64_t window(const uint64_t* tokens, int32_t width) {
    uint64_t sum = 0;
    for (int32_t j = 0; j < width; j++) sum = sum * TOKEN + tokens[j];
    return mixed(sum);
}

}  // namespace

// One hash a word or single character, whose last bit tells which; room for as many as there are bytes. Their number.
// ends, if given: how many there are up to the end of each line but the last.
extern "C" int64_t qwq_tokens(
    const uint8_t* text, int64_t bytes, const uint32_t* fold, uint32_t table, uint64_t* out, int64_t* ends) {
    const uint64_t* begin = out;
    uint64_t word = 0, power = 1;
    for (const uint8_t *p = text, *end = text + bytes; p < end;) {
        const uint32_t point = next(p), folded = point < table ? fold[point] : 0;
        if (folded && !(folded & SINGLE)) {
            word += folded * power;
            power *= CHARACTER;
            continue;
        }
        if (power != 1) *out++ = mixed(word) & ~1ull;
        if (folded) *out++ = mixed(folded) | 1;
        if (ends && point == '\n') *ends++ = out - begin;
        word = 0, power = 1;
    }
    if (power != 1) *out++ = mixed(word) & ~1ull;
    return out - begin;
}

extern "C" void qwq_windows(const uint64_t* tokens, int64_t count, int32_t width, uint64_t* out) {
    for (int64_t i = 0; i + width <= count; i++) out[i] = window(tokens + i, width);
}

// Those hashes of windows whose bit is set in a bitmap, which their upper bits (from `shift` on) number. How many.
extern "C" int64_t qwq_marked(
    const uint64_t* tokens, int64_t count, int32_t width, const uint8_t* bits, int32_t shift, uint64_t* out) {
    const uint64_t* begin = out;
    for (int64_t i = 0; i + width <= count; i++) {
        const uint64_t hash = window(tokens + i, width), slot = hash >> shift;
        *out = hash;
        out += bits[slot >> 3] >> (slot & 7) & 1;
    }
    return out - begin;
}

// minima [hashes], a multiple of LANES, starts as all ones.
extern "C" void qwq_minhash(
    const uint64_t* tokens, int64_t found, int32_t width, const uint64_t* factors, const uint64_t* offsets,
    int32_t hashes, uint64_t* minima) {
    const int64_t n = std::min<int64_t>(width, found), count = found ? found - n + 1 : 0;
    std::vector<uint32_t> shingles(count);
    for (int64_t i = 0; i < count; i++) shingles[i] = window(tokens + i, n) >> 32;
    for (int32_t first = 0; first < hashes; first += LANES) {
        uint64_t least[LANES], a[LANES], b[LANES];
        for (int k = 0; k < LANES; k++) least[k] = minima[first + k], a[k] = factors[first + k], b[k] = offsets[first + k];
        for (int64_t i = 0; i < count; i++)
            for (int k = 0; k < LANES; k++) {
                const uint64_t h = a[k] * shingles[i] + b[k];
                least[k] = h < least[k] ? h : least[k];
            }
        for (int k = 0; k < LANES; k++) minima[first + k] = least[k];
    }
}
