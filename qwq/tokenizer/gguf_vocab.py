"""The vocabulary inside a GGUF file."""

from pathlib import Path
from typing import Any

import gguf

from qwq.errors import QwqError
from qwq.tokenizer.byte_level import SPLITS, byte_level_spec
from qwq.tokenizer.fast import FastTokenizer, added_token, bos_processor
from qwq.tokenizer.spm_model import sentencepiece_spec
from qwq.tokenizer.spm_proto import CONTROL, UNKNOWN, USER_DEFINED


def tokenizer_from_gguf(source: Path | gguf.GGUFReader) -> FastTokenizer:
    """The tokenizer of a GGUF file, or of a reader that is open already: byte-level BPE ("gpt2") or SentencePiece
    ("llama"). Raises QwqError that names a kind of vocabulary or of word splitting that is not known."""
    if isinstance(source, gguf.GGUFReader):
        reader = source
    else:
        try:
            reader = gguf.GGUFReader(source)
        except (ValueError, IndexError, OSError) as error:
            raise QwqError(f"{source} is not a GGUF file, or is cut short: {error}") from error

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(f"tokenizer.{name}")
        return default if found is None else found.contents()

    kind = field("ggml.model")
    tokens: list[str] = field("ggml.tokens", [])
    if kind not in ("gpt2", "llama") or not tokens:
        raise QwqError(f"the GGUF file has a vocabulary of kind {kind!r}; supported are 'gpt2' and 'llama'")
    types: list[int] = field("ggml.token_type", [1] * len(tokens))
    pre = field("ggml.pre", "default")
    if kind == "llama":
        scores: list[float] = field("ggml.scores", [0.0] * len(tokens))
        pieces = list(zip(tokens, scores, types, strict=True))
        spec = sentencepiece_spec(pieces, add_prefix=field("ggml.add_space_prefix", True), escaped=False)
    elif pre not in SPLITS:
        raise QwqError(f"the GGUF file splits words by {pre!r} (tokenizer.ggml.pre); known are: {', '.join(SPLITS)}")
    else:
        # The first space that is not the first character parts a merge: a token may be a space itself.
        merges = [(m[: (cut := m.index(" ", 1))], m[cut + 1 :]) for m in field("ggml.merges", [])]
        steering = (CONTROL, USER_DEFINED, UNKNOWN)
        added = [
            added_token(t, i, special=types[i] != USER_DEFINED) for i, t in enumerate(tokens) if types[i] in steering
        ]
        vocab = {token: i for i, token in enumerate(tokens)}
        llama3 = SPLITS[pre] == SPLITS["llama-bpe"]
        spec = byte_level_spec(vocab, merges, added, SPLITS[pre], whole_words=llama3)

    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: field(f"ggml.{key}_token_id") for name, key in named.items()}
    config: dict[str, Any] = {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    adds_bos = kind == "llama" or SPLITS[pre] == SPLITS["llama-bpe"]
    config["add_bos_token"] = bool(field("ggml.add_bos_token", adds_bos))
    config["chat_template"] = field("chat_template")
    turn_ends = (field(f"ggml.{key}_token_id") for key in ("eot", "eom"))
    if config["add_bos_token"] and "bos_token" in config:
        spec["post_processor"] = bos_processor(config["bos_token"], ids["bos_token"])
    return FastTokenizer(spec, config, eos_token_ids=tuple(i for i in turn_ends if i is not None))
