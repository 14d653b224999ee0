"""Broken inputs: each is one clear line, memory stays flat, and what was read before the damage is kept."""

import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys

import pytest
import zstandard

from qwq.data import build, read_documents
from qwq.data.sources import PathSource

RANDOM = random.Random(1)
NOUNS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ner", "sol") for b in ("bel", "dor", "sun", "tar", "wick")]
ROWS = [" ".join(RANDOM.choice(["the", "of", "and", *NOUNS]) for _ in range(60)) + "." for _ in range(40)]
GOOD = "".join(json.dumps({"text": text}) + "\n" for text in ROWS)


def read(path):
    aside = {}
    documents = list(PathSource(path).documents(lambda file, reason: aside.update({file.rpartition("/")[2]: reason})))
    return documents, aside


def packed_rows(count):
    return gzip.compress("".join(json.dumps({"text": f"row {i * i}"}) + "\n" for i in range(count)).encode())


BROKEN = {
    "truncated.jsonl.gz": (packed_rows(5_000)[:20_000], r"^is truncated; copy it again$"),
    "invalid.jsonl": (b'{"text": "caf\xe9 \xff"}\n', r"^1 bad line; the first is line 1: not JSON \('utf-8' codec can't decode"),
    "columns.csv": (b"name,age\nJo,7\n", r"^has the columns name, age; one of text, content, .* is needed$"),
    "cells.csv": (b"id,text\n1,good,too many\n", r"^1 bad line; the first is line 2: it has more or fewer cells than the header$"),
    "damaged.parquet": (b"PAR1 and then nothing of the kind PAR1", r"^is damaged \(.*\); copy it again$"),
    "damaged.txt.xz": (b"\xfd7zXZ\x00 no more", r"^is (damaged \(.*\)|truncated); copy it again$"),
    "cut.json": (b'[{"text": "a"}, {"te', r"^is not JSON \("),
    "number.json": (b"7", r"^holds int, where a list of texts or dialogues was expected$"),
    "cut.tmx": (b'<?xml version="1.0"?><tmx><header srclang="en"/><body><tu>', r"^is not whole XML \("),
    "none.po": (b'msgid "a"\nmsgstr "b"\n', r"is no gettext catalogue: it has no header entry$"),
    "nothing.txt": (b"", r"^is empty$"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_line(tmp_path, name):
    """What is wrong and what to do, without the path twice and without a line break."""
    content, said = BROKEN[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'qwq[data]'")
    (tmp_path / name).write_bytes(content)
    _, aside = read(tmp_path / name)
    assert list(aside) == [name]
    assert re.search(said, aside[name]), aside[name]
    assert "\n" not in aside[name]


def test_broken_files_do_not_cost_the_others(tmp_path):
    """A corpus of one good file between all the broken ones: the good rows are kept, every broken file is named."""
    for name, (content, _) in BROKEN.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "good.jsonl").write_text(GOOD)
    report = build([str(tmp_path / "in")], tmp_path / "out", progress=False)
    texts = {document.text for document in read_documents(tmp_path / "out")}
    texts |= {d.text for file in (tmp_path / "out" / "heldout").glob("*") for d in read_documents(file)}
    assert {text for text in ROWS if text in texts} == texts
    assert len(texts) > 0
    assert {entry["file"].rpartition("/")[2] for entry in report["set_aside"]} == set(BROKEN)


def test_parquet_with_other_columns_is_refused(tmp_path):
    """The line names the columns that are there."""
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'qwq[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"name": ["Jo"], "age": [7]}), tmp_path / "a.parquet")
    documents, aside = read(tmp_path / "a.parquet")
    assert (documents, aside["a.parquet"].split(";")[0]) == ([], "has the columns name, age")


MEASURED = """
import resource, sys
from pathlib import Path
from qwq.data.sources import PathSource
source = PathSource(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = 0
for document in source.documents(lambda file, reason: print(reason)):
    count += 1
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def measured(path):
    """(lines said, documents, MiB by which memory grew) of reading a file in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    count, grown = map(int, last.split())
    return said, count, grown


def test_a_line_of_a_gigabyte_is_skipped_in_constant_memory(tmp_path):
    """The rows before and after it are read."""
    path = tmp_path / "long.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        file.seek(1 << 30, os.SEEK_CUR)  # a hole: no gigabyte is written
        file.write(b'"}\n{"text": "after"}\n')
    said, count, grown = measured(path)
    assert (count, said) == (2, ["1 bad line; the first is line 2: a line of more than 64 MiB"])
    assert grown < 400


def test_a_gigabyte_that_fits_in_a_hundred_kilobytes_is_refused(tmp_path):
    """A text that unpacks without end; what came before is read in parts, in constant memory."""
    path = tmp_path / "bomb.txt.zst"
    compressor = zstandard.ZstdCompressor().compressobj()
    with open(path, "wb") as file:
        for _ in range(150):
            file.write(compressor.compress(b"all work and no play " * 100_000))
        file.write(compressor.flush())
    said, count, grown = measured(path)
    assert said == ["expands to more than 200 times its size: an archive bomb, not text"]
    assert count > 500
    assert grown < 400


def test_a_binary_of_zeros_is_not_text(tmp_path):
    """A gigabyte of holes that is called .txt."""
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(tmp_path / "a.txt") == ([], {"a.txt": "is binary, not text"})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_an_endless_line_of_text_is_cut_into_parts(tmp_path):
    """Without a newline there are still documents of bounded size."""
    (tmp_path / "a.txt").write_text("word " * 400_000)
    documents, aside = read(tmp_path / "a.txt")
    assert sum(len(d.text) for d in documents) == 2_000_000
    assert max(len(d.text) for d in documents) <= 1 << 19
    assert not aside
