"""Grouped-query attention and the cache it reads.

Shapes: B batch, T new tokens, S tokens seen (cache and new), C hidden_size, H query heads, K key/value heads,
D head_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.kernels.attention import causal_attention
from qwq.kernels.elementwise import rotate
from qwq.kernels.linear import Linear
from qwq.model.config import ModelConfig
from qwq.model.layers import RMSNorm


class KVCache:
    """Keys and values of every layer, contiguous: [layers, B, K, capacity, D], grown by doubling.

    Row b holds `lengths[b]` tokens. Rows in use are kept at the front, so that a batch is a slice and never a copy.
    """

    def __init__(self, config: ModelConfig, batch_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        self.shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, 0, config.head_dim)
        self.keys = torch.empty(self.shape, dtype=dtype, device=device)
        self.values = torch.empty(self.shape, dtype=dtype, device=device)
        self.lengths = [0] * batch_size

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens a row."""
        capacity = self.keys.shape[3]
        if tokens <= capacity:
            return
        layers, rows, heads, _, size = self.shape
        grown = (layers, rows, heads, max(256, 2 * capacity, tokens), size)
        keys, values = self.keys.new_zeros(grown), self.values.new_zeros(grown)
        keys[..., :capacity, :], values[..., :capacity, :] = self.keys, self.values
        self.keys, self.values = keys, values

    def rows(self, start: int, stop: int) -> "CacheRows":
        """The rows [start, stop) as one batch for `Decoder(..., cache=...)`."""
        return CacheRows(self, start, stop)

    def move(self, source: int, target: int) -> None:
        """Copy one row over another: how a finished row gives its place to the last one."""
        length = self.lengths[source]
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]
        self.lengths[target] = length


@dataclass
class CacheRows:
    """A batch of cache rows. `Decoder` asks it for positions and a mask; every layer stores and reads through it."""

    cache: KVCache
    start: int
    stop: int

    def begin(self, new: int, device: torch.device) -> tuple[Tensor, Tensor | None, bool]:
        """Before `new` tokens a row: their positions [B, T], the mask [B, 1, T, S] or None, whether it is causal."""
        before = self.cache.lengths[self.start : self.stop]
        self.total = max(before) + new
        self.cache.reserve(self.total)
        starts = torch.tensor(before, device=device)
        positions = starts[:, None] + torch.arange(new, device=device)
        self.at = None if len(set(before)) == 1 else positions
        if self.at is None and (new == 1 or before[0] == 0):
            return positions, None, new > 1
        seen = torch.arange(self.total, device=device)
        return positions, (seen <= positions[:, :, None])[:, None], False

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep key, value [B, K, T, D] of the new tokens; returns those of all tokens, [B, K, S, D]."""
        keys, values = (c[layer, self.start : self.stop] for c in (self.cache.keys, self.cache.values))
        if self.at is None:
            first = self.total - key.shape[2]
            keys[:, :, first : self.total], values[:, :, first : self.total] = key, value
        else:
            index = self.at[:, None, :, None].expand_as(key)
            keys.scatter_(2, index, key)
            values.scatter_(2, index, value)
        return keys[:, :, : self.total], values[:, :, : self.total]

    def end(self, new: int) -> None:
        """After the last layer: the new tokens count."""
        for row in range(self.start, self.stop):
            self.cache.lengths[row] += new


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245): H / K query heads share one key head and one value head.

    QKV bias and QK-norm are config. [B, T, C] -> [B, T, C]
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, key, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, key, bias=config.attention_bias)
        self.o_proj = Linear(query, config.hidden_size, bias=config.attention_output_bias)
        if config.use_qk_norm:
            self.q_norm: nn.Module = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm: nn.Module = RMSNorm(config.head_dim, config.rms_norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool, cache: CacheRows | None = None
    ) -> Tensor:
        batch, tokens, _ = x.shape
        heads = (batch, tokens, -1, self.head_dim)
        query = self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2)  # [B, H, T, D]
        key = self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2)  # [B, K, T, D]
        value = self.v_proj(x).view(heads).transpose(1, 2)
        query, key = rotate(query, *rope), rotate(key, *rope)
        if cache is not None:
            key, value = cache.store(self.layer, key, value)
        if causal and mask is None:
            out = causal_attention(query, key, value)
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))
