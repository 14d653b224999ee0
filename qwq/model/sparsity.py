"""Sparse attention: every layer's pattern, and the gate that learns which blocks to read.

Shapes: B batch, H query heads, K key/value heads, T new tokens, S tokens seen, D head_dim, Dv width of a value head,
Q query tiles, N entries of a list, Z block_size.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.kernels.linear import Linear
from qwq.kernels.sparse import BlockLayout, Tiles, block_attention, blocks, query_tiles
from qwq.model.block_layout import AttentionPattern, cut, cut_packed, everything
from qwq.model.config import ModelConfig

if TYPE_CHECKING:
    from qwq.model.attention import Tokens


class SparseAttention(nn.Module):
    """Every query sees the blocks of keys that the layer's pattern lists for its block. Called as `DenseAttention` is.

    `Learnable` compares a summary of the query block with the mean key of every other block, each after a linear map
    that all heads share and that is near the identity at first, and adds the `top_k` best. log(sigmoid(score)) is added
    to the logits of a block that is there by that alone, which is how the gate gets its gradient.

    What stands for a query block must not look ahead where order counts: it is then the block's first query (mean over
    the group's heads), else the mean of all its queries. Keys are pooled after the rotary turn, as the cache has them.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.pattern = AttentionPattern.parse(config.attention_pattern(layer), config.attention_block_size)
        if self.pattern.top_k:
            self.q_gate = Linear(config.head_dim, config.head_dim, bias=False)
            self.k_gate = Linear(config.head_dim, config.head_dim, bias=False)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, tokens: "Tokens", key_boundaries: list[int] | None = None
    ) -> Tensor:
        """query [B, H, T, D], key [B, K, S, D], value [B, K, S, Dv] -> [B, H, T, Dv]"""
        heads = key.shape[1]
        tiles = cut_tokens(query, key, tokens, key_boundaries, self.pattern.block_size)
        if tiles is None:
            raise ValueError("attention_mask: sparse attention wants the padding after the tokens of a row")
        marked = None if tokens.marked is None else _marked_blocks(tokens.marked, tiles)
        index, bias = self.pattern.fixed(tiles, self.layer, heads, marked), None
        if self.pattern.top_k:
            index, bias = self.choose(*self.summaries(query, key, tokens, tiles), tiles, index)
        if tiles.causal or tokens.memory is not None or not self.pattern.global_blocks:
            return block_attention(query, key, value, BlockLayout(tiles, index, bias))
        # A global tile of an encoder has a list as long as the document: it is computed apart.
        wide = tiles.own < self.pattern.global_blocks  # [B, Q]
        if marked is not None:
            wide = wide | marked.gather(1, (tiles.first + tiles.own).expand(len(marked), -1))
        some, rest = wide.any(0), ~wide.all(0)
        tall = replace(tiles, rows=tiles.rows * wide).take(some)
        out = block_attention(query, key, value, BlockLayout(tall, everything(tall)))
        if bool(rest.any()):
            others = replace(tiles, rows=tiles.rows * ~wide).take(rest)
            narrow = BlockLayout(others, index[:, :, rest], None if bias is None else bias[:, :, rest])
            out = out + block_attention(query, key, value, narrow)
        return out

    def summaries(self, query: Tensor, key: Tensor, tokens: "Tokens", tiles: Tiles) -> tuple[Tensor, Tensor]:
        """What stands for every tile of queries [B, K, Q, D] and for every block of keys [B, K, blocks, D]."""
        cache, memory, heads = tokens.cache, tokens.memory, key.shape[1]
        if memory is None and cache is not None:
            pooled = cache.pool(self.layer, key)
        elif memory is None or not memory.keep:
            pooled = _mean(blocks(key, tiles), tiles.key_rows)
        else:
            if self.layer not in memory.pooled:
                memory.pooled[self.layer] = _mean(blocks(key, tiles), tiles.key_rows)
            pooled = memory.pooled[self.layer]
        if cache is not None:
            return cache.ask(self.layer, query, heads, memory is not None), pooled
        if not tokens.causal and memory is None:
            asked = _mean(query_tiles(query, tiles, tiles.block_size), tiles.rows)
        else:
            asked = query_tiles(query, tiles, 1)[:, :, :, 0]
        return asked.unflatten(1, (heads, -1)).mean(2), pooled

    def scores(self, asked: Tensor, pooled: Tensor, tiles: Tiles) -> Tensor:
        """How much every tile wants every block of its document: [B, K, Q, blocks], -inf for those it may not see."""
        asked, pooled = asked + self.q_gate(asked), pooled + self.k_gate(pooled)
        scores = (asked @ pooled.transpose(-1, -2)) * asked.shape[-1] ** -0.5
        local = torch.arange(pooled.shape[2], device=asked.device) - tiles.first[:, None, :, None]
        return scores.masked_fill((local < 0) | (local >= tiles.limit[:, None, :, None]), -torch.inf)

    def choose(self, asked: Tensor, pooled: Tensor, tiles: Tiles, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The lists [B, K, Q, N] and the best blocks that are not in them yet; and what is added to their logits."""
        count = pooled.shape[2]
        if count == 0:
            return index, None
        taken = torch.zeros(*index.shape[:3], count + 1, dtype=torch.bool, device=index.device)
        taken = taken.scatter_(3, index.masked_fill((index < 0) | (index >= count), count), True)[..., :count]
        best, chosen = (
            self.scores(asked, pooled, tiles).masked_fill(taken, -torch.inf).topk(min(self.pattern.top_k, count))
        )
        there = best > -torch.inf
        gate = F.logsigmoid(best.masked_fill(~there, 0)).masked_fill(~there, 0)
        index = index.expand(len(chosen), -1, -1, -1)
        bias = torch.cat((gate.new_zeros(index.shape), gate), -1)
        return torch.cat((index, chosen.masked_fill(~there, -1)), -1), bias


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
    if cache is not None and not cross:
        if mask is not cache.mask:
            return None
        lengths = torch.tensor(starts, device=device) + queries
    elif mask is not None:
        seen = mask[:, 0, -1]
        if mask.shape[2] > 1 or bool((seen[:, 1:] > seen[:, :-1]).any()):
            return None
        lengths, padded = seen.sum(-1), not cross
    tiles = cut(starts, queries, lengths, keys, size, causal=causal, padded=padded)
    return tokens.tiles.setdefault(size, tiles)


def _marked_blocks(marked: Tensor, tiles: Tiles) -> Tensor:
    """Marked tokens [B, S] -> which blocks hold one, [B, blocks]."""
    held = blocks(marked[:, None, :, None], tiles)[:, 0, ..., 0]
    return (held & (torch.arange(tiles.block_size, device=marked.device) < tiles.key_rows[..., None])).any(-1)
