"""Tiny vocabularies that the tests make themselves: trained text, a byte-level tokenizer.json, GGUF files."""

import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from qwq.tokenizer import FastTokenizer, train_sentencepiece

ENGLISH = """The river was wide and slow, and nobody in the village could remember a year when it had frozen.
"Are you coming?" she asked. "We'll be late; it's 10 o'clock already, and they've been waiting since 9:30."
He didn't answer at once. He looked at the boats, the nets, the 24 grey stones, and then he smiled.
A tokenizer cuts text into pieces that occur often, so that a model reads fewer of them.
"""
CHINESE = """河水宽阔而缓慢,村里没有人记得它哪一年结过冰。
“你来吗?”她问。“我们要迟到了,已经10点了,他们从9点半就在等。”
他没有马上回答。他看了看船、渔网和24块灰色的石头,然后笑了。
分词器把文本切成经常出现的片段,这样模型读的片段就少一些。
"""


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """English, Chinese and code."""
    return [ENGLISH, CHINESE, inspect.getsource(textwrap), inspect.getsource(json.decoder)]


@pytest.fixture(scope="session")
def trained(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    """A SentencePiece vocabulary of 1,000 ids."""
    return train_sentencepiece(corpus, 1000, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def trained_folder(trained: FastTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trained.save(folder)
    return folder


@pytest.fixture(scope="session")
def byte_level(corpus: list[str]) -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE, in Qwen's manner: two special tokens, two tags that are called ordinary.

    It is trained without cutting words, so its merges cross every border: how words are cut shows in the ids.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines = [line for text in corpus for line in text.splitlines(keepends=True)] + ["a  1234567 it's\n\n\n  x"] * 9
    inner.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    inner.add_tokens(
        [tokenizers.AddedToken("<think>", special=False), tokenizers.AddedToken("</think>", special=False)]
    )
    return json.loads(inner.to_str())


GgufWriter = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> GgufWriter:
    """Write a llama of one layer with random weights and the vocabulary given: small, and llama.cpp runs it."""

    def write(kind: str, tokens: list[str], types: list[int], **fields: Any) -> Path:
        path = tmp_path / f"{kind}-{fields.get('pre', 'spm')}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in {
            "block_count": 1,
            "context_length": 64,
            "embedding_length": 32,
            "feed_forward_length": 32,
        }.items():
            writer.add_uint32(f"llama.{key}", value)
        writer.add_uint32("llama.attention.head_count", 2)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_tokenizer_model(kind)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        add = {
            "pre": writer.add_tokenizer_pre,
            "merges": writer.add_token_merges,
            "scores": writer.add_token_scores,
            "bos": writer.add_bos_token_id,
            "eos": writer.add_eos_token_id,
            "add_bos": writer.add_add_bos_token,
            "add_space_prefix": writer.add_add_space_prefix,
            "chat_template": writer.add_chat_template,
        }
        for key, value in fields.items():
            add[key](value)
        random = np.random.default_rng(0)
        shapes = {
            "token_embd": (len(tokens), 32),
            "output_norm": (32,),
            "blk.0.attn_norm": (32,),
            "blk.0.ffn_norm": (32,),
        }
        layer = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        for name, shape in (shapes | {f"blk.0.{name}": (32, 32) for name in layer}).items():
            writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
