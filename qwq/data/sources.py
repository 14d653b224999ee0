"""Where documents come from: files and folders, packages, data sets of a hub. A damaged file is set aside."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from qwq.data.documents import Document
from qwq.data.readers import (
    READERS,
    SetAside,
    check_columns,
    documents_of,
    reader_for,
)
from qwq.data.readers_parallel import aligned, read_aligned
from qwq.errors import QwqError, UsageError

PIECE = 8 << 20  # bytes of files, or
PIECE_FILES = 1000  # this many of them, are read together
SKIPPED_FOLDERS = {"node_modules", "__pycache__", "site-packages", "dist-packages", "venv"}
_LICENSE_FILE = re.compile(r"(un)?licen[sc]e|copying|copyright", re.IGNORECASE)
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+() -]+?)\s*(\*/|-->|$)", re.MULTILINE)
# How the text of each licence begins, or what only it says; whichever comes first in a file is its licence.
_LICENSES = {
    "GNU Affero General Public License Version 3": "AGPL-3.0", "GNU General Public License Version 3": "GPL-3.0",
    "GNU Lesser General Public License Version 3": "LGPL-3.0", "GNU General Public License Version 2": "GPL-2.0",
    "GNU Lesser General Public License Version 2.1": "LGPL-2.1", "Apache License Version 2.0": "Apache-2.0",
    "Mozilla Public License Version 2.0": "MPL-2.0", "Python Software Foundation License Version 2": "PSF-2.0",
    "Boost Software License - Version 1.0": "BSL-1.0", "Eclipse Public License - v 2.0": "EPL-2.0",
    "CC0 1.0 Universal": "CC0-1.0", "Attribution-ShareAlike 4.0": "CC-BY-SA-4.0", "Attribution 4.0": "CC-BY-4.0",
    "free and unencumbered software released into the public domain": "Unlicense",
    "Permission is hereby granted free of charge to any person obtaining a copy": "MIT",
    "Permission to use copy modify and or distribute this software for any purpose": "ISC",
    "may be used to endorse or promote products derived from this software": "BSD-3-Clause",
    "Redistributions in binary form must reproduce the above copyright notice": "BSD-2-Clause",
}  # fmt: skip
_NOT_SAID = re.compile(r"[^a-z0-9.-]+")


class Source(ABC):
    """Where documents come from. `size` is a guess at the bytes of text, for the progress bar."""

    name: str
    license: str = "unknown"
    size: int = 0

    def pieces(self) -> "list[Source]":
        """The source in pieces that can be read independently of each other."""
        return [self]

    def fingerprint(self) -> str:
        """Changes when the documents do."""
        return f"{type(self).__name__} {self.name}"

    @abstractmethod
    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        """The documents, in the same order every time. `QwqError` when the whole source cannot be had."""


class PathSource(Source):
    """A file, or every file of a known kind under a folder, in sorted order, but for hidden and vendored ones.

    Text files that are translations of each other, line by line (corpus.en, corpus.zh), are read together.
    """

    def __init__(self, path: Path, files: list[Path] | None = None) -> None:
        self.root, self.name = path, path.name.split(".")[0] or path.resolve().name
        if files is None:
            files = _files(path)
        self.files = files
        self.size = sum(file.stat().st_size for file in self.files)

    def pieces(self) -> list[Source]:
        """Runs of files of some 8 MB."""
        pieces: list[list[Path]] = []
        room = 0
        for file in self.files:
            if room <= 0 or len(pieces[-1]) == PIECE_FILES:
                pieces.append([])
                room = PIECE
            pieces[-1].append(file)
            room -= file.stat().st_size
        return [PathSource(self.root, files) for files in pieces]

    def fingerprint(self) -> str:
        stats = ((file, file.stat()) for file in self.files)
        listing = "\n".join(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)
        return f"{self.root} {hashlib.sha256(listing.encode('utf-8', 'surrogateescape')).hexdigest()}"

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        licenses: dict[Path, str] = {}
        for file in self.files:
            pair = _aligned(file)
            reader = reader_for(file)
            try:
                if file.stat().st_size == 0:
                    raise QwqError(f"{file} is empty")
                if len(pair) == 1 and reader is None:
                    raise QwqError(f"{file} has changed: no reader knows it now")
                documents = read_aligned(pair, set_aside) if len(pair) > 1 else reader(file, set_aside)  # type: ignore
                for document in documents:
                    document.source = document.source or self.name
                    if document.license == "unknown":
                        document.license = self._license(
                            file.parent, document.text[:2000] if document.kind == "code" else "", licenses
                        )
                    yield document
            except (QwqError, OSError) as error:
                set_aside(str(file), str(error).removeprefix(f"{file} "))

    def _license(self, folder: Path, head: str, known: dict[Path, str]) -> str:
        """The one that the text names, else that of the nearest licence file above it, up to the root."""
        if head and (named := spdx[1] if (spdx := _SPDX.search(head)) else license_of(head)):
            return named
        if folder not in known:
            found = [p for p in sorted(folder.iterdir()) if _LICENSE_FILE.match(p.name) and p.is_file()]
            texts = (p.read_bytes()[: 1 << 16].decode("utf-8", "replace") for p in found)
            below = folder != self.root and self.root in folder.parents
            above = self._license(folder.parent, "", known) if below else "unknown"
            known[folder] = next((name for text in texts if (name := license_of(text))), above)
        return known[folder]


def license_of(text: str) -> str:
    """The SPDX name of a licence, from its text or a notice of it, or ""."""
    plain = _NOT_SAID.sub(" ", text.lower())
    places = {plain.find(phrase.lower()): name for phrase, name in _LICENSES.items()}
    name = min((place, name) for place, name in {**places, len(plain): ""}.items() if place >= 0)[1]
    return "BSD-3-Clause" if name == "BSD-2-Clause" and "endorse or promote" in plain else name


def _aligned(file: Path) -> list[Path]:
    """The files that `file` is read together with; itself alone when they are of a kind that has a reader."""
    if reader_for(file) not in (None, READERS[".txt"]):
        return [file]
    return aligned(file)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if reader_for(path) is None and len(_aligned(path)) == 1:
            known = " ".join(sorted(READERS))
            raise UsageError(f"{path}: no reader for this kind of file; known are {known}")
        return [path]
    return list(_walk(path))


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in SKIPPED_FOLDERS:
                yield from _walk(entry)
        elif entry.is_file():
            pair = _aligned(entry)
            if entry == pair[0] and (len(pair) > 1 or reader_for(entry) is not None):
                yield entry


class HubSource(Source):
    """A data set by Hugging Face `datasets`, streamed: `hf:org/name`, `hf:org/name:config`, or `hf:` and a folder."""

    def __init__(self, name: str) -> None:
        self.name = name
        path = Path(name.removeprefix("hf:"))
        self.path, _, self.config = (str(path), "", "") if path.exists() else str(path).partition(":")
        if path.is_dir():
            self.size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def fingerprint(self) -> str:
        local = sorted(Path(self.path).rglob("*")) if Path(self.path).exists() else []
        return f"{self.name} {[(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in local]}"

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        try:
            import datasets
        except ImportError:
            raise QwqError(f"{self.name} needs the package datasets: pip install 'qwq[data]'") from None
        try:
            splits = datasets.load_dataset(self.path, self.config or None, streaming=True)
            rows = splits["train"] if "train" in splits else next(iter(splits.values()))
            license = str(rows.info.license or "unknown")
            if rows.column_names:
                check_columns(self.name, rows.column_names)
            for row in rows:
                for document in documents_of(row, Path(self.path).name):
                    document.license = license if document.license == "unknown" else document.license
                    yield document
        except QwqError:
            raise
        except Exception as error:  # a hub fails in the ways of a dozen libraries: all mean that it cannot be had
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise QwqError(f"{self.name} cannot be read: {reason}") from None


def open_sources(names: list[str]) -> list[Source]:
    """Sources by name (`demo`, `chinese-poetry`, `hf:org/name`) or path. `UsageError` names what is neither."""
    from qwq.data.demo import named_sources  # the demo readers are sources themselves

    found: list[Source] = []
    for name in names:
        path = Path(name)
        if name in (named := named_sources()):
            found += named[name]
        elif name.startswith("hf:"):
            found.append(HubSource(name))
        elif path.exists():
            found.append(PathSource(path))
        else:
            known = ", ".join(named)
            raise UsageError(f"no such source: {name}; give a folder, a file, or one of: {known}, hf:ORG/NAME")
    return found
