"""Exact deduplication of documents and of long paragraphs. Memory: a 64-bit hash (and the kept name) a text."""

import hashlib
import re
from collections.abc import Callable

from qwq.data.documents import Document

_SPACE = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]+")
PARAGRAPH = {"zh": 40}  # characters from which a repeated paragraph is boilerplate rather than chance
PARAGRAPH_OTHER = 100


def fingerprint(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def normal_form(document: Document) -> str:
    """What two copies have in common: letters and digits in lower case; for code, everything but white space."""
    if document.language == "code":
        return _SPACE.sub("", document.text)
    return _NOT_WORD.sub("", document.text.lower()) or document.text


class ExactDedup:
    """Drops a document whose normal form was seen. `matched(dropped, name of the kept one)` is told."""

    def __init__(self, matched: Callable[[Document, str], None]) -> None:
        self._seen: dict[int, int] = {}
        self._matched = matched

    def __call__(self, document: Document) -> str | None:
        key = fingerprint(normal_form(document))
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
                key = fingerprint(_NOT_WORD.sub("", paragraph.lower()))
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
