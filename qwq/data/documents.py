"""The one document format, a JSON object a line, compressed with Zstandard; reading and writing of it."""

import bz2
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import orjson
import zstandard

from qwq.errors import QwqError

MAX_LINE = 64 << 20  # bytes: a longer line is damage or an attack, never a document
BOMB = 256 << 20  # bytes: from here on,
BOMB_RATIO = 200  # a file that expands to so many times its size is refused; text expands three- to tenfold
SHARD_BYTES = 64 << 20  # of JSON in one documents file
Message = dict[str, str]
_OPEN: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(slots=True)
class Document:
    """One text with its provenance. A dialogue has `messages` ({"role", "content"}) and, as `text`, their contents."""

    text: str
    source: str
    license: str = "unknown"
    language: str = ""  # "en", "zh" ... | "code" | "other"; "" until `language.Identify` has seen it
    kind: str = "text"  # "web" | "book" | "news" | "dialogue" | "code" | "text" ...
    meta: dict = field(default_factory=dict)
    messages: list[Message] | None = None
    hash: str = ""  # the document's name: `hash_of` its text once normalised; a later cut of a paragraph leaves it

    def to_json(self) -> dict:
        """The object of the document's line."""
        row: dict = {"text": self.text, "source": self.source, "license": self.license, "language": self.language}
        row |= {"hash": self.hash or hash_of(self.text), "kind": self.kind, "meta": self.meta}
        return row | {"messages": self.messages} if self.messages is not None else row

    @classmethod
    def from_json(cls, row: object, source: str = "") -> "Document":
        """A document from any object with `text`, `content` or `messages`. `ValueError` says what is missing."""
        if not isinstance(row, dict):
            raise ValueError(f"a JSON object was expected, not {type(row).__name__}")
        messages = row.get("messages")
        if messages is not None:
            ok = isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)
            if not ok or not all(isinstance(m.get(k), str) for m in messages for k in ("role", "content")):
                raise ValueError('"messages" must be a list of {"role": text, "content": text}')
            messages = [{"role": m["role"], "content": m["content"]} for m in messages]
        text = row.get("text", row.get("content"))
        if text is None and messages:
            text = "\n".join(m["content"] for m in messages)
        if not isinstance(text, str):
            raise ValueError('no "text" (or "content", or "messages") field')
        plain = {k: row[k] for k in ("license", "language", "kind") if isinstance(row.get(k), str)}
        origin = row["source"] if isinstance(row.get("source"), str) else source
        meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
        if messages:
            plain["kind"] = "dialogue"
        name = row["hash"] if isinstance(row.get("hash"), str) else ""
        return cls(text=text, source=origin, meta=meta, messages=messages, hash=name, **plain)


def hash_of(text: str) -> str:
    """16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces, decompressed by its suffix (.gz .bz2 .xz .zst). `QwqError` names a damaged one."""
    limit, given = BOMB_RATIO * path.stat().st_size, 0
    try:
        if path.suffix == ".zst":
            pieces = _zstd_chunks(path)
        else:
            pieces = _file_chunks(_OPEN.get(path.suffix, open)(path, "rb"))
        for piece in pieces:
            given += len(piece)
            if given > max(BOMB, limit):
                raise QwqError(f"{path} expands to more than {BOMB_RATIO} times its size: an archive bomb, not text")
            yield piece
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
        reason = "truncated" if isinstance(error, EOFError) else f"damaged ({error})"
        raise QwqError(f"{path} is {reason}; copy it again") from None
    except OSError as error:
        raise QwqError(f"{path} cannot be read: {error.strerror or error}") from None


def _file_chunks(opened: BinaryIO) -> Iterator[bytes]:
    with opened as file:
        while piece := file.read(1 << 20):
            yield piece


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """As `chunks`, over `decompressobj`: zstandard's stream reader takes a truncated frame for a whole one."""
    with open(path, "rb") as file:
        piece = file.read(1 << 11)  # small: each can hold 64 MB
        while piece:
            frame = zstandard.ZstdDecompressor().decompressobj()
            while piece:
                if data := frame.decompress(piece):
                    yield data
                piece = frame.unused_data or file.read(1 << 11)
                if frame.eof:
                    break
            if not frame.eof:
                raise EOFError


def lines(path: Path) -> Iterator[bytes | None]:
    """The lines of a file that is possibly compressed, in constant memory: one above MAX_LINE comes as None."""
    held: list[bytes] = []  # of the line that has not ended
    size = 0
    for piece in chunks(path):
        ended = piece.split(b"\n")
        for part in ended[:-1]:
            yield b"".join([*held, part]) if size + len(part) <= MAX_LINE else None
            held, size = [], 0
        size += len(ended[-1])
        held = [*held, ended[-1]] if size <= MAX_LINE else []
    if size:
        yield b"".join(held) if size <= MAX_LINE else None


def _value(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)  # which takes NaN and half a surrogate pair, and words the error for the rest


def json_rows(path: Path, on_bad: Callable[[int, str], None] | None = None) -> Iterator[tuple[int, object]]:
    """(line number, value) of JSON lines. A bad line goes to `on_bad(number, reason)`; without it, it raises."""
    for number, line in enumerate(lines(path), 1):
        try:
            if line is None:
                raise ValueError(f"a line of more than {MAX_LINE >> 20} MiB")
            if line.strip():
                yield number, _value(line)
        except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
            coded = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            reason = f"not JSON ({error})" if coded else str(error)
            if on_bad is None:
                raise QwqError(f"{path}, line {number}: {reason}") from None
            on_bad(number, reason)


def read_jsonl(path: Path) -> Iterator[Document]:
    """Documents of one .jsonl(.gz|.zst) file. `QwqError` names the first bad line."""
    for number, row in json_rows(path):
        try:
            document = Document.from_json(row, source=path.name.split(".")[0])
        except ValueError as error:
            raise QwqError(f"{path}, line {number}: {error}") from None
        yield document


def read_documents(path: Path | str) -> Iterator[Document]:
    """Documents of a folder that `qwq data build` wrote, of a folder of .jsonl(.gz|.zst) files, or of one such file."""
    path = Path(path)
    if not path.exists():
        raise QwqError(f"{path} does not exist; `qwq data build --out {path}` makes documents")
    folder = path / "documents" if (path / "documents").is_dir() else path
    files = [path] if path.is_file() else sorted(p for s in ("", ".gz", ".zst") for p in folder.glob(f"*.jsonl{s}"))
    if not files:
        raise QwqError(f"{folder} holds no .jsonl, .jsonl.gz or .jsonl.zst file; `qwq data build` makes them")
    for file in files:
        yield from read_jsonl(file)


class DocumentWriter:
    """Writes documents to one .jsonl.zst file, or, given a folder, to numbered files of about 64 MB of JSON each."""

    def __init__(self, path: Path, level: int = 3) -> None:
        self._path = path
        self._numbered = path.suffix != ".zst"
        self._level = level
        self._files = 0
        self._room = 0
        self._file: zstandard.ZstdCompressionWriter | None = None
        self.count = 0
        self.bytes = 0  # of text, UTF-8

    def write(self, document: Document) -> None:
        """Append one document."""
        try:
            line = orjson.dumps(document.to_json(), option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # a number of more than 64 bits in `meta`
            line = json.dumps(document.to_json(), ensure_ascii=False).encode() + b"\n"
        if self._file is None or (self._numbered and self._room < len(line)):
            self._open()
        assert self._file is not None
        self._file.write(line)
        self._room -= len(line)
        self.count += 1
        self.bytes += len(document.text.encode())

    def _open(self) -> None:
        self.close()
        target = self._path / f"{self._files:05d}.jsonl.zst" if self._numbered else self._path
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file = zstandard.open(target, "wb", cctx=zstandard.ZstdCompressor(level=self._level))
        self._files += 1
        self._room = SHARD_BYTES

    def close(self) -> None:
        """End the current file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
