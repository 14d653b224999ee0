"""SentencePiece's tokenizer.model files (BPE), read into the `tokenizers` library."""

import struct
from typing import Any

import sentencepiece

from qwq.errors import QwqError
from qwq.tokenizer.chat import CHATML
from qwq.tokenizer.fast import FastTokenizer, Spec, added_token, bos_processor
from qwq.tokenizer.merges import merges_from_ranks
from qwq.tokenizer.spm_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, SentencePieceModel

SPACE = "\u2581"  # SentencePiece writes a space as this character; a literal one is escaped
ESCAPE = "\U000f2581"  # private use
ESCAPES = ((ESCAPE, ESCAPE + "0"), (SPACE, ESCAPE + "1"))  # in this order a bijection; undone in reverse order
SHOWN_TOKENS = ("<think>", "</think>")  # control tokens, but part of what a model says


def tokenizer_from_sentencepiece(model: bytes, where: str) -> FastTokenizer:
    """The tokenizer of a tokenizer.model (its content). BPE with identity normalisation; others are refused by name."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        proto = SentencePieceModel.parse(model)
    except (RuntimeError, ValueError, LookupError, struct.error) as error:
        raise QwqError(f"{where} is not a SentencePiece model, or is cut short") from error
    if proto.model_type != "bpe":
        raise QwqError(
            f"{where} is a {proto.model_type} SentencePiece model; only bpe is supported, or a tokenizer.json"
        )
    probe = f"a{ESCAPE}{SPACE}\u00c5  \uff21"
    normal = processor.normalize(probe)[1:] if proto.add_dummy_prefix else processor.normalize(probe)
    escaped = normal == escape(probe).replace(" ", SPACE)
    if not escaped and normal != probe.replace(" ", SPACE):
        raise QwqError(f"{where} changes characters before it splits ({proto.normalizer}); save a tokenizer.json of it")
    spec = sentencepiece_spec(proto.pieces, add_prefix=proto.add_dummy_prefix, escaped=escaped)
    controls = {piece: i for i, (piece, _, kind) in enumerate(proto.pieces) if kind == CONTROL}
    config: dict[str, Any] = {"unk_token": spec["model"]["unk_token"], "add_bos_token": "<s>" in controls}
    for key, name in (("bos_token", "<s>"), ("eos_token", "</s>"), ("eos_token", "<|im_end|>")):
        if name in controls:
            config[key] = name
    if "<s>" in controls:
        spec["post_processor"] = bos_processor("<s>", controls["<s>"])
    if "<|endoftext|>" in controls:
        config["pad_token"] = "<|endoftext|>"
    if "<|im_start|>" in controls:
        config["chat_template"] = CHATML
    return FastTokenizer(spec, config, sentencepiece_model=model)


def sentencepiece_spec(pieces: list[tuple[str, float, int]], *, add_prefix: bool, escaped: bool) -> Spec:
    """A tokenizer.json that does what SentencePiece does with `pieces`: (text, score, type), indexed by id."""
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    normal = sorted((i for i, (_, _, kind) in enumerate(pieces) if kind == NORMAL), key=lambda i: -pieces[i][1])
    ranks = {pieces[i][0]: rank for rank, i in enumerate(normal)}
    steering = (UNKNOWN, CONTROL, USER_DEFINED)
    added = [
        added_token(piece, i, special=kind != USER_DEFINED and piece not in SHOWN_TOKENS)
        for i, (piece, _, kind) in enumerate(pieces)
        if kind in steering
    ]
    before = [_replace(old, new) for old, new in ESCAPES] if escaped else []
    after = [_replace(new, old) for old, new in reversed(ESCAPES)] if escaped else []
    prefix: list[Spec] = [{"type": "Prepend", "prepend": SPACE}] if add_prefix else []
    strip: list[Spec] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_prefix else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*before, *prefix, _replace(" ", SPACE)]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [_replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *after, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((piece for piece, _, kind in pieces if kind == UNKNOWN), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(kind == BYTE for _, _, kind in pieces),
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges_from_ranks(ranks, ranks),
        },
    }


def escape(text: str) -> str:
    """Text in which U+2581 does not occur, from which the replacements, undone in reverse order, get `text` back."""
    for old, new in ESCAPES:
        text = text.replace(old, new)
    return text


def _replace(old: str, new: str) -> Spec:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}
