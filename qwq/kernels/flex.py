"""A layout of blocks by torch's FlexAttention (arXiv:2412.05496): forward and backward on a GPU, forward on a CPU.

Shapes: B batch, H query heads, K key/value heads, T queries, S keys, D head_dim, Q query tiles, Z block_size.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from qwq.kernels.sparse import BlockLayout, Tiles

COARSE = 128  # tokens of a block of FlexAttention's: of every tile size that its kernels are tuned to, a multiple


def takes(tiles: Tiles, queries: int) -> bool:
    """Whether FlexAttention can have these tiles: not packed, from a block's first token on, not a few tokens only."""
    fits = COARSE % tiles.block_size == 0 or tiles.block_size % COARSE == 0
    return tiles.aligned and not tiles.packed and fits and queries >= COARSE


def flex(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout) -> Tensor:
    """query [B, H, T, D], key and value [B, K, S, D] -> [B, H, T, D]; `takes` must allow the layout."""
    tiles, size, group = layout.tiles, layout.tiles.block_size, query.shape[1] // key.shape[1]
    listed, bias = _tables(layout)
    many, by_head = int(len(listed) > 1), int(listed.shape[1] > 1)
    rows, own = tiles.key_rows.expand(len(listed), -1), tiles.own[:, 0].expand(len(listed))

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row = batch * many
        there = listed[row, head // group * by_head, q // size, k // size] & (k % size < rows[row, k // size])
        return there & (k <= q + own[row] * size) if tiles.causal else there

    def added(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[batch * many, head // group * by_head, q // size, k // size]

    mask = _block_mask(listed, size, group if by_head else 1, seen, (query.shape[2], key.shape[2]))
    run: Any = _compiled() if query.is_cuda else flex_attention
    return run(query, key, value, None if bias is None else added, mask, enable_gqa=group > 1)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _tables(layout: BlockLayout) -> tuple[Tensor, Tensor | None]:
    """Which blocks every tile lists, and their bias: [B, K, Q, blocks]."""
    index, blocks = layout.index, layout.tiles.key_start.shape[1]
    if layout.bias is not None:
        index = index.expand(layout.bias.shape)
    at = index.masked_fill(index < 0, blocks)  # what is no entry goes to a column that is cut off
    shape = (*index.shape[:3], blocks + 1)
    listed = torch.zeros(shape, dtype=torch.bool, device=index.device).scatter(3, at, True)[..., :blocks]
    if layout.bias is None:
        return listed, None
    return listed, layout.bias.new_zeros(shape).scatter(3, at, layout.bias)[..., :blocks].contiguous()


def _block_mask(
    listed: Tensor, size: int, group: int, seen: Callable[..., Tensor], lengths: tuple[int, int]
) -> BlockMask:
    """The lists in blocks of COARSE tokens (or of Z where that is more): `seen` tells the pairs inside them apart."""
    fine = max(1, COARSE // size)
    padded = F.pad(listed, (0, -listed.shape[3] % fine, 0, -listed.shape[2] % fine))
    coarse = padded.unflatten(3, (-1, fine)).unflatten(2, (-1, fine)).any(5).any(3).repeat_interleave(group, 1)
    order = coarse.int().argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        coarse.sum(-1, dtype=torch.int32), order, BLOCK_SIZE=max(size, COARSE), mask_mod=seen, seq_lengths=lengths
    )
