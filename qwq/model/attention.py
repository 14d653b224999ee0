"""Grouped-query attention and the cache it reads.

Shapes: B batch, T new tokens, S tokens seen (cache and new), C hidden_size, H query heads, K key/value heads,
D head_dim, Dv width of a value head (D, but for `shared_qk`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.kernels.elementwise import rotate
from qwq.kernels.linear import Linear
from qwq.kernels.sparse import BlockLayout, Tiles, compiled, takes
from qwq.model.block_layout import everything
from qwq.model.config import ModelConfig
from qwq.model.layers import norm
from qwq.model.sparsity import SparseAttention, cut_tokens

_BLOCK = 64  # tokens that the kernel computes together where a config has no say


class KVCache:
    """Keys and values of every layer, contiguous: [layers, B, K, capacity, D], grown by doubling.

    Row b holds `lengths[b]` tokens. Rows in use are kept at the front, so that a batch is a slice and never a copy.
    What a gate chooses by (sparsity.py) is kept for every block: its mean key, and its first query. That follows from
    the tokens before alone, so a row is made shorter by making its length smaller.
    """

    def __init__(self, config: ModelConfig, batch_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        widths = {"keys": config.head_dim, "values": config.value_dim}
        self.block_size = config.attention_block_size
        self.steps = dict.fromkeys(widths, 1)  # tokens that share an entry
        if any("learnable" in pattern for pattern in config.attention_patterns):
            gates = dict.fromkeys(("pooled", "asked", "cross_asked"), config.head_dim)
            widths, self.steps = widths | gates, self.steps | dict.fromkeys(gates, self.block_size)
        self.stores = {
            name: torch.empty(layers, batch_size, heads, 0, width, dtype=dtype, device=device)
            for name, width in widths.items()
        }
        self.lengths = [0] * batch_size

    @property
    def keys(self) -> Tensor:
        return self.stores["keys"]

    @property
    def values(self) -> Tensor:
        return self.stores["values"]

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens a row."""
        capacity = self.keys.shape[3]
        if tokens <= capacity:
            return
        tokens = max(256, 2 * capacity, tokens)
        for name, old in self.stores.items():
            grown = old.new_zeros(*old.shape[:3], -(-tokens // self.steps[name]), old.shape[4])
            grown[:, :, :, : old.shape[3]] = old
            self.stores[name] = grown

    def rows(self, start: int, stop: int) -> "CacheRows":
        """The rows [start, stop) as one batch for `Decoder(..., cache=...)`."""
        return CacheRows(self, start, stop)

    def move(self, source: int, target: int) -> None:
        """Copy one row over another: how a finished row gives its place to the last one."""
        length = self.lengths[target] = self.lengths[source]
        for name, store in self.stores.items():
            used = -(-length // self.steps[name])
            store[:, target, :, :used] = store[:, source, :, :used]


@dataclass
class CacheRows:
    """A batch of cache rows. `Decoder` asks it for positions and a mask; every layer stores and reads through it."""

    cache: KVCache
    start: int
    stop: int

    def begin(self, new: int, device: torch.device) -> tuple[Tensor, Tensor | None, bool]:
        """Before `new` tokens a row: their positions [B, T], the mask [B, 1, T, S] or None, whether it is causal."""
        self.before = before = self.cache.lengths[self.start : self.stop]
        self.new, self.mask = new, None
        self.total = max(before) + new
        self.cache.reserve(self.total)
        starts = torch.tensor(before, device=device)
        positions = starts[:, None] + torch.arange(new, device=device)
        self.at = None if len(set(before)) == 1 else positions
        if self.at is None and (new == 1 or before[0] == 0):
            return positions, None, new > 1
        seen = torch.arange(self.total, device=device)
        self.mask = (seen <= positions[:, :, None])[:, None]
        return positions, self.mask, False

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep key, value [B, K, T, D] of the new tokens; returns those of all tokens, [B, K, S, D]."""
        keys, values = (c[layer, self.start : self.stop] for c in (self.cache.keys, self.cache.values))
        if self.at is None:
            first = self.total - key.shape[2]
            keys[:, :, first : self.total], values[:, :, first : self.total] = key, value
        else:
            index = self.at[:, None, :, None]
            keys.scatter_(2, index.expand_as(key), key)
            values.scatter_(2, index.expand_as(value), value)
        return keys[:, :, : self.total], values[:, :, : self.total]

    def pool(self, layer: int, key: Tensor) -> Tensor:
        """From the keys of all tokens [B, K, S, D], the mean key of every full block that a new token can look back to,
        [B, K, blocks, D]."""
        size = self.cache.block_size
        pooled = self.cache.stores["pooled"][layer, self.start : self.stop]
        for rows, start in self._alike():
            first, last = start // size, (start + self.new) // size
            if last > first:
                full = key[rows, :, first * size : last * size]
                pooled[rows, :, first:last] = full.unflatten(2, (-1, size)).mean(3)
        return pooled[:, :, : (self.total - 1) // size]

    def ask(self, layer: int, query: Tensor, heads: int, cross: bool) -> Tensor:
        """New queries [B, H, T, D] -> the first query (mean over a group's heads) of each block they are in,
        [B, K, Q, D]; it may have come in an earlier call."""
        size = self.cache.block_size
        asked = self.cache.stores["cross_asked" if cross else "asked"][layer, self.start : self.stop]
        for rows, start in self._alike():
            block, skip = -(-start // size), -start % size
            if skip < self.new:
                first = query[rows, :, skip::size].unflatten(1, (heads, -1)).mean(2)
                asked[rows, :, block : block + first.shape[2]] = first
        count = max((start % size + self.new + size - 1) // size for start in self.before)
        if self.at is None:
            return asked.narrow(2, self.before[0] // size, count)
        own = self.at[:, :1] // size + torch.arange(count, device=asked.device)  # [B, Q]
        index = own.clamp(max=asked.shape[2] - 1)[:, None, :, None]
        return asked.gather(2, index.expand(-1, heads, -1, asked.shape[3]))

    def _alike(self) -> Iterator[tuple[slice, int]]:
        """Rows of one length, and that length: all of them at once, or one by one."""
        if self.at is None:
            yield slice(None), self.before[0]
        else:
            yield from ((slice(row, row + 1), start) for row, start in enumerate(self.before))

    def end(self, new: int) -> None:
        """After the last layer: the new tokens count."""
        for row in range(self.start, self.stop):
            self.cache.lengths[row] += new


@dataclass
class Tokens:
    """Where the tokens of one call stand: what every layer must know beside their vectors."""

    positions: Tensor  # [B, T], each in its own document
    rope: tuple[Tensor, Tensor] | None  # cos, sin [B, 1, T, D]; None where positions are added to the embeddings
    causal: bool
    mask: Tensor | None = None  # [B, 1, T, S], True where seen; None: all, or all up to the token itself if causal
    cache: CacheRows | None = None
    boundaries: list[int] | None = None  # packed documents (B is 1): document i is [boundaries[i], boundaries[i + 1])
    marked: Tensor | None = None  # [B, S], True for tokens that are global in sparse attention
    memory: "Memory | None" = None  # in cross-attention: whose keys they are
    tiles: dict[int, Tiles] = field(default_factory=dict)  # how they are cut into blocks of so many tokens


@dataclass
class Memory:
    """What a decoder reads by cross-attention: the encoder's states [B, S, C].

    `kept` holds every layer's keys and values while a reply is decoded (`keep` is on).
    """

    states: Tensor
    mask: Tensor | None = None  # [B, 1, 1, S], True where there is a token
    boundaries: list[int] | None = None  # packed sources; their number is that of the packed targets
    keep: bool = False
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pooled: dict[int, Tensor] = field(default_factory=dict)  # what a gate chooses by (sparsity.py)


class DenseAttention(nn.Module):
    """Every query sees all keys that mask, order and documents leave it. The reference of the sparse backends.

    query [B, H, T, D], key [B, K, S, D], value [B, K, S, Dv] -> [B, H, T, Dv]
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, tokens: Tokens, key_boundaries: list[int] | None = None
    ) -> Tensor:
        if query.shape[2] >= 16 and takes(query.device.type, query.dtype, query.shape[3], value.shape[3]):
            out = _by_kernel(query, key, value, tokens, key_boundaries)
            if out is not None:
                return out
        if tokens.boundaries is not None:
            ends = tokens.boundaries if key_boundaries is None else key_boundaries
            documents = zip(_slices(tokens.boundaries), _slices(ends), strict=True)
            alone = replace(tokens, boundaries=None, tiles={})
            parts = [self(query[:, :, q], key[:, :, k], value[:, :, k], alone) for q, k in documents]
            return torch.cat(parts, dim=2)
        if query.shape[2] == 1 and (tokens.mask is None or tokens.mask.shape[1] == 1):
            folded = query.reshape(len(query), key.shape[1], -1, query.shape[3])  # the keys are read once for a group
            return F.scaled_dot_product_attention(folded, key, value, tokens.mask).view(*query.shape[:3], -1)
        causal = tokens.causal and tokens.mask is None
        return F.scaled_dot_product_attention(query, key, value, tokens.mask, is_causal=causal, enable_gqa=True)


@torch.compiler.disable
def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, tokens: Tokens, key_boundaries: list[int] | None
) -> Tensor | None:
    """The same through the kernel for blocks, each of which sees all others; None where a mask is not by length."""
    tiles = cut_tokens(query, key, tokens, key_boundaries, _BLOCK)
    return None if tiles is None else compiled(query, key, value, BlockLayout(tiles, everything(tiles)))


def _slices(boundaries: list[int]) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(boundaries)]


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245): H / K query heads share one key head and one value head.

    QKV bias and QK-norm are config. With `shared_qk` the heads of a group share their query and key instead, and each
    has values of its own: K maps of attention, H heads of values. [B, T, C] -> [B, T, C]
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.value_dim = layer, config.head_dim, config.value_dim
        key, value = config.num_key_value_heads * config.head_dim, config.num_key_value_heads * config.value_dim
        query = key if config.shared_qk else config.num_attention_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, key, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, value, bias=config.attention_bias)
        self.o_proj = Linear(
            config.num_attention_heads * config.head_dim, config.hidden_size, bias=config.attention_output_bias
        )
        self.q_norm: nn.Module = norm(config, config.head_dim) if config.use_qk_norm else nn.Identity()
        self.k_norm: nn.Module = norm(config, config.head_dim) if config.use_qk_norm else nn.Identity()
        sparse = config.attention_pattern(layer) != "dense"
        self.attend: nn.Module = SparseAttention(config, layer) if sparse else DenseAttention()

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        query, (key, value) = self.query(x), self.key_value(x)
        if tokens.rope is not None:
            query, key = rotate(query, *tokens.rope), rotate(key, *tokens.rope)
        if tokens.cache is not None:
            key, value = tokens.cache.store(self.layer, key, value)
        return self.output(self.attend(query, key, value, tokens))

    def query(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, H, T, D]"""
        return self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C] -> [B, K, T, D], [B, K, T, Dv]"""
        key = self.k_norm(self.k_proj(x).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        return key, self.v_proj(x).unflatten(-1, (-1, self.value_dim)).transpose(1, 2)

    def output(self, heads: Tensor) -> Tensor:
        """[B, H, T, Dv] -> [B, T, C]"""
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class CrossAttention(Attention):
    """Queries from the decoder, keys and values from the encoder's states; no rotary turn. [B, T, C] -> [B, T, C]"""

    def forward(self, x: Tensor, tokens: Tokens, memory: Memory | None = None) -> Tensor:
        assert memory is not None
        if self.layer in memory.kept:
            key, value = memory.kept[self.layer]
        else:
            key, value = self.key_value(memory.states)
            if memory.keep:
                memory.kept[self.layer] = key, value
        seen = replace(tokens, causal=False, mask=memory.mask, marked=None, memory=memory, tiles={})
        return self.output(self.attend(self.query(x), key, value, seen, memory.boundaries))
