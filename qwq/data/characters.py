"""What a text looks like, in arrays: kinds of character, words, lines, repetition. One pass, shared by all the rules.

Counting in Python costs a microsecond a word; the same counts out of numpy arrays cost tens of nanoseconds.
"""

import functools
import unicodedata

import numpy as np

SPACE, NEWLINE, SYMBOL, PUNCTUATION, DIGIT, LATIN, LETTER, HAN, KANA, HANGUL = range(10)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication modulo 2**64 loses nothing
_RANGES = ((0x3400, 0x4DC0, HAN), (0x4E00, 0xA000, HAN), (0xF900, 0xFB00, HAN), (0x3041, 0x3100, KANA))


@functools.cache
def _kinds() -> np.ndarray:
    """The kind of each character of the first plane."""
    table = np.full(1 << 16, SYMBOL, np.uint8)
    for code in range(1 << 16):
        character = chr(code)
        if character.isalpha() or (category := unicodedata.category(character)[0]) == "M":
            table[code] = LATIN if code < 0x250 else LETTER
        elif character.isspace():
            table[code] = NEWLINE if character == "\n" else SPACE
        elif category in "NP":
            table[code] = DIGIT if category == "N" else PUNCTUATION
    for start, end, kind in (*_RANGES, (0xAC00, 0xD7B0, HANGUL)):
        table[start:end] = kind
    return table


class Shape:
    """The characters, words and lines of one text. Words stand between white space.

    codes: code points, uint32 [characters]. kinds: their kinds. counts: characters of each kind, [10].
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        self.kinds = _kinds()[np.minimum(self.codes, 0xFFFF)]
        if len(self.codes) and self.codes.max() > 0xFFFF:
            self.kinds[(self.codes >= 0x20000) & (self.codes < 0x31350)] = HAN
        self.counts = np.bincount(self.kinds, minlength=10).tolist()

    @property
    def letters(self) -> int:
        """Letters of every script."""
        return sum(self.counts[LATIN:])

    @property
    def visible(self) -> int:
        """Characters that are not white space."""
        return sum(self.counts[SYMBOL:])

    @functools.cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, without the white space around them."""
        return [line for part in self.text.split("\n") if (line := part.strip())]

    def share_of_lines(self, characters: str, place: int) -> float:
        """The share of the lines whose first (`place` 0) or last (-1) character is one of these."""
        return sum(line[place] in characters for line in self.lines) / max(1, len(self.lines))

    @functools.cached_property
    def words(self) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of each."""
        space = np.ones(len(self.codes) + 2, bool)
        space[1:-1] = self.kinds <= NEWLINE
        edges = np.flatnonzero(space[1:] != space[:-1])
        return edges[::2], edges[1::2]

    @property
    def share_of_words_with_letters(self) -> float:
        """The share of the words in which a letter occurs."""
        starts, ends = self.words
        found = np.zeros(len(self.kinds) + 1, np.int32)
        np.cumsum(self.kinds >= LATIN, out=found[1:])
        return float((found[ends] > found[starts]).mean()) if len(starts) else 0.0

    @functools.cached_property
    def word_hashes(self) -> np.ndarray:
        """A 64-bit hash of each word, in the case it is written."""
        return hashes_between(self.codes, *self.words)


def hashes_between(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A 64-bit hash of codes[start:end] for each pair: differences of one running polynomial, so linear in all."""
    powers = np.full(len(codes) + 1, _FACTOR, np.uint64)
    powers[0] = 1
    powers = np.cumprod(powers)
    mixed = (codes.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers[:-1])])
    # Shifted to one common place: the same letters elsewhere in the text must give the same number.
    hashes = (sums[ends] - sums[starts]) * powers[len(codes) - starts]
    return (hashes ^ (hashes >> np.uint64(29))) * _FACTOR


def windows(hashes: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every run of n."""
    if len(hashes) < n:
        return np.zeros(0, np.uint64)
    count = len(hashes) - n + 1
    mixed = np.zeros(count, np.uint64)
    for i in range(n):
        mixed = mixed * _FACTOR + hashes[i : count + i]
    return mixed ^ (mixed >> np.uint64(31))


def repeated_share(hashes: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """The share of the characters that lie in a run of n words which occurred before (Gopher's duplicate n-grams)."""
    grams = windows(hashes, n)
    if not len(grams) or most_frequent(grams)[1] == 1:
        return 0.0
    _, first = np.unique(grams, return_index=True)
    again = np.ones(len(grams), np.int32)
    again[first] = 0
    cover = np.zeros(len(hashes) + 1, np.int32)
    cover[: len(grams)] += again
    cover[n : n + len(grams)] -= again
    return float(lengths[np.cumsum(cover[:-1]) > 0].sum() / lengths.sum())


def top_share(hashes: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """The share of the characters that the most frequent run of n words makes up; of equals, the least hash."""
    grams = windows(hashes, n)
    most, count = most_frequent(grams) if len(grams) else (0, 1)
    if count == 1:
        return 0.0
    place = int((grams == np.uint64(most)).argmax())
    return float(count * lengths[place : place + n].sum() / lengths.sum())


def most_frequent(values: np.ndarray) -> tuple[int, int]:
    """(the most frequent of one value or more, the least of equals; how often it comes). Sorting is all it costs."""
    ordered = np.sort(values)
    edges = np.concatenate(([-1], (ordered[1:] != ordered[:-1]).nonzero()[0], [len(ordered) - 1]))
    sizes = edges[1:] - edges[:-1]
    most = int(sizes.argmax())
    return int(ordered[edges[most + 1]]), int(sizes[most])


@functools.lru_cache(maxsize=1)
def shape(text: str) -> Shape:
    """The shape of a text; the last one is remembered, as one rule after another asks for it."""
    return Shape(text)
