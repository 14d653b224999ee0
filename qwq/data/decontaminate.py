"""What overlaps with an evaluation set does not enter training: 13-grams of words, 20-grams of Chinese characters.

The length in words is that of GPT-3 (Brown et al. 2020, appendix C). Memory: nine bytes a distinct n-gram of the
evaluation sets and nothing a document; the corpus streams past.
"""

import csv
import functools
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from qwq.data.documents import Document, chunks
from qwq.errors import QwqError
from qwq.kernels import minhash

WORDS = 13
CHARACTERS = 20
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".jsonl.gz", ".jsonl.zst", ".json.gz")


def _single(tokens: np.ndarray) -> int:
    """How many of the tokens are single characters."""
    return int((tokens & np.uint64(1)).sum())


class NgramIndex:
    """The n-grams of named texts. `add` first, then `overlap`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.texts: dict[str, int] = {}
        self.too_short: dict[str, int] = {}
        self._parts: list[tuple[np.ndarray, int]] = []
        self._hashes = np.zeros(0, np.uint64)
        self._owners = np.zeros(0, np.uint8)
        self._bits = np.zeros(0, np.uint8)

    def add(self, name: str, text: str) -> None:
        """Index a text under the name of its set. Shorter ones than an n-gram are counted, and cannot be checked."""
        if name not in self.texts:
            self.names.append(name)
            self.texts[name] = self.too_short[name] = 0
        self.texts[name] += 1
        if len(text) < CHARACTERS:  # and so it is under 13 words: no need to look closer
            self.too_short[name] += 1
            return
        tokens = minhash.tokens(text)
        grams = minhash.windows(tokens, CHARACTERS if 2 * _single(tokens) > len(tokens) else WORDS)
        self.too_short[name] += not len(grams)
        if len(grams):
            self._parts.append((grams, min(len(self.names), 256) - 1))

    def freeze(self) -> None:
        """Sort what was added; `overlap` does it when it has to."""
        grams = np.concatenate([self._hashes, *(g for g, _ in self._parts)])
        owners = np.concatenate([self._owners, *(np.full(len(g), o, np.uint8) for g, o in self._parts)])
        self._parts = []
        self._hashes, first = np.unique(grams, return_index=True)
        self._owners = owners[first]
        # A bitmap with 16 bits an entry answers "no" for 94 % of the n-grams, without the binary search.
        self._shift = np.uint64(64 - max(16, (16 * len(self._hashes)).bit_length()))
        self._bits = np.zeros(1 << (61 - int(self._shift)), np.uint8)
        slot = self._hashes >> self._shift
        np.bitwise_or.at(self._bits, slot >> np.uint64(3), np.uint8(1) << (slot & np.uint64(7)).astype(np.uint8))

    def __len__(self) -> int:
        """Distinct n-grams."""
        if self._parts:
            self.freeze()
        return len(self._hashes)

    def overlap(self, text: str) -> tuple[int, int, str]:
        """(windows of the text that are in the index, windows of the text, the set of the first hit or "")."""
        if not len(self):
            return 0, 0, ""
        tokens = minhash.tokens(text)
        hits, total, owner = 0, 0, ""
        for n in (CHARACTERS, WORDS) if _single(tokens) else (WORDS,):
            total = max(total, len(tokens) - n + 1)
            grams = minhash.marked(tokens, n, self._bits, int(self._shift))
            if not len(grams):
                continue
            place = np.minimum(np.searchsorted(self._hashes, grams), len(self._hashes) - 1)
            found = place[self._hashes[place] == grams]
            hits += len(found)
            if len(found) and not owner:
                owner = self.names[self._owners[found[0]]]
        return hits, total, owner


def _strings(value: object) -> Iterator[str]:
    """Every text inside a JSON value."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def evaluation_strings(name: str, data: bytes) -> Iterator[str]:
    """The texts of one evaluation file by its suffix: all strings of JSON, all fields of CSV, all lines of the rest."""
    text = data.decode("utf-8-sig", "replace")
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith((".json", ".jsonl")):
        try:
            yield from _strings(json.loads(text))
        except json.JSONDecodeError:
            for line in text.splitlines():  # many a .json holds one object a line
                if line.strip():
                    yield from _strings(json.loads(line))
    elif plain.endswith(".csv"):
        csv.field_size_limit(1 << 27)
        for row in csv.reader(io.StringIO(text)):
            yield from row
    else:
        for line in text.splitlines():
            yield from line.split("\t") if plain.endswith(".tsv") else [line]


def _whole(path: Path) -> bytes:
    return b"".join(chunks(path))


def index_folder(index: NgramIndex, folder: Path, set_aside: Callable[[str, str], None]) -> None:
    """Index every evaluation file under a folder; the first folder below it names the set."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES)):
        relative = path.relative_to(folder)
        name = relative.parts[0] if len(relative.parts) > 1 else path.name.split(".")[0]
        _index_file(index, name, str(path), functools.partial(_whole, path), set_aside)


def index_wheel(
    index: NgramIndex, wheel: Path, members: re.Pattern[str], set_aside: Callable[[str, str], None]
) -> None:
    """Index the files of a wheel whose names match; the folder of each names the set."""
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(n for n in archive.namelist() if members.search(n)):
            parts = member.split("/")
            _index_file(index, "/".join(parts[:2]), member, functools.partial(archive.read, member), set_aside)


def _index_file(
    index: NgramIndex, name: str, path: str, read: Callable[[], bytes], set_aside: Callable[[str, str], None]
) -> None:
    try:
        for text in evaluation_strings(path, read()):
            index.add(name, text)
    except (QwqError, ValueError, RecursionError, csv.Error) as error:
        set_aside(path, f"evaluation file not read to its end: {str(error).splitlines()[0]}")


class Decontaminate:
    """Drops documents that share an n-gram with an evaluation set; `hits` counts the documents by set."""

    def __init__(self, index: NgramIndex) -> None:
        self.index = index
        self.hits: dict[str, int] = {}

    def __call__(self, document: Document) -> str | None:
        hits, _, name = self.index.overlap(document.text)
        if not hits:
            return None
        self.hits[name] = self.hits.get(name, 0) + 1
        return "in_evaluation_set"
