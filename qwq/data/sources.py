"""Readers: one class a kind of source. A damaged file is set aside with a reason and the rest is read."""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from qwq.data.documents import Document, chunks, read_jsonl
from qwq.errors import QwqError, UsageError

SetAside = Callable[[str, str], None]  # (file, reason)
PART = 1 << 18  # characters: a longer text becomes several documents, cut between paragraphs
SKIPPED_FOLDERS = {"node_modules", "__pycache__", "site-packages", "dist-packages", "venv"}
CODE = {
    ".py": "python", ".pyi": "python", ".pyx": "cython", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp",
    ".hpp": "cpp", ".cu": "cuda", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript",
    ".tsx": "typescript", ".java": "java", ".go": "go", ".rs": "rust", ".rb": "ruby", ".php": "php",
    ".cs": "csharp", ".swift": "swift", ".kt": "kotlin", ".scala": "scala", ".lua": "lua", ".r": "r",
    ".jl": "julia", ".sh": "shell", ".sql": "sql", ".css": "css",
}  # fmt: skip


class Source(ABC):
    """Where documents come from. `size` is a guess at the bytes of text, for the progress bar."""

    name: str
    license: str = "unknown"
    size: int = 0

    @abstractmethod
    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        """The documents, in the same order every time. `QwqError` when the whole source cannot be had."""


class Reader(ABC):
    """Documents of one file."""

    @abstractmethod
    def read(self, path: Path, set_aside: SetAside) -> Iterator[Document]:
        """Documents of the file; `QwqError` names it when it is damaged. What was read before that stands."""


class TextReader(Reader):
    """Plain text or Markdown, in parts of at most about 256k characters. UTF-8, UTF-16 with a mark, or GB18030."""

    def read(self, path: Path, set_aside: SetAside) -> Iterator[Document]:
        for part, text in enumerate(_parts(_decoded(path))):
            yield Document(text, source=path.stem.split(".")[0], meta={"file": path.name, "part": part})


class CodeReader(Reader):
    """One source file, one document; the programming language goes by the suffix."""

    def read(self, path: Path, set_aside: SetAside) -> Iterator[Document]:
        if path.stat().st_size > 16 * PART:
            raise QwqError(f"{path} is larger than {16 * PART >> 20} MiB: data rather than code")
        meta = {"file": path.name, "programming_language": CODE[path.suffix.lower()]}
        yield Document("".join(_decoded(path)), source=path.stem, language="code", kind="code", meta=meta)


class JsonLinesReader(Reader):
    """JSON lines with `text`, `content` or `messages`. Bad lines are counted and set aside together."""

    def read(self, path: Path, set_aside: SetAside) -> Iterator[Document]:
        bad: list[tuple[int, str]] = []
        counted = 0

        def on_bad(number: int, reason: str) -> None:
            nonlocal counted
            counted += 1
            if not bad:
                bad.append((number, reason))

        try:
            yield from read_jsonl(path, on_bad)
        finally:
            if bad:
                set_aside(
                    str(path), f"{counted:,} bad line{'s'[: counted > 1]}; the first is line {bad[0][0]}: {bad[0][1]}"
                )


READERS: dict[str, Reader] = {suffix: CodeReader() for suffix in CODE}
READERS |= dict.fromkeys((".txt", ".md", ".markdown", ".rst"), TextReader())
READERS |= dict.fromkeys((".txt.gz", ".txt.zst"), TextReader())
READERS |= dict.fromkeys((".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson"), JsonLinesReader())


def reader_for(path: Path) -> Reader | None:
    """The reader for a file's suffix, or None."""
    name = path.name.lower()
    return READERS.get("".join(Path(name).suffixes[-2:])) or READERS.get(Path(name).suffix)


class PathSource(Source):
    """A file, or every file with a known suffix under a folder, in sorted order, but for hidden and vendored ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name.split(".")[0] or path.resolve().name
        self.files = [path] if path.is_file() else list(_walk(path))
        if path.is_file() and reader_for(path) is None:
            raise UsageError(f"{path}: no reader for this kind of file; known are {' '.join(sorted(READERS))}")
        self.size = sum(file.stat().st_size for file in self.files)

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        for file in self.files:
            reader = reader_for(file)
            assert reader is not None
            try:
                if file.stat().st_size == 0:
                    raise QwqError(f"{file} is empty")
                for document in reader.read(file, set_aside):
                    document.source = document.source if isinstance(reader, JsonLinesReader) else self.name
                    yield document
            except (QwqError, OSError) as error:
                set_aside(str(file), str(error).removeprefix(f"{file} "))


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in SKIPPED_FOLDERS:
                yield from _walk(entry)
        elif entry.is_file() and reader_for(entry) is not None:
            yield entry


def _decoded(path: Path) -> Iterator[str]:
    """Text of a file in pieces. What is not valid in its encoding becomes U+FFFD; a binary file is a `QwqError`."""
    decoder = None
    for piece in chunks(path):
        if decoder is None:
            decoder = codecs.getincrementaldecoder(_encoding(path, piece))(errors="replace")
        yield decoder.decode(piece)
    if decoder is not None:
        yield decoder.decode(b"", final=True)


def _encoding(path: Path, head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head[: 1 << 16]:
        raise QwqError(f"{path} is binary, not text")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "utf-8-sig"
    except UnicodeDecodeError:
        pass
    try:
        foreign = re.sub(r"[\x00-\x7f]", "", codecs.getincrementaldecoder("gb18030")().decode(head))
    except UnicodeDecodeError:
        return "utf-8-sig"
    chinese = len(re.findall("[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef\u2010-\u203b]", foreign))
    return "gb18030" if chinese > 0.9 * len(foreign) else "utf-8-sig"


def _parts(pieces: Iterator[str]) -> Iterator[str]:
    """The text in parts of about PART characters, cut at an empty line, else at a line end, else where it must be."""
    held = ""
    for piece in pieces:
        held += piece
        while len(held) > 2 * PART:
            cut = max(held.rfind("\n\n", PART // 2, PART), 0) or max(held.rfind("\n", PART // 2, PART), 0) or PART
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def open_sources(names: list[str]) -> list[Source]:
    """Sources by name (`demo`, `chinese-poetry`) or path. `UsageError` names what is neither."""
    from qwq.data.demo import named_sources  # the demo readers are sources themselves

    found: list[Source] = []
    for name in names:
        path = Path(name)
        if name in (named := named_sources()):
            found += named[name]
        elif path.exists():
            found.append(PathSource(path))
        else:
            known = ", ".join(named)
            raise UsageError(f"no such source: {name}; give a folder, a file, or one of: {known}")
    return found
