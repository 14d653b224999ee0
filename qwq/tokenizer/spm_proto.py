"""The few fields of sentencepiece_model.proto that matter here, read and written without a protobuf library."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# Types of piece; GGUF files number them alike.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_RULE_FILE = 6  # in the normalizer's and the denormalizer's fields


@dataclass
class SentencePieceModel:
    """pieces: (text, score, type), indexed by id."""

    pieces: list[tuple[str, float, int]]
    model_type: str = "unigram"
    normalizer: str = ""
    add_dummy_prefix: bool = True

    @classmethod
    def parse(cls, data: bytes) -> "SentencePieceModel":
        """Read a ModelProto. Raises ValueError, LookupError or struct.error where it is none."""
        model = cls([])
        for number, _, value in _read(data):
            if number == _PIECES:
                piece: dict[int, Any] = {1: b"", 2: bytes(4), 3: NORMAL} | _message(value)
                model.pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0], piece[3]))
            elif number == _TRAINER:
                model.model_type = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}[_message(value).get(3, 1)]
            elif number == _NORMALIZER:
                rules = _message(value)
                model.normalizer = rules.get(1, b"").decode()
                model.add_dummy_prefix = bool(rules.get(3, 1))
        return model


def without_file_names(data: bytes) -> bytes:
    """The ModelProto without the names of the rule files it was trained with: paths of the machine that did it."""

    def clean(number: int, wire: int, value: Any) -> tuple[int, int, Any]:
        if number in (_NORMALIZER, _DENORMALIZER):
            value = _write(field for field in _read(value) if field[0] != _RULE_FILE)
        return number, wire, value

    return _write(clean(*field) for field in _read(data))


def _message(data: bytes) -> dict[int, Any]:
    return {number: value for number, _, value in _read(data)}


def _read(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of each field of a message: an int for a varint, else bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = divmod(key, 8)
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, wire, value
            continue
        if wire == _LENGTH:
            length, at = _read_varint(data, at)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}[wire]
        yield number, wire, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _write(fields: Iterable[tuple[int, int, Any]]) -> bytes:
    out = bytearray()
    for number, wire, value in fields:
        out += _varint(number * 8 + wire)
        if wire == _VARINT:
            out += _varint(value)
        else:
            out += (_varint(len(value)) if wire == _LENGTH else b"") + value
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
