"""Vocabularies inside GGUF files, held against llama.cpp itself."""

import inspect
import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwq.errors import QwqError
from qwq.tokenizer import FastTokenizer, load_tokenizer
from qwq.tokenizer.byte_level import SPLITS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEXTS = [
    "Hello, world!  It's 10 o'clock; WE'LL see them'd?",
    " leading, trailing \n\n\n  x \t\r\n\r\n y\u3000z",
    "1234567 12 3456 ½ ² ٣ x1y22z333",
    "河水宽阔而缓慢,村里没有人记得。“你来吗?”",
    "def f(x):\n    return x ** 2  # $a <= ^b ~ |c\n\n\tif (a):\n        pass",
    "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea caf\u00e9 \u0e2a\u0e27\u0e31\u0e2a \u2581\u2581",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n",
    "",
]


@pytest.fixture
def bpe_gguf(byte_level: dict[str, Any], write_gguf: Callable[..., Path]) -> Callable[..., Path]:
    """A GGUF file with the byte-level vocabulary of the other tests."""

    def write(pre: str, **fields: Any) -> Path:
        added = {token["id"]: token for token in byte_level["added_tokens"]}
        vocab = {i: token for token, i in byte_level["model"]["vocab"].items()}
        vocab |= {i: token["content"] for i, token in added.items()}
        types = [NORMAL] * len(vocab)
        for i, token in added.items():
            types[i] = CONTROL if token["special"] else USER_DEFINED
        merges = [" ".join(merge) for merge in byte_level["model"]["merges"]]
        tokens = [vocab[i] for i in range(len(vocab))]
        return write_gguf("gpt2", tokens, types, pre=pre, merges=merges, bos=1200, eos=1202, **fields)

    return write


@pytest.fixture
def spm_gguf(corpus: list[str], write_gguf: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A GGUF file with a SentencePiece vocabulary in Llama's manner."""
    import sentencepiece

    model = tmp_path / "spm.model"
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([line for text in corpus for line in text.splitlines()]),
            **{"model_writer": file, "model_type": "bpe", "vocab_size": 900, "byte_fallback": True, "minloglevel": 2},
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = range(processor.get_piece_size())

    def kind(i: int) -> int:
        if processor.is_byte(i):
            return BYTE
        return UNKNOWN if processor.is_unknown(i) else CONTROL if processor.is_control(i) else NORMAL

    def write(**fields: Any) -> Path:
        pieces, scores = [processor.id_to_piece(i) for i in ids], [processor.get_score(i) for i in ids]
        return write_gguf("llama", pieces, [kind(i) for i in ids], scores=scores, bos=1, eos=2, **fields)

    return write


@contextmanager
def llama_cpp(path: Path) -> Iterator[Callable[..., list[int]]]:
    """llama.cpp with this file, as a function from text to ids. Its server listens on a free port of this machine."""
    xllamacpp = pytest.importorskip("xllamacpp")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.warmup = str(path), port, 64, False
    server = xllamacpp.Server(params)

    def tokenize(text: str, **options: bool) -> list[int]:
        body = json.dumps({"content": text} | options).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/tokenize", body, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["tokens"]

    yield tokenize
    del server


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_words_are_cut_as_llama_cpp_cuts_them(pre: str, bpe_gguf: Callable[..., Path]) -> None:
    """Each known kind of splitting, on English, Chinese, numbers, code, emoji, and control tokens."""
    path = bpe_gguf(pre)
    ours = load_tokenizer(path)
    with llama_cpp(path) as tokenize:
        for text in TEXTS:
            assert ours.encode(text, special=True) == tokenize(text, parse_special=True, add_special=False)
        assert ours.encode_prompt("a") == tokenize("a", add_special=True)


@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_sentencepiece_vocabulary_gives_llama_cpps_ids(add_space_prefix: bool, spm_gguf: Callable[..., Path]) -> None:
    path = spm_gguf(add_space_prefix=add_space_prefix)
    ours = load_tokenizer(path)
    with llama_cpp(path) as tokenize:
        for text in [*TEXTS, "<s>a</s> b</s>"]:
            assert ours.encode(text, special=True) == tokenize(text, parse_special=True, add_special=False)
        assert ours.encode_prompt("a") == tokenize("a", add_special=True)
    for text in TEXTS[:5]:
        assert ours.decode(ours.encode(text)) == text


def test_tokens_of_a_gguf_take_their_roles(bpe_gguf: Callable[..., Path], tmp_path: Path) -> None:
    """End tokens, the template, tags; and what is saved from it loads as the same tokenizer."""
    ours = load_tokenizer(bpe_gguf("qwen2", chat_template="{{ messages }}", add_bos=False))
    assert ours.eos_token_ids == (1202, 1200)
    assert (ours.bos_token_id, ours.add_bos, ours.chat_template) == (1200, False, "{{ messages }}")
    assert ours.encode("<|im_end|><think>", special=True) == [1202, 1203]
    assert not {1202, 1203} & set(ours.encode("<|im_end|><think>"))
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.eos_token_ids == ours.eos_token_ids
    assert [again.encode(text, special=True) for text in TEXTS] == [ours.encode(text, special=True) for text in TEXTS]
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [theirs.encode(text) for text in TEXTS] == [ours.encode(text, special=True) for text in TEXTS]


def test_an_unknown_kind_of_splitting_is_refused_by_name(bpe_gguf: Callable[..., Path]) -> None:
    with pytest.raises(QwqError, match=r"'tekken'.*known are: default, gpt-2"):
        load_tokenizer(bpe_gguf("tekken"))


def test_an_unknown_kind_of_vocabulary_is_refused_by_name(write_gguf: Callable[..., Path]) -> None:
    with pytest.raises(QwqError, match="'bert'"):
        load_tokenizer(write_gguf("bert", ["a"], [1]))


def test_a_reader_that_is_open_already_will_do(bpe_gguf: Callable[..., Path]) -> None:
    """A checkpoint reads the same file: it need not be parsed twice."""
    import gguf

    from qwq.tokenizer import tokenizer_from_gguf

    path = bpe_gguf("smollm")
    tokenizer = tokenizer_from_gguf(gguf.GGUFReader(path))
    assert isinstance(tokenizer, FastTokenizer)
    source = inspect.getsource(inspect)[:5000]
    assert tokenizer.encode(source) == load_tokenizer(path).encode(source)
