"""Weights in blocks of 32 that share a scale: GGUF's Q4_0, Q4_1 and Q8_0, and the form that the decode kernel reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 16
BLOCK = 32
FORMATS = ("Q4_0", "Q4_1", "Q8_0")


@dataclass
class Quantised:
    """A matrix in blocks as they stand in a GGUF file: uint8 [rows, columns / 32, bytes a block]."""

    format: str
    blocks: Tensor

    @staticmethod
    def of(matrix: Tensor) -> "Quantised":
        """float32 [rows, columns] as Q8_0: the largest of a block becomes 127; columns are whole blocks."""
        blocks = matrix.unflatten(1, (-1, BLOCK))
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        numbers = (blocks / scales.clamp(min=1e-30)).round().to(torch.int8)
        return Quantised("Q8_0", torch.cat((scales.half().view(torch.uint8), numbers.view(torch.uint8)), dim=-1))

    @property
    def _head(self) -> int:
        """Bytes of a block before its numbers."""
        return 4 if self.format == "Q4_1" else 2

    def dequantise(self) -> Tensor:
        """float32 [rows, columns]"""
        halves = self.blocks[..., : self._head].contiguous().view(torch.float16).float()
        numbers = self.blocks[..., self._head :]
        if self.format == "Q8_0":
            numbers = numbers.contiguous().view(torch.int8)
        else:  # byte i holds the numbers i (low half) and i + 16 (high half)
            numbers = torch.cat((numbers & 15, numbers >> 4), dim=-1)
        values = numbers.float()
        if self.format == "Q4_0":
            values -= 8
        values *= halves[..., :1]
        if self.format == "Q4_1":
            values += halves[..., 1:]
        return values.flatten(1)

    @property
    def interleaved_bytes(self) -> int:
        """Size of what `interleave` writes: the blocks, and the padding of the last group."""
        rows, blocks, size = self.blocks.shape
        return -(-rows // GROUP) * GROUP * blocks * size

    def interleave(self, out: Tensor) -> None:
        """Write what kernels/decode.cpp reads: rows in groups of 16 that lie side by side, each in a lane of its own.

        `out` is uint8 [interleaved_bytes]; rows are padded with zeros. A group is scales, half [blocks, 16]; minima,
        the same (Q4_1 only); then the blocks' other bytes as words, int32 [blocks, 4 or 8, 16].
        """
        rows, blocks, size = self.blocks.shape
        source, heads = self.blocks, self._head // 2
        if rows % GROUP:
            source = torch.cat((source, source.new_zeros(-rows % GROUP, blocks, size)))
        halves = source.view(torch.int16).view(-1, GROUP, blocks, size // 2)
        groups = out.view(torch.int16).view(len(halves), -1)
        front = blocks * heads * GROUP
        groups[:, :front].view(-1, heads, blocks, GROUP).copy_(halves[..., :heads].permute(0, 3, 2, 1))
        words = halves[..., heads:].contiguous().view(torch.int32)  # [groups, 16, blocks, words]
        groups[:, front:].view(torch.int32).view(len(words), -1, GROUP).copy_(words.flatten(2).transpose(1, 2))
