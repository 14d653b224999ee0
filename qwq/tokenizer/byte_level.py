"""Byte-level BPE vocabularies as pipelines: the splitting rules of published families, and tiktoken files."""

import base64
import binascii
from pathlib import Path
from typing import Any

from qwq.errors import QwqError
from qwq.tokenizer.fast import CHAR_OF_BYTE, FastTokenizer, Spec, added_token
from qwq.tokenizer.merges import merges_from_ranks

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How each family cuts text into words before merging: patterns applied one after the other. The names are those that
# GGUF files carry in tokenizer.ggml.pre; the patterns are the ones that the families' own tokenizers publish.
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_CL100K % "",),
    "llama-bpe": (_CL100K % "{1,3}",),
}
SPLITS["deepseek-r1-qwen"] = SPLITS["qwen2"]
SPLITS["llama3"] = SPLITS["llama-v3"] = SPLITS["llama-bpe"]


def byte_level_spec(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    added: list[Spec],
    splits: tuple[str, ...],
    *,
    whole_words: bool,
) -> Spec:
    """A tokenizer.json of byte-level BPE. `whole_words`: a word that is a token is taken without merging."""
    words = [{"type": "Split", "pattern": {"Regex": s}, "behavior": "Isolated", "invert": False} for s in splits]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        # Qwen composes characters (NFC) before it looks at them; the others take text as it is.
        "normalizer": {"type": "NFC"} if splits == SPLITS["qwen2"] else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*words, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": vocab,
            "merges": merges,
        },
    }


def tokenizer_from_tiktoken(path: Path) -> FastTokenizer:
    """The tokenizer of a Qwen `qwen.tiktoken`: lines of a token in base64 and its rank, special tokens behind them."""
    if not path.name.startswith("qwen"):
        raise QwqError(
            f"{path}: only Qwen's tiktoken files (qwen*.tiktoken) are known; others do not say how they split words"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise QwqError(f"{path}, line {number}: expected a token in base64 and its rank") from error
    if len(set(ranks.values())) < max(256, len(ranks)) or any(bytes([b]) not in ranks for b in range(256)):
        raise QwqError(f"{path} is cut short or damaged: it must hold each of the 256 bytes, and each rank once")
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    added = [added_token(name, i) for i, name in enumerate(names, start=max(ranks.values()) + 1)]
    spec = byte_level_spec(
        {_write(token): rank for token, rank in ranks.items()},
        [(_write(a), _write(b)) for a, b in merges_from_ranks(ranks, sorted(ranks, key=ranks.__getitem__))],
        added,
        SPLITS["qwen2"],
        whole_words=True,
    )
    config: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
    return FastTokenizer(spec, config)


def _write(token: bytes) -> str:
    return "".join(CHAR_OF_BYTE[byte] for byte in token)
