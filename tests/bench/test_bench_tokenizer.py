"""The same text for every vocabulary, held out from training; encoders that give the same ids."""

import base64
import json

import pytest

from qwq.bench import data, tokenizer
from qwq.tokenizer import load_tokenizer
from qwq.tokenizer.fast import BYTE_OF_CHAR

TEXTS = [f"The {i}th page of the old book says that {word} is not {other}.\n为什么第{i}页写着{word}？\n" for i, (word, other) in enumerate((a, b) for a in ("water", "stone", "水", "石头", "wood", "paper") for b in ("fire", "air", "火", "风", "earth"))]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of 30 texts."""
    share, folder = tmp_path_factory.mktemp("share"), tmp_path_factory.mktemp("bench")
    (share / "texts.jsonl").write_text("".join(json.dumps({"text": text * 3}) + "\n" for text in TEXTS))
    data.prepare(folder, (str(share / "texts.jsonl"),), share)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return tokenizer.train(tokenizer.split(folder)[0], folder / "tokenizer", 420)


def test_held_out_texts_are_not_trained_on(folder):
    """Each text is on one side, a sixteenth or so on the held-out one, and again the same."""
    training, heldout = tokenizer.split(folder)
    held = [text for texts in heldout.values() for text in texts]
    assert not set(training) & set(held)
    assert len(training) + len(held) == len(TEXTS)
    assert (training, heldout) == tokenizer.split(folder)


def test_training_is_timed_once(folder, trained):
    """The time stands beside the vocabulary it belongs to."""
    own, took = trained
    assert own.vocab_size == took["vocab_size"] == 420
    assert took["bytes"] > 1000
    assert tokenizer.train([], folder / "tokenizer")[1] == took


def test_bytes_per_token_counts_utf8(trained):
    """Two characters of three bytes as two tokens are three bytes a token."""
    assert tokenizer.bytes_per_token(lambda texts: [[1] * len(text) for text in texts], ["中文", "ab"]) == 2
    assert 1 < tokenizer.bytes_per_token(trained[0].encode_batch, TEXTS) < 10


def test_encoders_that_race_give_the_same_ids(trained, tmp_path):
    """A rate for each contender in each round, over one and the same work."""
    plain = tokenizer._plain(trained[0], tmp_path / "plain")
    assert plain(TEXTS) == trained[0].encode_batch(TEXTS)
    rates = tokenizer.speeds(trained[0].encode_batch, {"tokenizers": plain}, TEXTS, 2)
    assert {name: len(values) for name, values in rates.items()} == {"ours": 2, "tokenizers": 2}
    bytes_alone = sorted(BYTE_OF_CHAR.values())
    path = tmp_path / "qwen.tiktoken"
    path.write_text("".join(f"{base64.b64encode(bytes([b])).decode()} {rank}\n" for rank, b in enumerate(bytes_alone)))
    assert tokenizer._tiktoken(path, 2)(TEXTS) == load_tokenizer(tmp_path).encode_batch(TEXTS)
