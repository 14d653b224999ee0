"""Token shards: every id is there, in order, and a changed byte is found."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq.data import TokenShards, separator, tokenize
from qwq.data.documents import Document, DocumentWriter
from qwq.errors import QwqError, UsageError
from qwq.tokenizer import encode_chat

TEXTS = [
    "The cat reads the paper.",
    "今天天气很好。",
    "def f(x):\n    return x\n",
    "<|im_start|>user\nnot a control token<|im_end|>",
    "a",
]
CHAT = [{"role": "user", "content": "你好 <|im_end|>"}, {"role": "assistant", "content": "Hello there."}]


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """Documents in three languages, a dialogue, and held-out text beside them."""
    folder = tmp_path_factory.mktemp("docs")
    with DocumentWriter(folder / "documents") as writer:
        for i, text in enumerate(TEXTS):
            writer.write(Document(text, "s", language=("en", "zh", "code")[i % 3]))
        writer.write(Document("x", "s", language="zh", kind="dialogue", messages=CHAT))
    (folder / "heldout").mkdir()
    with DocumentWriter(folder / "heldout" / "en.jsonl.zst") as writer:
        writer.write(Document("held out", "s"))
    return folder


@pytest.mark.parametrize("shard_tokens", [1, 7, 1 << 26])
def test_shards_hold_every_document_with_a_separator(docs, tokenizer, tmp_path, shard_tokens):
    """Joined over any number of files: encode(text) + separator a document, the chat as the template renders it."""
    manifest = tokenize(docs, tokenizer, tmp_path / "out", shard_tokens=shard_tokens, progress=False)
    end = separator(tokenizer)
    assert end == tokenizer.special_tokens["<|endoftext|>"]
    expected = [i for text in TEXTS for i in (*tokenizer.encode(text), end)]
    expected += [*encode_chat(tokenizer, CHAT, add_generation_prompt=False), end]
    shards = TokenShards(tmp_path / "out")
    assert shards[0 : len(shards)].tolist() == expected
    assert manifest["tokens"] == len(expected) == sum(v["tokens"] for v in manifest["languages"].values())
    assert manifest["documents"] == len(TEXTS) + 1
    assert (manifest["dtype"], manifest["vocab_size"]) == ("uint16", tokenizer.vocab_size)
    assert len(manifest["shards"]) == -(-len(expected) // shard_tokens)
    assert (tmp_path / "out" / "heldout" / "en.jsonl.zst").is_file()


def test_training_shows_a_chat_as_it_is_asked_for_later(docs, tokenizer, tmp_path):
    """What the engine feeds before a reply is the beginning of what training saw; user text makes no control token."""
    tokenize(docs, tokenizer, tmp_path / "out", progress=False)
    shards = TokenShards(tmp_path / "out")
    asked = encode_chat(tokenizer, CHAT[:1], add_generation_prompt=True)
    seen = shards[
        len(shards) - 1 - len(encode_chat(tokenizer, CHAT, add_generation_prompt=False)) : len(shards)
    ].tolist()
    assert seen[: len(asked)] == asked
    assert seen.count(tokenizer.special_tokens["<|im_end|>"]) == 2


@given(data=st.data())
def test_a_stretch_over_file_borders_is_the_stretch_of_the_whole(shards_of_seven, data):
    """Any slice equals the slice of the joined array."""
    whole = np.concatenate([np.fromfile(p, np.uint16) for p in sorted(shards_of_seven.folder.glob("*.bin"))])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(0, len(whole) + 5))
    assert shards_of_seven[start:stop].tolist() == whole[start:stop].tolist()


@pytest.fixture(scope="module")
def shards_of_seven(docs, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seven") / "out"
    tokenize(docs, tokenizer, folder, shard_tokens=7, progress=False)
    return TokenShards(folder)


def test_a_large_vocabulary_takes_32_bits(docs, tmp_path):
    """Above 65,536 ids uint16 would wrap around."""

    class Large:
        vocab_size, special_tokens, eos_token_ids, bos_token_id, add_bos, chat_template = (
            70_001,
            {},
            (70_000,),
            5,
            True,
            None,
        )

        def encode_batch(self, texts):
            return [[69_999, len(text)] for text in texts]

        def token_bytes(self, token_id):
            return str(token_id).encode()

    path = tmp_path / "plain.jsonl.zst"
    with DocumentWriter(path) as writer:
        writer.write(Document("four", "s"))
    manifest = tokenize(path, Large(), tmp_path / "out", progress=False)
    assert manifest["dtype"] == "uint32"
    assert TokenShards(tmp_path / "out")[0:9].tolist() == [5, 69_999, 4, 70_000]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), r"00000.bin has [\d,]+ bytes where [\d,]+ were expected"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x7f"), "00000.bin was altered"),
        (lambda p: p.unlink(), r"00000.bin is missing; the manifest expects [\d,]+ bytes"),
        (lambda p: (p.parent / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p.parent / "manifest.json").write_text("{"), "manifest.json is not valid JSON"),
        (
            lambda p: (p.parent / "manifest.json").write_text('{"version": 99}'),
            "not a folder of token shards of version 1",
        ),
    ],
)
def test_damage_is_named_when_shards_are_opened(docs, tokenizer, tmp_path, damage, said):
    """Truncated, altered or missing: the file, what was expected and what is there."""
    tokenize(docs, tokenizer, tmp_path / "out", progress=False)
    damage(tmp_path / "out" / "00000.bin")
    with pytest.raises(QwqError, match=said):
        TokenShards(tmp_path / "out")


def test_documents_that_are_none_leave_no_shards(tokenizer, tmp_path):
    """No documents, a line without text, a folder of the user's as --out."""
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(QwqError, match="holds no document"):
        tokenize(tmp_path / "a.jsonl", tokenizer, tmp_path / "out", progress=False)
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": "x"}))
    with pytest.raises(QwqError, match=r'a.jsonl, line 1: no "text"'):
        tokenize(tmp_path / "a.jsonl", tokenizer, tmp_path / "out", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(UsageError, match="exists and is not a folder of token shards"):
        tokenize(tmp_path / "a.jsonl", tokenizer, tmp_path, progress=False)
