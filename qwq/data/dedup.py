"""Deduplication: equal documents, equal long paragraphs, and documents that are nearly equal (MinHash LSH).

What is compared is made where the document is (`sketch`), by any number of workers; the comparing itself needs no text,
goes in one order, and keeps the first of those that are alike. Memory: a 64-bit hash (and the kept name) a text or
paragraph; for near-duplicates two to three kilobytes a document that is kept.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwq.data.documents import Document
from qwq.kernels import minhash

_SPACE = re.compile(r"\s+")
PARAGRAPH = {"zh": 40}  # characters from which a repeated paragraph is boilerplate rather than chance
PARAGRAPH_OTHER = 100
_ODD = np.random.Generator(np.random.PCG64(2)).integers(1 << 62, 1 << 63, 9, dtype=np.uint64) * 2 + 1


@dataclass(slots=True)
class Sketch:
    """What deduplication has to know of a document. Sizes are bytes of UTF-8."""

    name: int  # the document's hash
    source: str
    key: int  # equal for copies
    signature: bytes  # of `minhash`
    paragraphs: list[tuple[int, int, int]]  # of each long one: number of the line, key, size
    language: str
    size: int
    document: Document | None = None  # itself, where it may be wanted again


def fingerprint(data: bytes) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def normal_key(document: Document) -> int:
    """Equal for copies: of the words in lower case; of code, of everything but white space."""
    words = b"" if document.language == "code" else minhash.tokens(document.text).tobytes()
    return fingerprint(words or _SPACE.sub("", document.text).encode("utf-8", "replace"))


def sketch(document: Document) -> Sketch:
    """The sketch of a document that has its hash and its language."""
    text, language = document.text, document.language
    paragraphs: list[tuple[int, int, int]] = []
    if language != "code" and document.kind != "dialogue":  # those repeat themselves rightly
        shortest = PARAGRAPH.get(language, PARAGRAPH_OTHER)
        for number, line in enumerate(text.split("\n") if len(text) >= shortest else ()):
            if len(line) >= shortest:
                tokens, ends = minhash.lines(text)
                words = tokens[ends[number - 1] if number else 0 : ends[number]]
                paragraphs.append((number, fingerprint(words.tobytes()), len(line.encode())))
    key, signature, size = normal_key(document), minhash.signature(text), len(text.encode())
    return Sketch(int(document.hash, 16), document.source, key, signature, paragraphs, language, size)


class ExactDedup:
    """Drops a document whose key was seen. `matched(dropped, name of the kept one)` is told."""

    def __init__(self, matched: Callable[[Sketch, str], None]) -> None:
        self._seen: dict[int, int] = {}
        self._matched = matched

    def __call__(self, document: Sketch) -> str | None:
        kept = self._seen.get(document.key)
        if kept is None:
            self._seen[document.key] = document.name
            return None
        self._matched(document, f"{kept:016x}")
        return "duplicate"


class ParagraphDedup:
    """Finds long paragraphs seen before, in any document: licence notes, navigation. Code and dialogue have none."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.removed_paragraphs = 0
        self.removed_bytes = 0

    def __call__(self, document: Sketch) -> tuple[str | None, list[int]]:
        """(why the document goes, or None; the lines that go from it if it stays). Its size is that of what is left."""
        again: list[int] = []
        removed = 0
        for number, key, size in document.paragraphs:
            if key in self._seen:
                again.append(number)
                removed += size
            self._seen.add(key)
        self.removed_paragraphs += len(again)
        self.removed_bytes += removed
        document.size -= removed + len(again)
        return ("repeated_paragraphs" if document.size < removed else None), again


def without_lines(text: str, numbers: list[int]) -> str:
    """A text without these of its lines."""
    gone = set(numbers)
    return "\n".join(line for number, line in enumerate(text.split("\n")) if number not in gone).strip()


class NearDedup:
    """Drops a document whose shingles are nearly those of a kept one, of any source (Lee et al., arXiv 2107.06499).

    Candidates share a band of the signature; which of them are near-duplicates the whole signature decides, whose
    estimate of the Jaccard similarity has a standard error of 0.03 at most. `matched(dropped, name of the kept one,
    similarity)` is told, and `pairs` counts (source of the dropped, source of the kept).
    """

    ROWS = 5  # hashes of a band: of two documents with similarity s, a band is the same with probability s**ROWS
    MISSED = 0.005  # as many pairs at the threshold may share no band

    def __init__(self, matched: Callable[[Sketch, str, float], None], threshold: float = 0.75) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        needed = np.log(self.MISSED) / np.log1p(-(min(threshold, 0.99) ** self.ROWS))
        self.bands = int(min(np.ceil(needed), minhash.HASHES // self.ROWS))
        self.threshold = threshold
        self._offsets = (
            np.arange(self.bands, dtype=np.uint64) * _ODD[-1]
        )  # the same hashes in another band: another key
        self.pairs: Counter[tuple[str, str]] = Counter()
        self._matched = matched
        self._kept: list[tuple[int, str]] = []  # (name, source)
        self._signatures = np.zeros((1024, minhash.HASHES), np.uint16)
        self._places: dict[int, int | list[int]] = {}  # hash of a band -> the kept documents that have it

    def __call__(self, document: Sketch) -> str | None:
        if not document.signature:
            return None
        own = np.frombuffer(document.signature, np.uint16)
        bands = own[: self.bands * self.ROWS].reshape(self.bands, self.ROWS).astype(np.uint64)
        keys = (bands @ _ODD[: self.ROWS] + self._offsets).tolist()
        found = [places for places in map(self._places.get, keys) if places is not None]
        if found:
            candidates = sorted({i for places in found for i in ([places] if isinstance(places, int) else places)})
            alike = (self._signatures[candidates] == own).mean(1)
            best = int(alike.argmax())
            if alike[best] >= self.threshold:
                name, source = self._kept[candidates[best]]
                self.pairs[document.source, source] += 1
                self._matched(document, f"{name:016x}", round(float(alike[best]), 3))
                return "near_duplicate"
        place = len(self._kept)
        if place == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[place] = own
        self._kept.append((document.name, document.source))
        for key in keys:
            before = self._places.setdefault(key, place)
            if isinstance(before, list):
                before.append(place)
            elif before != place:
                self._places[key] = [before, place]
        return None
