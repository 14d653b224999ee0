"""Sparse attention: every layer's pattern, and the gate that learns which blocks to read.

Shapes: B batch, H query heads, K key/value heads, T new tokens, S tokens seen, D head_dim, Dv width of a value head,
Q query tiles, N entries of a list, Z block_size.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qwq.kernels.linear import Linear
from qwq.kernels.sparse import BlockLayout, Choice, Tiles, attend, blocks, query_tiles
from qwq.model.block_layout import AttentionPattern, cut, cut_packed, everything
from qwq.model.config import ModelConfig

if TYPE_CHECKING:
    from qwq.model.attention import Tokens


class SparseAttention(nn.Module):
    """Every query sees the blocks of keys that the layer's pattern lists for its block. Called as `DenseAttention` is.

    `Learnable` scores every other block by q^T (1 + W) k: q stands for the query block, k is the other's mean key, and
    W, the gate, is one map for all heads (SeerAttention, arXiv:2410.13276, has one on each side). The `top_k` best are
    added. log(sigmoid(score)) is added to the logits of a block that is there by that alone: so the gate learns.

    What stands for a query block must not look ahead where order counts: it is then the block's first query (mean over
    the group's heads), else the mean of all its queries. Keys are pooled after the rotary turn, as the cache has them.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.pattern = AttentionPattern.parse(config.attention_pattern(layer), config.attention_block_size)
        if self.pattern.top_k:
            self.gate = Linear(config.head_dim, config.head_dim, bias=False)
        self.newest: tuple = (None, None)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, tokens: "Tokens", key_boundaries: list[int] | None = None
    ) -> Tensor:
        """query [B, H, T, D], key [B, K, S, D], value [B, K, S, Dv] -> [B, H, T, Dv]"""
        tiles = cut_tokens(query, key, tokens, key_boundaries, self.pattern.block_size)
        if tiles is None:
            raise ValueError("attention_mask: sparse attention wants the padding after the tokens of a row")
        marked = None
        if tokens.marked is not None and self.pattern.global_blocks:
            marked = _marked_blocks(tokens.marked, tiles)
        layout, choice = BlockLayout(tiles, self.fixed(tiles, key.shape[1], marked)), None
        if self.pattern.top_k:
            asked, pooled = self.summaries(query, key, tokens, tiles)
            choice = Choice(asked, pooled, self.gate.weight, self.pattern.top_k)
        if tiles.causal or tokens.memory is not None or not self.pattern.global_blocks:
            return attend(query, key, value, layout, choice)
        # A global tile of an encoder has a list as long as the document: it is computed apart.
        wide = tiles.own < self.pattern.global_blocks  # [B, Q]
        if marked is not None:
            wide = wide | marked.gather(1, (tiles.first + tiles.own).expand(len(marked), -1))
        some, rest = wide.any(0), ~wide.all(0)
        tall = replace(tiles, rows=tiles.rows * wide).take(some)
        out = attend(query, key, value, BlockLayout(tall, everything(tall)))
        if bool(rest.any()):
            others = replace(tiles, rows=tiles.rows * ~wide).take(rest)
            if choice is not None:
                choice = replace(choice, asked=choice.asked[:, :, rest])
            out = out + attend(query, key, value, BlockLayout(others, layout.index[:, :, rest]), choice)
        return out

    def fixed(self, tiles: Tiles, heads: int, marked: Tensor | None) -> Tensor:
        """What the pattern lists without the gate; the newest is kept, as most calls are like the one before."""
        name = (tiles.name, tiles.own.device, torch.is_inference_mode_enabled())
        if tiles.name is None or marked is not None:
            return self.pattern.fixed(tiles, self.layer, heads, marked)
        if self.newest[0] != name:
            self.newest = name, self.pattern.fixed(tiles, self.layer, heads)
        return self.newest[1]

    def summaries(self, query: Tensor, key: Tensor, tokens: "Tokens", tiles: Tiles) -> tuple[Tensor, Tensor]:
        """What stands for every tile of queries [B, K, Q, D] and for every block of keys [B, K, blocks, D]."""
        cache, memory, heads = tokens.cache, tokens.memory, key.shape[1]
        if memory is None and cache is not None:
            pooled = cache.pool(self.layer, key)
        elif memory is None or self.layer not in memory.pooled:
            pooled = _mean(blocks(key, tiles), tiles.key_rows)
            if memory is not None and memory.keep:
                memory.pooled[self.layer] = pooled
        else:
            pooled = memory.pooled[self.layer]
        if cache is not None:
            return cache.ask(self.layer, query, heads, memory is not None), pooled
        if not tokens.causal and memory is None:
            asked = _mean(query_tiles(query, tiles, tiles.block_size), tiles.rows)
        else:
            asked = query_tiles(query, tiles, 1)[:, :, :, 0]
        return asked.unflatten(1, (heads, -1)).mean(2), pooled


def _mean(x: Tensor, rows: Tensor) -> Tensor:
    """Mean of the first rows [B, Q] of x [B, H, Q, Z, D]: [B, H, Q, D]; 0 where there is none."""
    weight = (torch.arange(x.shape[3], device=x.device) < rows[..., None]) / rows.clamp(min=1)[..., None]
    return (x * weight.to(x.dtype)[:, None, :, :, None]).sum(3)


def cut_tokens(
    query: Tensor, key: Tensor, tokens: "Tokens", key_boundaries: list[int] | None, size: int
) -> Tiles | None:
    """How a call's tokens are cut into blocks of `size`, the same for all its layers; None where a mask forbids it."""
    if size in tokens.tiles:
        return tokens.tiles[size]
    cache, mask, cross, device = tokens.cache, tokens.mask, tokens.memory is not None, query.device
    causal = not cross and (tokens.causal or cache is not None)
    if tokens.boundaries is not None:
        ends = tokens.boundaries if key_boundaries is None else key_boundaries
        return tokens.tiles.setdefault(size, cut_packed(tokens.boundaries, ends, size, causal, device))
    queries, keys = query.shape[2], key.shape[2]
    starts = [0] if cache is None else cache.before
    starts = starts[:1] if len(set(starts)) == 1 else starts
    lengths, padded = torch.tensor([keys], device=device), False
    spans = tuple((start // size, (start + queries - 1) // size) for start in starts)
    name: tuple | None = (spans, None if causal else keys)
    if cache is not None and not cross:
        if mask is not cache.mask:
            return None
        lengths = torch.tensor(starts, device=device) + queries
    elif mask is not None:
        seen = mask[:, 0, -1]
        if mask.shape[2] > 1 or bool((seen[:, 1:] > seen[:, :-1]).any()):
            return None
        lengths, padded, name = seen.sum(-1), not cross, None
    tiles = cut(starts, queries, lengths, keys, size, causal=causal, padded=padded, name=name)
    return tokens.tiles.setdefault(size, tiles)


def _marked_blocks(marked: Tensor, tiles: Tiles) -> Tensor:
    """Marked tokens [B, S] -> which blocks hold one, [B, blocks]."""
    held = blocks(marked[:, None, :, None], tiles)[:, 0, ..., 0]
    return (held & (torch.arange(tiles.block_size, device=marked.device) < tiles.key_rows[..., None])).any(-1)
