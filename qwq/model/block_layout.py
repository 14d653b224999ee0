"""Which blocks of keys a block of queries sees: four producers of indices, one layout.

Shapes: B batch (1 where all rows are alike), K key/value heads, Q query tiles, N entries of a list, S keys.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from qwq.kernels.sparse import Tiles


@dataclass(frozen=True)
class Local:
    """The blocks that hold the last `window` tokens of every query (Longformer, arXiv:2004.05150), and as many after
    it where order is free."""

    window: int


@dataclass(frozen=True)
class Global:
    """The blocks of the first `tokens` tokens, and those with a marked token: all see them, and where order is free
    they see all (BigBird, arXiv:2007.14062)."""

    tokens: int


@dataclass(frozen=True)
class Random:
    """`blocks` drawn blocks, from a hash of (seed, layer, head, query block), so that every call draws the same."""

    blocks: int
    seed: int = 0


@dataclass(frozen=True)
class Learnable:
    """The `top_k` blocks that a gate ranks first (sparsity.py)."""

    top_k: int


_PARTS: dict[str, type] = {part.__name__.lower(): part for part in (Local, Global, Random, Learnable)}


def cut(
    starts: list[int],
    queries: int,
    lengths: Tensor,
    keys: int,
    block_size: int,
    *,
    causal: bool,
    padded: bool,
    name: tuple | None = None,
) -> Tiles:
    """One document a row: row b has `queries` tokens from position starts[b] on, and lengths[b] of the `keys` keys.

    `padded`: only the first lengths[b] queries are there, too. What is alike in all rows may be given as one.
    """
    size = block_size
    begin = torch.tensor(starts, device=lengths.device)[:, None]
    end = lengths[:, None] if padded else begin + queries
    count = max((s % size + queries + size - 1) // size for s in starts)
    own = begin // size + torch.arange(count, device=lengths.device)
    begun = (begin - own * size).clamp(min=0)
    start = own * size + begun - begin
    key_start = torch.arange(0, keys, size, device=lengths.device)[None]
    return Tiles(
        block_size=size,
        causal=causal,
        packed=False,
        aligned=not padded and all(s % size == 0 for s in starts),
        start=start,
        rows=(torch.minimum((own + 1) * size, end) - begin - start).clamp(min=0),
        begun=begun,
        own=own,
        first=torch.zeros_like(own),
        total=((lengths + size - 1) // size)[:, None].expand(-1, count),
        key_start=key_start,
        key_rows=(lengths[:, None] - key_start).clamp(0, size),
        name=name,
    )


def cut_packed(
    boundaries: list[int], key_boundaries: list[int], block_size: int, causal: bool, device: torch.device
) -> Tiles:
    """Documents one after the other: document i asks [boundaries[i], boundaries[i + 1]) of its own keys."""
    start, rows, own, document = _cut(boundaries, block_size, device)
    key_start, key_rows, _, key_document = _cut(key_boundaries, block_size, device)
    total = key_document.bincount(minlength=len(boundaries) - 1)
    first = total.cumsum(0) - total
    return Tiles(
        block_size=block_size,
        causal=causal,
        packed=True,
        aligned=False,
        start=start[None],
        rows=rows[None],
        begun=torch.zeros_like(own)[None],
        own=own[None],
        first=first[document][None],
        total=total[document][None],
        key_start=key_start[None],
        key_rows=key_rows[None],
    )


def _cut(boundaries: list[int], size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First token, tokens, number in the document and document of every block, all [blocks]."""
    begin = torch.tensor(boundaries[:-1], device=device)
    counts = torch.tensor([(b - a + size - 1) // size for a, b in pairwise(boundaries)], device=device)
    document = torch.arange(len(counts), device=device).repeat_interleave(counts)
    own = torch.arange(len(document), device=device) - (counts.cumsum(0) - counts)[document]
    start = begin[document] + own * size
    end = torch.tensor(boundaries[1:], device=device)[document]
    return start, (end - start).clamp(max=size), own, document


@dataclass(frozen=True)
class AttentionPattern:
    """A union of `Local`, `Global`, `Random` and `Learnable`, in blocks of `block_size` tokens.

    A query sees a key if its block has the key's block in its list; under a causal mask, keys up to its own. The block
    of the query itself is always in the list; in cross-attention that is the block at the same place of the source,
    or its last.
    """

    parts: tuple[Local | Global | Random | Learnable, ...]
    block_size: int

    @classmethod
    def parse(cls, text: str, block_size: int) -> "AttentionPattern":
        """From a string such as "local(256)+global(64)+random(2, 7)+learnable(4)"; `str()` gives it back."""
        parts = []
        for piece in text.split("+"):
            found = re.fullmatch(r"\s*(\w+)\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)\s*", piece)
            part = _PARTS.get(found[1]) if found else None
            if found is None or part is None or int(found[2]) < 1 or (found[3] is not None and part is not Random):
                raise ValueError(
                    f"attention_patterns: {text!r} is neither 'dense' nor a sum such as "
                    f"'local(256)+global(64)+random(2)+learnable(4)': {piece.strip()!r}"
                )
            parts.append(part(*(int(number) for number in found.groups()[1:] if number is not None)))
        return cls(tuple(parts), block_size)

    def __str__(self) -> str:
        def one(part: Local | Global | Random | Learnable) -> str:
            numbers = [str(n) for n in vars(part).values()]
            return f"{type(part).__name__.lower()}({', '.join(numbers if numbers[-1] != '0' else numbers[:1])})"

        return "+".join(one(part) for part in self.parts)

    @property
    def top_k(self) -> int:
        """How many blocks a gate chooses for every query block."""
        return sum(part.top_k for part in self.parts if isinstance(part, Learnable))

    @property
    def global_blocks(self) -> int:
        """How many of a document's first blocks are global."""
        size = self.block_size
        return max((-(-part.tokens // size) for part in self.parts if isinstance(part, Global)), default=0)

    def fixed(self, tiles: Tiles, layer: int, heads: int, marked: Tensor | None = None) -> Tensor:
        """The lists without what a gate adds: key blocks [B, heads, Q, N], the tile's own first, -1 for no entry.

        `marked` [B, blocks] is True for key blocks that are global because of a token in them.
        """
        centre = torch.minimum(tiles.own, tiles.total - 1)[:, None, :, None]  # [B, 1, Q, 1]
        limit, device = tiles.limit[:, None, :, None], tiles.own.device
        found = []
        for part in self.parts:
            if isinstance(part, Local):
                reach = (part.window + self.block_size - 2) // self.block_size
                steps = torch.arange(1, reach + 1, device=device)
                found += [centre - steps] if tiles.causal else [centre - steps, centre + steps]
            elif isinstance(part, Global):
                found.append(torch.arange(self.global_blocks, device=device).expand(*centre.shape[:3], -1))
            elif isinstance(part, Random):
                found.append(_draw(part, layer, heads, tiles.own[:, None, :, None]) % limit.clamp(min=1))
        if marked is not None:
            found.append(_numbers(marked)[:, None, None] - tiles.first[:, None, :, None])
        index = torch.cat([i.expand(-1, heads, -1, -1) for i in (*found, centre[..., :0])], -1)
        index = index.masked_fill((index < 0) | (index >= limit) | (index == centre), -1).sort(-1).values
        again = index[..., 1:] == index[..., :-1]
        index[..., 1:] = index[..., 1:].masked_fill(again, -1)
        index = torch.cat((centre.expand(-1, heads, -1, -1), index), -1)
        return torch.where(index < 0, -1, index + tiles.first[:, None, :, None])


def everything(tiles: Tiles) -> Tensor:
    """Lists with every block of the document that the tile may see: [B, 1, Q, largest document]."""
    end = tiles.own + 1 if tiles.causal else tiles.total
    index = torch.arange(int(end.max()), device=end.device).expand(*end.shape, -1)
    return torch.where(index < end[..., None], index + tiles.first[..., None], -1)[:, None]


def _numbers(marked: Tensor) -> Tensor:
    """[B, blocks] -> [B, most in a row]: the numbers of the marked ones; what is missing is far below zero."""
    numbers = torch.arange(marked.shape[1], device=marked.device).expand_as(marked)
    most = int(marked.sum(1).max())
    return torch.where(marked, numbers, -(2**40)).sort(-1, descending=True).values[:, :most]


def _draw(part: Random, layer: int, heads: int, block: Tensor) -> Tensor:
    """Hashes in [0, 2^32) of (seed, layer, head, block, which): block [B, 1, Q, 1] -> [B, heads, Q, part.blocks]."""
    head = torch.arange(heads, device=block.device)[:, None, None]
    which = torch.arange(part.blocks, device=block.device)
    mixed = _mix(_mix(torch.tensor(part.seed, device=block.device)) + layer)
    return _mix(_mix(_mix(mixed + head) + block) + which)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers, every bit of which depends on all (constants: C. Wellons' hash prospector)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    return x ^ (x >> 15)
