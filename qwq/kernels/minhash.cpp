// MinHash of a text: its words and single characters, five in a row, under many hash functions. The plain form, to the
// bit, is in minhash.py, which also makes the tables.

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

// [T] one hash a word or single character.
std::vector<uint64_t> tokens(const uint8_t* text, int64_t bytes, const uint32_t* fold, uint32_t table) {
    std::vector<uint64_t> found;
    found.reserve(bytes / 3 + 1);
    uint64_t word = 0, power = 1;
    for (const uint8_t *p = text, *end = text + bytes; p < end;) {
        const uint32_t point = next(p), folded = point < table ? fold[point] : 0;
        if (folded && !(folded & SINGLE)) {
            word += folded * power;
            power *= CHARACTER;
            continue;
        }
        if (power != 1) found.push_back(mixed(word));
        if (folded) found.push_back(mixed(folded));
        word = 0, power = 1;
    }
    if (power != 1) found.push_back(mixed(word));
    return found;
}

}  // namespace

// minima [hashes], a multiple of LANES, starts as all ones; the number of shingles is returned. With `shingles` (room
// for bytes + 1), these are written there as well.
extern "C" int64_t qwq_minhash(
    const uint8_t* text, int64_t bytes, const uint32_t* fold, uint32_t table, int32_t width, const uint64_t* factors,
    const uint64_t* offsets, int32_t hashes, uint64_t* minima, uint32_t* shingles) {
    const std::vector<uint64_t> row = tokens(text, bytes, fold, table);
    if (row.empty()) return 0;
    const int64_t n = std::min<int64_t>(width, row.size()), count = row.size() - n + 1;
    std::vector<uint32_t> own;
    if (!shingles) own.resize(count), shingles = own.data();
    for (int64_t i = 0; i < count; i++) {
        uint64_t sum = 0;
        for (int64_t j = 0; j < n; j++) sum = sum * TOKEN + row[i + j];
        shingles[i] = mixed(sum) >> 32;
    }
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
    return count;
}
