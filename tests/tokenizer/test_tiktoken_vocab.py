"""Qwen's tiktoken files, held against the tiktoken library."""

import base64
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC

from qwq.tokenizer import Tokenizer, load_tokenizer
from qwq.tokenizer.base import without_surrogates
from qwq.tokenizer.byte_level import SPLITS
from qwq.tokenizer.fast import BYTE_OF_CHAR

tiktoken: Any = pytest.importorskip("tiktoken")


compose = NFC().normalize_str  # Python's own may know another version of Unicode


def read(content: bytes) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in content.splitlines())}


def oracle(content: bytes) -> Callable[[str], list[int]]:
    """tiktoken with these ranks and Qwen's way to cut words; Qwen composes characters (NFC) first."""
    encoding = tiktoken.Encoding("qwen", pat_str=SPLITS["qwen2"][0], mergeable_ranks=read(content), special_tokens={})
    return lambda text: encoding.encode_ordinary(compose(text))


@pytest.fixture(scope="module")
def tiny(byte_level: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen.tiktoken with the byte-level vocabulary of the other tests."""
    tokens = sorted(byte_level["model"]["vocab"], key=byte_level["model"]["vocab"].__getitem__)
    spelled = [base64.b64encode(bytes(BYTE_OF_CHAR[c] for c in token)).decode() for token in tokens]
    path = tmp_path_factory.mktemp("tiktoken") / "qwen.tiktoken"
    path.write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(spelled)))
    return path


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return load_tokenizer(tiny.parent)


@given(text=st.text(max_size=40))
@settings(deadline=None, max_examples=300)
def test_ids_are_tiktokens(tokenizer: Tokenizer, tiny: Path, text: str) -> None:
    """Its ranks, made into merge rules, give what merging by rank gives."""
    assert tokenizer.encode(text) == oracle(tiny.read_bytes())(text)
    assert tokenizer.decode(tokenizer.encode(text)) == compose(text)


def test_texts_and_code_too(tokenizer: Tokenizer, tiny: Path, corpus: list[str]) -> None:
    encode = oracle(tiny.read_bytes())
    assert tokenizer.encode_batch(corpus) == [encode(text) for text in corpus]


def test_special_tokens_follow_the_ranks(tokenizer: Tokenizer) -> None:
    """<|endoftext|>, <|im_start|>, <|im_end|>, then 205 spare ones; <|im_end|> and <|endoftext|> end a reply."""
    ranks = tokenizer.vocab_size - 208
    assert set(tokenizer.special_tokens.values()) == set(range(ranks, ranks + 208))
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>", special=True) == [ranks, ranks + 1, ranks + 2]
    assert tokenizer.eos_token_ids == (ranks + 2, ranks)
    assert not set(tokenizer.encode("<|im_start|>")) & set(tokenizer.special_tokens.values())


def test_it_is_saved_as_a_tokenizer_json(tokenizer: Tokenizer, corpus: list[str], tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode_batch(corpus) == tokenizer.encode_batch(corpus)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    text = f"<|im_start|>{corpus[1]}<|im_end|>"
    assert theirs.encode(text) == tokenizer.encode(text, special=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Qwen vocabulary, out of the PyPI package dashscope (fetched once, without its dependencies)."""
    cache = Path(os.environ.get("QWQ_CACHE_DIR", Path.home() / ".cache" / "qwq"))
    path = cache / "qwen.tiktoken"
    if not path.exists():
        folder = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        command.append("dashscope==2.0.2")
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"dashscope cannot be had: {done.stderr.strip().splitlines()[-1:]}")
        wheel = zipfile.ZipFile(io.BytesIO(next(folder.glob("*.whl")).read_bytes()))
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(wheel.read("dashscope/resources/qwen.tiktoken"))
        partial.replace(path)
    return path


def test_the_published_qwen_vocabulary(published: Path, corpus: list[str]) -> None:
    """151,643 ranks: the same ids as tiktoken on text, code, other scripts, and on what stands between."""
    tokenizer, encode = load_tokenizer(published), oracle(published.read_bytes())
    assert tokenizer.special_tokens["<|endoftext|>"] == 151643
    assert tokenizer.special_tokens["<|im_end|>"] == 151645
    scripts = ["".join(map(chr, range(start, start + 256))) for start in range(0, 0x3000, 256)]
    odd = ["a  b \t\r\n\n c", "it's IT'LL 12345", "\U0001f469\u200d\U0001f467", "e\u0301 \u1100\u1161"]
    for text in map(without_surrogates, [*corpus, *scripts, *odd]):
        assert tokenizer.encode(text) == encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == compose(text)
