"""Weights in blocks of 32 that share a scale: GGUF's Q4_0, Q4_1 and Q8_0, and the form that the decode kernel reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK, GROUP = 32, 16
_HALVES = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}  # half-precision numbers at the front of a block: scale, and minimum
FORMATS = tuple(_HALVES)


@dataclass
class Quantised:
    """A matrix in blocks as they stand in a GGUF file: uint8 [rows, columns / 32, bytes a block]."""

    format: str
    blocks: Tensor

    def _parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Numbers [rows, blocks, 32] (uint8, Q8_0 int8), scales and minima [rows, blocks] (half)."""
        head = 2 * _HALVES[self.format]
        halves = self.blocks[..., :head].contiguous().view(torch.float16)
        numbers = self.blocks[..., head:]
        if self.format == "Q8_0":
            numbers = numbers.contiguous().view(torch.int8)
        else:  # byte i holds the numbers i (low half) and i + 16 (high half)
            numbers = torch.cat((numbers & 15, numbers >> 4), dim=-1)
        return numbers, halves[..., 0], halves[..., 1] if head == 4 else None

    def dequantise(self) -> Tensor:
        """float32 [rows, columns]"""
        numbers, scales, minima = self._parts()
        values = numbers.float() - (8 if self.format == "Q4_0" else 0)
        values *= scales.float()[..., None]
        if minima is not None:
            values += minima.float()[..., None]
        return values.flatten(1)

    def interleaved(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What kernels/decode.cpp reads, 16 rows side by side so that each has a lane of its own; rows padded with zeros:

        words, int32 [rows / 16, blocks, 4 or 8, 16], where a word holds 8 or 4 neighbouring weights, the first in its
        lowest bits; scales and minima, half [rows / 16, blocks, 16].
        """
        bits = 8 if self.format == "Q8_0" else 4
        numbers, *halves = self._parts()
        rows, blocks, _ = numbers.shape
        missing = -rows % GROUP

        def grouped(x: Tensor) -> Tensor:  # [rows, ...] -> [rows / 16, ..., 16]
            x = torch.cat((x, x.new_zeros(missing, *x.shape[1:])))
            return x.unflatten(0, (-1, GROUP)).movedim(1, -1).contiguous()

        each = 32 // bits
        numbers = numbers.view(torch.uint8).view(rows, blocks, BLOCK // each, each)
        words = torch.zeros(numbers.shape[:-1], dtype=torch.int32)
        for i in range(each):
            words |= numbers[..., i].int() << bits * i
        scales, minima = (None if half is None else grouped(half) for half in halves)
        assert scales is not None
        return grouped(words), scales, minima
