"""Token shards: documents as one long row of ids in memory-mapped files, with a manifest that says what they are."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwq.checkpoint.files import new_folder, read_json, sha256
from qwq.data.documents import Document, read_documents
from qwq.errors import QwqError, UsageError
from qwq.tokenizer import Tokenizer, encode_chat

VERSION = 1
SHARD_TOKENS = 1 << 26  # a shard: 128 MiB of uint16
BATCH_BYTES = 1 << 20  # of text encoded at once


def separator(tokenizer: Tokenizer) -> int:
    """The id after every document: <|endoftext|> where the vocabulary has it, else the first id that ends a reply."""
    if "<|endoftext|>" in tokenizer.special_tokens:
        return tokenizer.special_tokens["<|endoftext|>"]
    if not tokenizer.eos_token_ids:
        raise QwqError("the tokenizer has no end-of-sequence token to put between documents")
    return tokenizer.eos_token_ids[0]


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 over what every id stands for: equal for vocabularies that give the same ids the same meaning."""
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.special_tokens.items())).encode())
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(token_id)
        digest.update(len(piece).to_bytes(4, "little") + piece)
    return digest.hexdigest()


def tokenize(
    docs: Path | str,
    tokenizer: Tokenizer,
    out: Path | str,
    *,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
) -> dict:
    """Write token shards of the documents at `docs` and return the manifest.

    Each document becomes [bos where the model wants it] ids [separator]; a dialogue is rendered by the tokenizer's
    chat template (ChatML where it has none), so that training shows what the model is asked with later. The held-out
    documents of `docs` are copied along as text. `QwqError` when there is no document.
    """
    docs, out = Path(docs), Path(out)
    if out.exists() and not (out / "manifest.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not a folder of token shards; give another --out")
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    end, start = separator(tokenizer), [tokenizer.bos_token_id] if tokenizer.add_bos else []
    languages: dict[str, dict[str, int]] = {}
    with new_folder(out) as folder:
        writer = _ShardWriter(folder, dtype, shard_tokens)
        for batch in _batches(_with_progress(docs, progress)):
            for document, ids in zip(batch, _encode(tokenizer, batch), strict=True):
                row = [*(() if document.messages else start), *ids, end]
                if max(row) >= tokenizer.vocab_size:
                    raise QwqError(f"the tokenizer gave id {max(row)}; it says that it has {tokenizer.vocab_size}")
                writer.write(np.asarray(row, dtype))
                count = languages.setdefault(document.language or "unknown", {"documents": 0, "tokens": 0, "bytes": 0})
                for key, value in (("documents", 1), ("tokens", len(row)), ("bytes", len(document.text.encode()))):
                    count[key] += value
        writer.close()
        if not languages:
            raise QwqError(f"{docs} holds no document; there is nothing to tokenize")
        manifest = {
            "version": VERSION,
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer_hash(tokenizer),
            "separator": end,
            **{key: sum(count[key] for count in languages.values()) for key in ("documents", "tokens", "bytes")},
            "languages": dict(sorted(languages.items())),
            "shards": writer.shards,
        }
        if (docs / "heldout").is_dir():
            shutil.copytree(docs / "heldout", folder / "heldout")
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _with_progress(docs: Path, progress: bool) -> Iterator[Document]:
    total = None
    if (docs / "report.json").is_file():
        total = read_json(docs / "report.json").get("documents")
    columns = [
        TextColumn("tokenizing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        yield from bar.track(read_documents(docs), total=total)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Runs of documents of about BATCH_BYTES, so that `encode_batch` has work for every core and memory stays small."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[Document]) -> Iterator[list[int]]:
    plain = iter(tokenizer.encode_batch([document.text for document in batch if not document.messages]))
    for document in batch:
        if document.messages:
            yield encode_chat(tokenizer, document.messages, add_generation_prompt=False)
        else:
            yield next(plain)


class _ShardWriter:
    """Appends rows of ids to numbered .bin files; the checksum is taken on the way."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self._folder = folder
        self._dtype = dtype
        self._capacity = shard_tokens
        self._room = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self.shards: list[dict] = []

    def write(self, row: np.ndarray) -> None:
        while len(row):
            file = self._file if self._file is not None and self._room else self._next()
            data = row[: self._room].tobytes()
            file.write(data)
            self._digest.update(data)
            shard = self.shards[-1]
            shard["tokens"] += (taken := len(data) // self._dtype.itemsize)
            shard["bytes"] += len(data)
            self._room -= taken
            row = row[taken:]

    def _next(self) -> BinaryIO:
        self.close()
        name = f"{len(self.shards):05d}.bin"
        self._file = open(self._folder / name, "wb")  # noqa: SIM115 - `close` ends it
        self._digest = hashlib.sha256()
        self._room = self._capacity
        self.shards.append({"file": name, "tokens": 0, "bytes": 0, "sha256": ""})
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self.shards[-1]["sha256"] = self._digest.hexdigest()


class TokenShards:
    """The shards of a folder as one array of ids, memory-mapped. `shards[a:b]` copies a stretch, over file borders."""

    def __init__(self, folder: Path | str, *, checksums: bool = True) -> None:
        """Open and verify. `QwqError` names a missing, truncated or altered file and what was expected."""
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / "manifest.json")
        if self.manifest.get("version") != VERSION:
            raise QwqError(f"{self.folder} is not a folder of token shards of version {VERSION}: tokenize again")
        self.dtype = np.dtype(self.manifest["dtype"])
        self._arrays = [self._open(shard, checksums) for shard in self.manifest["shards"]]
        self._ends = list(accumulate(map(len, self._arrays)))

    def _open(self, shard: dict, checksums: bool) -> np.ndarray:
        path = self.folder / shard["file"]
        if not path.is_file():
            raise QwqError(f"{path} is missing; the manifest expects {shard['bytes']:,} bytes: tokenize again")
        if (size := path.stat().st_size) != shard["bytes"]:
            raise QwqError(f"{path} has {size:,} bytes where {shard['bytes']:,} were expected: tokenize again")
        if checksums and sha256(path) != shard["sha256"]:
            raise QwqError(f"{path} was altered ({size:,} bytes, as expected; its SHA-256 is another): tokenize again")
        return np.memmap(path, self.dtype, "r")

    def __len__(self) -> int:
        """Tokens in all."""
        return self._ends[-1]

    def __getitem__(self, part: slice) -> np.ndarray:
        """ids [stop - start], int64."""
        start, stop, _ = part.indices(len(self))
        pieces = []
        for array, end in zip(self._arrays, self._ends, strict=True):
            begin = end - len(array)
            if begin < stop and start < end:
                pieces.append(array[max(start - begin, 0) : stop - begin])
        return np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, np.int64)
