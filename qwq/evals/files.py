"""Benchmark files in their official formats, from a folder or else from a hub. Every flaw is one line."""

import functools
import gzip
import json
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwq.errors import QwqError

Rows = list[dict[str, Any]]
Hub = tuple[str, str | None, str]  # data set, configuration, split; its columns are those of the local reader


@dataclass(frozen=True)
class Source:
    """The folder where the files of all benchmarks lie."""

    folder: Path

    def find(self, *names: str) -> Path | None:
        """The first of the files (or folders) that is there."""
        return next((p for p in (self.folder / n for n in names) if p.exists()), None)

    def need(self, *names: str) -> Path:
        """The same, or `QwqError`."""
        if (found := self.find(*names)) is None:
            raise QwqError(f"no {names[0]} in {self.folder}: give the folder with --data-dir or QWQ_DATA_DIR")
        return found

    def rows(self, names: Sequence[str], read: Callable[[Path], Rows], hub: Hub) -> tuple[Rows, str]:
        """Rows of the first file that is there, else of the hub's data set; and where they are from."""
        if self.find(*names) is None and (Path(hub[0]).is_dir() or _hub_answers()):
            return _from_hub(*hub), hub[0]
        path = self.need(*names)
        return read(path), str(path)


@functools.cache
def _hub_answers() -> bool:
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=3)
    except OSError:
        return False
    return not constants.HF_HUB_OFFLINE


def _from_hub(path: str, name: str | None, split: str) -> Rows:
    try:
        import datasets

        return datasets.load_dataset(path, name, split=split).to_list()
    except Exception as error:  # whatever the hub's client raises, or that it is not installed
        raise QwqError(f"the hub did not give {path}: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def read_text(path: Path) -> str:
    """A file's text (UTF-8, a byte-order mark taken off), or `QwqError`."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise QwqError(f"{path}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise QwqError(f"{path}: not UTF-8 at byte {error.start:,}") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file, or `QwqError`."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise QwqError(f"{path}: not JSON, or cut off: {error}") from None


def read_jsonl(path: Path, *fields: str) -> Rows:
    """Objects, one a line, each with the named fields; or `QwqError` with the line."""
    rows: Rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
                [rows[-1][field] for field in fields]
            except (ValueError, LookupError, TypeError) as error:
                raise QwqError(f"{path}, line {number}: needs {', '.join(fields)}, or is cut off: {error}") from None
    return some(rows, path)


def read_table(path: Path, columns: Sequence[str], headerless: Sequence[str] = ()) -> Rows:
    """Rows of a tab-separated table without quoting, as GLUE's, whose first line names the `columns`.

    Where it does not, `headerless` says what the columns of a file without header are.
    """
    lines = [line.rstrip("\r").split("\t") for line in some(read_text(path).split("\n"), path) if line.strip()]
    header = list(some(lines, path)[0])
    if not set(columns) <= set(header):
        if len(headerless) != len(header):
            raise QwqError(f"{path}: needs the columns {', '.join(columns)}; its first line is {header[:8]}")
        header, lines = list(headerless), [[], *lines]
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise QwqError(f"{path}, row {number}: {len(line)} columns where {len(header)} are expected")
    return some([dict(zip(header, line, strict=True)) for line in lines[1:]], path)


def some(rows: Any, path: object) -> Any:
    """The rows, or `QwqError` where there are none."""
    if not rows:
        raise QwqError(f"{path}: holds no examples")
    return rows


def index_of(value: Any, names: Sequence[str], where: str) -> int:
    """A label as its index: given so, or by name; or `QwqError`."""
    if value in names:
        return names.index(value)
    if str(value).isdigit() and int(value) < len(names):
        return int(value)
    raise QwqError(f"{where}: {value!r} is no label; labels are {', '.join(names)}")
