"""Files of one kind each to documents: text, books, code, JSON lines, JSON, CSV, Parquet. `reader_for` tells the kind.

A reader is a generator over (path, set_aside). A damaged file is a `QwqError` that names it: what was read before that
stands. Single rows that are wrong are counted and set aside together.
"""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from qwq.data.documents import Document, chunks, json_rows
from qwq.data.readers_dialogue import documents_of, threads
from qwq.data.readers_files import WHOLE, decoded, text_lines, whole
from qwq.data.readers_parallel import read_po, read_tmx
from qwq.data.readers_web import read_html, read_warc
from qwq.errors import QwqError

SetAside = Callable[[str, str], None]  # (file, reason)
Reader = Callable[[Path, SetAside], Iterator[Document]]
PART = 1 << 18  # characters: a longer text becomes several documents, cut between paragraphs
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_CODE = {
    "python": ".py .pyi .pyw", "cython": ".pyx .pxd", "c": ".c .h", "cpp": ".cc .cpp .cxx .hpp .hh", "cuda": ".cu .cuh",
    "javascript": ".js .mjs .cjs .jsx", "typescript": ".ts .tsx", "java": ".java", "go": ".go", "rust": ".rs",
    "ruby": ".rb", "php": ".php", "csharp": ".cs", "swift": ".swift", "kotlin": ".kt .kts", "scala": ".scala",
    "lua": ".lua", "r": ".r", "julia": ".jl", "shell": ".sh .bash", "sql": ".sql", "css": ".css .scss",
    "perl": ".pl .pm", "haskell": ".hs", "ocaml": ".ml .mli", "elixir": ".ex .exs", "dart": ".dart", "zig": ".zig",
    "verilog": ".v .sv", "lisp": ".lisp .el .scm .clj", "fortran": ".f90 .f95", "matlab": ".m", "makefile": ".mk",
}  # fmt: skip
CODE = {suffix: language for language, suffixes in _CODE.items() for suffix in suffixes.split()}
_CODE_NAMES = {"makefile": "makefile", "dockerfile": "dockerfile", "rakefile": "ruby", "cmakelists.txt": "cmake"}
_SHEBANG = re.compile(rb"#!.*\b(python|bash|sh|perl|ruby|node|lua)")
_GUTENBERG = re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^\n]*\n")
_GUTENBERG_END = re.compile(r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK|\nEnd of (?:the )?Project Gutenberg")


def read_text(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """Text or Markdown, in parts of about 256k characters; a book of Project Gutenberg without what is around it."""
    book: dict = {}
    pieces = decoded(path)
    first = next(pieces, "")
    if start := _GUTENBERG.search(first):
        book = dict(
            re.findall(r"^(Title|Author|Language|Release [Dd]ate): *(.+?)\s*$", first[: start.end()], re.MULTILINE)
        )
        first = first[start.end() :]
    for part, text in enumerate(parts(_again(first, pieces))):
        meta: dict = {"file": path.name, "part": part}
        if not start:
            yield Document(text, "", meta=meta)
            continue
        end = _GUTENBERG_END.search(text)
        meta |= {name.lower(): value for name, value in book.items()}
        yield Document(unwrap(text[: end.start()] if end else text), "", "Public domain (US)", kind="book", meta=meta)
        if end:
            return


def _again(first: str, pieces: Iterator[str]) -> Iterator[str]:
    yield first
    yield from pieces


def unwrap(text: str) -> str:
    """Paragraphs that were broken into lines of one width, on one line each; verse and lists keep their lines."""
    out = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        lines = [line.rstrip() for line in block.strip("\n").split("\n")]
        wrapped = len(lines) > 1 and all(50 <= len(line) <= 85 and not line.startswith("  ") for line in lines[:-1])
        out.append(" ".join(line.strip() for line in lines) if wrapped else "\n".join(lines))
    return "\n\n".join(out)


def read_code(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """One source file, one document; the programming language goes by the suffix, the name or the first line."""
    if path.stat().st_size > 16 * PART:
        raise QwqError(f"{path} is larger than {16 * PART >> 20} MiB: data rather than code")
    text = "".join(decoded(path))
    language = _CODE_NAMES.get(path.name.lower()) or CODE.get(path.suffix.lower())
    if language is None and (shebang := _SHEBANG.match(text[:200].encode())):
        language = shebang[1].decode().replace("bash", "shell")
    yield Document(text, "", language="code", kind="code", meta={"file": path.name, "programming_language": language})


def read_jsonl(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """JSON lines: a document, dialogue, thread or pair of translations each; comments of a dump become threads."""
    with _bad_rows(path, set_aside) as on_bad:
        yield from _documents_of_rows(json_rows(path, on_bad), path, on_bad)


def read_json(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """One JSON value: a list of rows as in JSON lines, a thread of Reddit's, or an object with one of these inside."""
    try:
        value = json.loads(whole(path))
    except (ValueError, RecursionError) as error:
        raise QwqError(f"{path} is not JSON ({error})") from None
    if isinstance(value, dict):
        value = next((value[k] for k in ("data", "rows", "dialogues") if isinstance(value.get(k), list)), [value])
    listing = isinstance(value, list) and value and isinstance(value[0], dict) and value[0].get("kind") == "Listing"
    rows = [value] if listing else value
    if not isinstance(rows, list):
        raise QwqError(f"{path} holds {type(rows).__name__}, where a list of texts or dialogues was expected")
    with _bad_rows(path, set_aside) as on_bad:
        yield from _documents_of_rows(enumerate(rows, 1), path, on_bad)


def read_csv(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """A table with a header, comma- or tab-separated; columns as the fields of JSON lines."""
    csv.field_size_limit(WHOLE)
    rows = csv.DictReader(text_lines(path), delimiter="\t" if ".tsv" in path.suffixes else ",")
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        check_columns(path, rows.fieldnames)
        with _bad_rows(path, set_aside) as on_bad:
            yield from _documents_of_rows(((rows.line_num, row) for row in rows), path, on_bad)
    except csv.Error as error:
        raise QwqError(f"{path}, line {rows.line_num}: {error}") from None


def read_parquet(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """The rows of a Parquet file, a thousand at a time; columns as the fields of JSON lines."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise QwqError(f"{path} needs pyarrow: pip install 'qwq[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table, _bad_rows(path, set_aside) as on_bad:
            check_columns(path, table.schema_arrow.names)
            rows = (row for batch in table.iter_batches(1000) for row in batch.to_pylist())
            yield from _documents_of_rows(enumerate(rows, 1), path, on_bad)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise QwqError(f"{path} is damaged ({str(error).splitlines()[0]}); copy it again") from None


COLUMNS = (
    "text content body article messages conversations turns comments translation instruction prompt question".split()
)


def check_columns(path: Path | str, names) -> None:
    """`QwqError` that names the columns where none can hold a text."""
    if not set(COLUMNS) & set(names):
        raise QwqError(
            f"{path} has the columns {', '.join(map(str, names)) or '(none)'}; one of {', '.join(COLUMNS)} is needed"
        )


def _documents_of_rows(
    rows: Iterator[tuple[int, object]], path: Path, on_bad: Callable[[int, str], None]
) -> Iterator[Document]:
    for number, row in threads(rows):
        try:
            if isinstance(row, dict) and (None in row or (None in row.values() and path.suffix in (".csv", ".tsv"))):
                raise ValueError("it has more or fewer cells than the header")
            yield from documents_of(row, path.name.split(".")[0])
        except ValueError as error:
            on_bad(number, str(error))


@contextlib.contextmanager
def _bad_rows(path: Path, set_aside: SetAside) -> Iterator[Callable[[int, str], None]]:
    """Counts bad rows, and sets them aside together at the end."""
    bad: list[tuple[int, str]] = []
    counted = 0

    def on_bad(number: int, reason: str) -> None:
        nonlocal counted
        counted += 1
        if not bad:
            bad.append((number, reason))

    try:
        yield on_bad
    finally:
        if bad:
            lines = f"{counted:,} bad line{'s'[: counted > 1]}"
            set_aside(str(path), f"{lines}; the first is line {bad[0][0]}: {bad[0][1]}")


READERS: dict[str, Reader] = dict.fromkeys(CODE, read_code)
READERS |= dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), read_text)
READERS |= {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json, ".csv": read_csv, ".tsv": read_csv}
READERS |= {".parquet": read_parquet, ".html": read_html, ".htm": read_html, ".xhtml": read_html, ".warc": read_warc}
READERS |= {".tmx": read_tmx, ".po": read_po}
_MAGIC = {
    b"WARC/1": read_warc,
    b"PAR1": read_parquet,
    b"<!doctype html": read_html,
    b"<html": read_html,
    b"<tmx": read_tmx,
}


def reader_for(path: Path) -> Reader | None:
    """The reader for a file, by its name, and where that says nothing by how it begins; None if neither is known."""
    name = path.name.lower()
    suffixes = [s for s in Path(name).suffixes if s not in COMPRESSED]
    if name in _CODE_NAMES:
        return read_code
    if suffixes and (reader := READERS.get(suffixes[-1])):
        return reader if Path(name).suffix not in COMPRESSED or reader not in (read_code, read_parquet) else None
    if suffixes and Path(name).suffix not in COMPRESSED:
        return None
    try:
        head = next(chunks(path), b"")[:4096]
    except QwqError:
        return None
    if _SHEBANG.match(head):
        return read_code
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((reader for magic, reader in _MAGIC.items() if start.startswith(magic.lower())), None)


def parts(pieces: Iterator[str]) -> Iterator[str]:
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
