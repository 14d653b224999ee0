"""Readers of files and folders: what can be read is, what cannot is set aside with a reason."""

import gzip
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from qwq.data import readers
from qwq.data.readers import PART, parts
from qwq.data.sources import PathSource, open_sources
from qwq.errors import UsageError

CHINESE = "今天上午，委员会宣布新的大桥将在年底之前向公众开放。"


def read(path):
    """(documents, {file name: reason} of what was set aside)."""
    aside = {}
    documents = list(PathSource(path).documents(lambda file, reason: aside.update({file.rpartition("/")[2]: reason})))
    return documents, aside


def test_a_folder_of_many_kinds_is_read_in_order(tmp_path):
    """Text, Markdown, code and JSON lines; other kinds, hidden and vendored folders are left alone."""
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.MD").write_text("# heading")
    (tmp_path / "c.py").write_text("x = 1\n")
    (tmp_path / "d.jsonl.zst").write_bytes(
        zstandard.compress(b'{"text": "row", "source": "origin", "license": "MIT"}\n')
    )
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    for folder in (".git", "node_modules", "sub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f.txt").write_text(folder)
    documents, aside = read(tmp_path)
    assert [d.text for d in documents] == ["plain", "# heading", "x = 1\n", "row", "packed", "sub"]
    assert [(d.source, d.license) for d in documents][3] == ("origin", "MIT")
    assert (documents[2].language, documents[2].meta["programming_language"]) == ("code", "python")
    assert not aside


def test_a_damaged_file_is_set_aside_and_the_rest_is_read(tmp_path):
    """Truncated, binary, empty and damaged files, each with its own reason; what was read before the damage stays."""
    rows = b"".join(json.dumps({"text": f"row {i * i}"}).encode() + b"\n" for i in range(300_000))
    packed = zstandard.compress(rows)
    (tmp_path / "a.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.txt").write_bytes(b"\x00\x01\x02 binary \x00")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.jsonl").write_text('{"text": "good"}\nnot json\n{"no": "text"}\n{"text": "also good"}\n')
    (tmp_path / "e.txt.gz").write_bytes(b"not gzip")
    (tmp_path / "f.py").write_bytes(b"x" * (16 * PART + 1))
    (tmp_path / "z.txt").write_text("the last one")
    documents, aside = read(tmp_path)
    assert documents[0].text == "row 0"
    assert [d.text for d in documents[-3:]] == ["good", "also good", "the last one"]
    assert aside == {
        "a.jsonl.zst": "is truncated; copy it again",
        "b.txt": "is binary, not text",
        "c.txt": "is empty",
        "d.jsonl": "2 bad lines; the first is line 2: not JSON (Expecting value: line 1 column 1 (char 0))",
        "e.txt.gz": "is damaged (Not a gzipped file (b'no')); copy it again",
        "f.py": "is larger than 4 MiB: data rather than code",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "gbk"])
def test_text_is_decoded_by_what_it_is(tmp_path, encoding):
    """Chinese text in the encodings that Chinese files come in."""
    (tmp_path / "a.txt").write_bytes((CHINESE * 50).encode(encoding))
    assert [d.text for d in read(tmp_path)[0]] == [CHINESE * 50]


def test_invalid_utf8_becomes_replacement_characters(tmp_path):
    """Latin-1 bytes in a UTF-8 file are marked, not fatal; a multi-byte character across two reads stays whole."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 \xff and " + CHINESE.encode())
    (tmp_path / "b.txt").write_bytes(b"a" * ((1 << 20) - 1) + CHINESE.encode())
    documents, aside = read(tmp_path)
    assert documents[0].text == "caf\ufffd \ufffd and " + CHINESE
    assert "".join(d.text for d in documents[1:]).endswith("a" + CHINESE)
    assert not aside


@given(st.lists(st.sampled_from(["word ", "\n", "\n\n", "字" * 50, "x" * 5000]), max_size=300))
def test_parts_of_a_long_text_join_to_the_text(pieces):
    """Cutting loses nothing and keeps every part below twice the wanted size."""
    wanted, readers.PART = readers.PART, 1000
    try:
        cut = list(parts(iter(pieces)))
    finally:
        readers.PART = wanted
    assert "".join(cut) == "".join(pieces)
    assert all(len(part) <= 2000 for part in cut)


@pytest.mark.parametrize("name", ["absent-folder", "dmo", "https://example.org/corpus"])
def test_an_unknown_source_is_refused_by_name(name):
    """One line: what was given, and what could be."""
    with pytest.raises(
        UsageError, match=f"no such source: {name}; give a folder, a file, or one of: demo, chinese-poetry"
    ):
        open_sources([name])


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    """Asked for by name, a file without a reader is an error and not an empty corpus."""
    (tmp_path / "a.xyz").write_text("text")
    with pytest.raises(UsageError, match=r"a.xyz: no reader for this kind of file; known are .*\.txt"):
        open_sources([str(tmp_path / "a.xyz")])
