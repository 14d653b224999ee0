"""Deduplication: equal documents, equal long paragraphs, and documents that are nearly equal (MinHash LSH).

Memory: a 64-bit hash (and the kept name) a text; for near-duplicates two to three kilobytes a document that is kept.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from qwq.data.documents import Document
from qwq.kernels import minhash

_SPACE = re.compile(r"\s+")
PARAGRAPH = {"zh": 40}  # characters from which a repeated paragraph is boilerplate rather than chance
PARAGRAPH_OTHER = 100
_ODD = np.random.Generator(np.random.PCG64(2)).integers(1 << 62, 1 << 63, 9, dtype=np.uint64) * 2 + 1


def fingerprint(data: bytes) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def normal_key(document: Document) -> int:
    """Equal for copies: of the words in lower case; of code, of everything but white space."""
    words = b"" if document.language == "code" else minhash.tokens(document.text).tobytes()
    return fingerprint(words or _SPACE.sub("", document.text).encode("utf-8", "replace"))


class ExactDedup:
    """Drops a document whose normal form was seen. `matched(dropped, name of the kept one)` is told."""

    def __init__(self, matched: Callable[[Document, str], None]) -> None:
        self._seen: dict[int, int] = {}
        self._matched = matched

    def __call__(self, document: Document) -> str | None:
        key = normal_key(document)
        kept = self._seen.get(key)
        if kept is None:
            self._seen[key] = int(document.hash, 16)
            return None
        self._matched(document, f"{kept:016x}")
        return "duplicate"


class ParagraphDedup:
    """Removes long paragraphs seen before, in any document: licence notes, navigation. Code and dialogue stay."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.removed_paragraphs = 0
        self.removed_bytes = 0

    def __call__(self, document: Document) -> str | None:
        if document.language == "code" or document.kind == "dialogue":
            return None
        shortest = PARAGRAPH.get(document.language, PARAGRAPH_OTHER)
        kept: list[str] = []
        removed = 0
        for paragraph in document.text.split("\n"):
            if len(paragraph) >= shortest:
                key = fingerprint(minhash.tokens(paragraph).tobytes())
                if key in self._seen:
                    removed += len(paragraph.encode())
                    self.removed_paragraphs += 1
                    continue
                self._seen.add(key)
            kept.append(paragraph)
        if not removed:
            return None
        self.removed_bytes += removed
        left = "\n".join(kept).strip()
        if len(left.encode()) < removed:
            return "repeated_paragraphs"
        document.text = left
        return None


class NearDedup:
    """Drops a document whose shingles are nearly those of a kept one, of any source (Lee et al., arXiv 2107.06499).

    Candidates share a band of the signature; which of them are near-duplicates the whole signature decides, whose
    estimate of the Jaccard similarity has a standard error of 0.03 at most. `matched(dropped, name of the kept one,
    similarity)` is told, and `pairs` counts (source of the dropped, source of the kept).

    The first of a group in the order of the calls is kept, and nothing else matters: workers may each sign documents of
    their own (`minhash.signature`), if the calls here then come in one order, such as that of the names.
    """

    ROWS = 5  # hashes of a band: of two documents with similarity s, a band is the same with probability s**ROWS
    MISSED = 0.005  # as many pairs at the threshold may share no band

    def __init__(self, matched: Callable[[Document, str, float], None], threshold: float = 0.75) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        needed = np.log(self.MISSED) / np.log1p(-(min(threshold, 0.99) ** self.ROWS))
        self.bands = int(min(np.ceil(needed), minhash.HASHES // self.ROWS))
        self.threshold = threshold
        self.pairs: Counter[tuple[str, str]] = Counter()
        self._matched = matched
        self._kept: list[tuple[int, str]] = []  # (name, source)
        self._signatures = np.zeros((1024, minhash.HASHES), np.uint16)
        self._places: dict[int, int | list[int]] = {}  # hash of a band -> the kept documents that have it

    def __call__(self, document: Document, signature: bytes | None = None) -> str | None:
        """`signature`: that of the text, where it was made elsewhere."""
        signature = minhash.signature(document.text) if signature is None else signature
        if not signature:
            return None
        own = np.frombuffer(signature, np.uint16)
        bands = own[: self.bands * self.ROWS].reshape(self.bands, self.ROWS).astype(np.uint64)
        keys = (bands @ _ODD[: self.ROWS] + np.arange(self.bands, dtype=np.uint64) * _ODD[-1]).tolist()
        found = [self._places[key] for key in keys if key in self._places]
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
        self._kept.append((int(document.hash, 16), document.source))
        for key in keys:
            before = self._places.setdefault(key, place)
            if isinstance(before, list):
                before.append(place)
            elif before != place:
                self._places[key] = [before, place]
        return None
