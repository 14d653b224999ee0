"""Documents in files: what is written is read again, and damage is one clear line."""

import gzip
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from qwq.data.documents import Document, DocumentWriter, read_documents, read_jsonl
from qwq.errors import QwqError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(texts=st.lists(text, min_size=1, max_size=20), turns=st.lists(text, min_size=2, max_size=4))
def test_documents_survive_writing_and_reading(tmp_path_factory, texts, turns):
    """Every field of every document comes back, line ends and odd characters included."""
    folder = tmp_path_factory.mktemp("documents")
    documents = [Document(t, "s", "MIT", "en", "web", {"n": i}, hash=f"{i:016x}") for i, t in enumerate(texts)]
    messages = [{"role": "user", "content": turn} for turn in turns]
    documents.append(Document("\n".join(turns), "s", "MIT", "zh", "dialogue", {}, messages, "f" * 16))
    with DocumentWriter(folder) as writer:
        for document in documents:
            writer.write(document)
    assert list(read_documents(folder)) == documents
    assert writer.bytes == sum(len(d.text.encode()) for d in documents)


def test_a_large_corpus_is_split_into_files_and_read_in_order(tmp_path, monkeypatch):
    """No file grows beyond its size, and reading joins them again."""
    monkeypatch.setattr("qwq.data.documents.SHARD_BYTES", 1000)
    with DocumentWriter(tmp_path / "documents") as writer:
        for i in range(50):
            writer.write(Document(f"document {i}", "s"))
    assert len(list((tmp_path / "documents").iterdir())) > 5
    assert [d.text for d in read_documents(tmp_path)] == [f"document {i}" for i in range(50)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_each_compression_reads_alike(tmp_path, suffix):
    """Plain, gzip and Zstandard, the last in several frames, hold the same documents."""
    rows = b"".join(json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(100))
    pack = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": lambda b: zstandard.compress(b[:700]) + zstandard.compress(b[700:]),
    }
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(pack[suffix](rows))
    assert [d.text for d in read_jsonl(path)] == [f"row {i}" for i in range(100)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_truncated_file_is_named(tmp_path, suffix, cut):
    """Zstandard's own stream reader takes a truncated frame for a whole one; ours does not."""
    rows = b"".join(json.dumps({"text": f"row {i * i}"}).encode() + b"\n" for i in range(5000))
    packed = (gzip.compress if suffix == ".gz" else zstandard.compress)(rows)
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(packed[: int(len(packed) * cut)])
    with pytest.raises(QwqError, match=rf"rows.jsonl{suffix} is truncated; copy it again"):
        list(read_jsonl(path))


def test_damaged_bytes_are_named(tmp_path):
    """A .zst that is none."""
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"this is not zstandard at all")
    with pytest.raises(QwqError, match="is damaged"):
        list(read_jsonl(path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{not json}", "not JSON"),
        (b'{"title": "no text here"}', 'no "text"'),
        (b'["a list"]', "a JSON object was expected, not list"),
        (b'{"text": 7}', 'no "text"'),
        (b'{"messages": [{"role": "user"}]}', '"messages" must be a list'),
        (b'{"messages": []}', '"messages" must be a list'),
        (b'{"text": "\xff\xfe"}', "not JSON"),
        (b"[" * 100_000, "."),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, said):
    """What is wrong, in which file, in which line."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(QwqError, match=rf"rows.jsonl, line 2: .*{said}"):
        list(read_jsonl(path))


def test_an_endless_line_is_refused_in_constant_memory(tmp_path, monkeypatch):
    """A line beyond the limit is damage: reading stops there."""
    monkeypatch.setattr("qwq.data.documents.MAX_LINE", 1 << 20)
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text": "' + b"a" * (8 << 20)))
    with pytest.raises(QwqError, match="a line of more than 1 MiB"):
        list(read_jsonl(path))


def test_nothing_to_read_says_what_makes_documents(tmp_path):
    """A missing path, and a folder without documents."""
    with pytest.raises(QwqError, match="does not exist; `qwq data build"):
        list(read_documents(tmp_path / "absent"))
    with pytest.raises(QwqError, match=r"holds no \.jsonl"):
        list(read_documents(tmp_path))
