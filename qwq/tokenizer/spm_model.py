"""SentencePiece's tokenizer.model files (BPE), read into the `tokenizers` library."""

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sentencepiece

from qwq.errors import QwqError
from qwq.tokenizer.chat import CHATML
from qwq.tokenizer.fast import FastTokenizer, Spec, added_token
from qwq.tokenizer.merges import merges_from_ranks

SPACE = "\u2581"  # SentencePiece writes a space as this character; a literal one is escaped
ESCAPE = "\U000f2581"  # private use
ESCAPES = ((ESCAPE, ESCAPE + "0"), (SPACE, ESCAPE + "1"))  # in this order a bijection; undone in reverse order
SHOWN_TOKENS = ("<think>", "</think>")  # control tokens, but part of what a model says
UNKNOWN = "<unk>"
# Types of piece, as sentencepiece_model.proto and GGUF number them.
NORMAL, UNKNOWN_TYPE, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def tokenizer_from_sentencepiece(model: bytes, where: str) -> FastTokenizer:
    """The tokenizer of a tokenizer.model (its content). BPE with identity normalisation; others are refused by name."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        proto = _Proto.parse(model)
    except (RuntimeError, ValueError, struct.error) as error:
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
    controls = {piece for piece, _, kind in proto.pieces if kind == CONTROL}
    config: dict[str, Any] = {"unk_token": UNKNOWN, "model_max_length": int(1e30)}
    for name in controls & {"<s>", "</s>", "<|im_end|>"}:
        config["bos_token" if name == "<s>" else "eos_token"] = name
    if escaped:
        config |= {"pad_token": "<|endoftext|>", "chat_template": CHATML}
    return FastTokenizer(spec, config | {"add_bos_token": "bos_token" in config}, sentencepiece_model=model)


def sentencepiece_spec(pieces: list[tuple[str, float, int]], *, add_prefix: bool, escaped: bool) -> Spec:
    """A tokenizer.json that does what SentencePiece does with `pieces`: (text, score, type), indexed by id."""
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    normal = sorted((i for i, (_, _, kind) in enumerate(pieces) if kind == NORMAL), key=lambda i: -pieces[i][1])
    ranks = {pieces[i][0]: rank for rank, i in enumerate(normal)}
    steering = (UNKNOWN_TYPE, CONTROL, USER_DEFINED)
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
        "pre_tokenizer": _borders(ranks),
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [_replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *after, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((piece for piece, _, kind in pieces if kind == UNKNOWN_TYPE), None),
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
    """Text in which U+2581 does not occur, from which `unescape` gets `text` back: a bijection onto what it returns."""
    for old, new in ESCAPES:
        text = text.replace(old, new)
    return text


def _replace(old: str, new: str) -> Spec:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _borders(pieces: Iterable[str]) -> Spec | None:
    """Cuts before runs of spaces and after runs of line ends, where no piece crosses them: same ids, and words that
    the library can cache. None where a piece does cross."""
    if any(re.search(f"[^{SPACE}]{SPACE}|\n[^\n]", piece) for piece in pieces):
        return None
    words = f"{SPACE}*[^{SPACE}\n]*\n+|{SPACE}*[^{SPACE}\n]+|{SPACE}+"
    return {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}


@dataclass
class _Proto:
    """What is read of a ModelProto (sentencepiece_model.proto); the numbers below are its field numbers."""

    pieces: list[tuple[str, float, int]]
    model_type: str = "unigram"
    normalizer: str = ""
    add_dummy_prefix: bool = True

    @classmethod
    def parse(cls, data: bytes) -> "_Proto":
        proto = cls([])
        for field, value in _fields(data):
            if field == 1:
                piece: dict[int, int | bytes] = {1: b"", 2: bytes(4), 3: NORMAL}
                piece |= dict(_fields(_as_bytes(value)))
                score = struct.unpack("<f", _as_bytes(piece[2]))[0]
                proto.pieces.append((_as_bytes(piece[1]).decode(), score, _as_int(piece[3])))
            elif field == 2:
                kind = dict(_fields(_as_bytes(value))).get(3, 1)
                proto.model_type = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}[_as_int(kind)]
            elif field == 3:
                rules = dict(_fields(_as_bytes(value)))
                proto.normalizer = _as_bytes(rules.get(1, b"")).decode()
                proto.add_dummy_prefix = bool(rules.get(3, 1))
        return proto


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message: an int, or the bytes of what is longer."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        field, wire = divmod(varint(), 8)
        if wire == 0:
            yield field, varint()
            continue
        length = {1: 8, 5: 4}.get(wire)
        if length is None:
            if wire != 2:
                raise ValueError(f"protobuf wire type {wire}")
            length = varint()
        yield field, data[at : at + length]
        at += length


def _as_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a protobuf message has a number")
    return value


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a protobuf message has bytes")
    return value
