"""The words of a text as numbers, and MinHash of them (Broder 1997): how alike two texts are, from 512 bytes of each.

A token is a word in lower case, or one character of a script that is written without spaces (Chinese, Japanese, Thai
...). A text is the set of its shingles, five tokens in a row. The share of shingles that two texts have in common
(Jaccard) is estimated by the share of hash functions whose least value over the shingles is the same. minhash.cpp is
the fast form; without a compiler numpy gives the same numbers.
"""

import ctypes
import functools
from ctypes import c_int64, c_void_p
from pathlib import Path

import numpy as np

from qwq.kernels.compile import instructions, library

WIDTH = 5  # tokens of a shingle
HASHES = 256
_SINGLE = 1 << 31
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF),
)  # fmt: skip
_CHARACTER, _TOKEN, _MIX = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93))
_HALF = np.uint64(32)
_NONE = np.zeros(0, np.uint32)


@functools.cache
def _fold() -> np.ndarray:
    """[code points] what a character counts as: 0 parts words, a lower-case letter or digit, or that + _SINGLE."""
    fold = np.zeros(0x40000, np.uint32)
    for point in range(0x20000):
        character = chr(point)
        if character.isalnum():
            lower = character.lower()
            fold[point] = ord(lower) if len(lower) == 1 else point
    for first, last in _UNSPACED:
        fold[first : last + 1] += np.uint32(_SINGLE) * (fold[first : last + 1] > 0).astype(np.uint32)
    fold[0x20000:] = np.arange(0x20000, 0x40000, dtype=np.uint32) + np.uint32(_SINGLE)
    return fold


@functools.cache
def _functions() -> tuple[np.ndarray, np.ndarray]:
    """(factors, offsets) [HASHES] of the hash functions (a x + b) mod 2**64, read from bit 32 on (Dietzfelbinger)."""
    draw = np.random.Generator(np.random.PCG64(1))
    factors, offsets = draw.integers(0, 1 << 64, (2, HASHES), dtype=np.uint64)
    return factors | np.uint64(1), offsets


def _mixed(x: np.ndarray) -> np.ndarray:
    for _ in range(2):
        x = (x ^ (x >> _HALF)) * _MIX
    return x ^ (x >> _HALF)


def _plain_tokens(text: str) -> np.ndarray:
    points = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    folded = np.where(points < len(_fold()), _fold()[np.minimum(points, len(_fold()) - 1)], 0)
    word = (folded > 0) & (folded < _SINGLE)
    starts = word.copy()
    starts[1:] &= ~word[:-1]
    begins = np.flatnonzero((starts | (folded >= _SINGLE))[folded > 0])
    characters = folded[folded > 0].astype(np.uint64)
    if not len(characters):
        return characters
    lengths = np.diff(begins, append=len(characters))
    places = np.arange(len(characters)) - np.repeat(begins, lengths)
    powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(lengths.max() - 1, _CHARACTER)]), dtype=np.uint64)
    single = (characters[begins] >= _SINGLE).astype(np.uint64)
    return _mixed(np.add.reduceat(characters * powers[places], begins)) & ~np.uint64(1) | single


def _plain_windows(tokens: np.ndarray, width: int) -> np.ndarray:
    sums = np.zeros(len(tokens) - width + 1, np.uint64)
    for j in range(width):
        sums = sums * _TOKEN + tokens[j : j + len(sums)]
    return _mixed(sums)


def _plain_minima(shingles: np.ndarray) -> np.ndarray:
    factors, offsets = _functions()
    parts = (shingles[i : i + 256, None].astype(np.uint64) * factors + offsets for i in range(0, len(shingles), 256))
    return np.min([part.min(0) for part in parts], 0)


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    found = library(Path(__file__).with_name("minhash.cpp"), instructions())
    if found is not None:
        found.qwq_tokens.restype = found.qwq_marked.restype = c_int64
    return found


@functools.cache
def _tables() -> tuple[c_void_p, ...]:
    """Where `_fold` and `_functions` are."""
    return tuple(_at(table) for table in (_fold(), *_functions()))


def _at(array: np.ndarray) -> c_void_p:
    return c_void_p(array.__array_interface__["data"][0])  # a third of the time of `array.ctypes`


@functools.lru_cache(maxsize=1)
def lines(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, where those of each line end, int64 [lines]); the last text is remembered, as several stages ask."""
    fast = _compiled()
    if fast is None:
        parts = [_plain_tokens(line) for line in text.split("\n")]
        return np.concatenate(parts), np.cumsum([len(part) for part in parts])
    data = text.encode("utf-8", "replace")
    room, ends = np.empty(len(data), np.uint64), np.empty(data.count(b"\n") + 1, np.int64)
    ends[-1] = fast.qwq_tokens(data, c_int64(len(data)), _tables()[0], len(_fold()), _at(room), _at(ends))
    found = room[: ends[-1]].copy()
    found.flags.writeable = ends.flags.writeable = False
    return found, ends


def tokens(text: str) -> np.ndarray:
    """A 64-bit hash of each token, in order, uint64; its last bit is 1 where the token is a single character."""
    return lines(text)[0]


def windows(tokens: np.ndarray, width: int) -> np.ndarray:
    """A 64-bit hash of every `width` tokens in a row, uint64; empty where there are fewer."""
    fast = _compiled()
    if len(tokens) < width:
        return np.zeros(0, np.uint64)
    if fast is None:
        return _plain_windows(tokens, width)
    room = np.empty(len(tokens) - width + 1, np.uint64)
    fast.qwq_windows(_at(tokens), c_int64(len(tokens)), width, _at(room))
    return room


def marked(tokens: np.ndarray, width: int, bits: np.ndarray, shift: int) -> np.ndarray:
    """Those of `windows` whose bit is set in a bitmap, uint8, which their upper bits (from `shift` on) number."""
    fast = _compiled()
    if fast is None:
        found = windows(tokens, width)
        slot = found >> np.uint64(shift)
        set_ = bits[slot >> np.uint64(3)] >> (slot & np.uint64(7)).astype(np.uint8) & 1
        return found[set_.astype(bool)]
    room = np.empty(max(1, len(tokens)), np.uint64)  # one more than there are windows: the kernel writes, then decides
    return room[: fast.qwq_marked(_at(tokens), c_int64(len(tokens)), width, _at(bits), shift, _at(room))]


def shingles(text: str) -> np.ndarray:
    """The hashes of the text's shingles, uint32, each once and in order; empty where there is no letter or digit."""
    found = tokens(text)
    return np.unique((windows(found, min(WIDTH, len(found))) >> _HALF).astype(np.uint32)) if len(found) else _NONE


def signature(text: str) -> bytes:
    """16 bits of the least value of each of HASHES functions (2 * HASHES bytes); empty where `shingles` is."""
    fast, found = _compiled(), tokens(text)
    if not len(found):
        return b""
    if fast is None:
        minima = _plain_minima(shingles(text))
    else:
        minima = np.full(HASHES, -1, np.int64).view(np.uint64)
        fast.qwq_minhash(_at(found), c_int64(len(found)), WIDTH, *_tables()[1:], HASHES, _at(minima))
    return (minima >> _HALF).astype(np.uint16).tobytes()
