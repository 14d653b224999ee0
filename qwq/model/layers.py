"""The parts of a block that are not attention.

Shapes: B batch, T tokens, C hidden_size, H query heads, K key/value heads, D head_dim.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.kernels.elementwise import rms_norm
from qwq.kernels.linear import Linear
from qwq.model.config import ModelConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def norm(config: ModelConfig, size: int | None = None) -> RMSNorm | nn.LayerNorm:
    """The config's normalisation over `size` (hidden_size)."""
    size = config.hidden_size if size is None else size
    if config.norm_type == "layer_norm":
        return nn.LayerNorm(size, config.rms_norm_eps)
    return RMSNorm(size, config.rms_norm_eps)


class MLP(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x)), SwiGLU for "silu" (arXiv:2002.05202). [B, T, C] -> [B, T, C]"""

    def __init__(self, config: ModelConfig, intermediate_size: int | None = None):
        super().__init__()
        inner = config.intermediate_size if intermediate_size is None else intermediate_size
        self.gate_proj = Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class PlainMLP(nn.Module):
    """The classic feed-forward: down(act(up(x))) (arXiv:1706.03762). [B, T, C] -> [B, T, C]"""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(x)))


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu2": relu2, "relu": F.relu, "gelu": F.gelu}


def sinusoidal(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Positions [B, T] -> [B, T, size], sines beside cosines of falling frequency (arXiv:1706.03762)."""
    half = torch.arange(size // 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None] * 10_000.0 ** (-half / (size // 2))
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (arXiv:2104.09864) with the scalings that published checkpoints use.

    `inv_freq` [D / 2] in radians a token; `attention_scaling` multiplies cos and sin (YaRN's temperature).
    Halves are rotated, not neighbours, as Hugging Face stores the weights.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.attention_scaling = 1.0
        with torch.device("cpu"):
            self.inv_freq = self.frequencies()  # no buffer: it stays float64 when the model goes to bf16 or to meta

    def frequencies(self) -> Tensor:
        """Angular frequency of every pair of dimensions, [D / 2], float64."""
        config, scaling = self.config, self.config.rope_scaling or {}
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        inv_freq = config.rope_theta**-exponent
        rope_type, factor = scaling.get("rope_type", "default"), scaling.get("factor", 1.0)
        if rope_type == "linear":
            return inv_freq / factor
        if rope_type == "llama3":
            return _llama3(inv_freq, factor, scaling)
        if rope_type == "yarn":
            inv_freq, self.attention_scaling = _yarn(inv_freq, factor, scaling, config)
        return inv_freq

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> cos, sin [B, 1, T, D]"""
        self.inv_freq = self.inv_freq.to(positions.device)
        angles = positions[:, None, :, None] * self.inv_freq  # [B, 1, T, D / 2]
        cos, sin = ((f(angles) * self.attention_scaling).to(dtype) for f in (torch.cos, torch.sin))
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


def _llama3(inv_freq: Tensor, factor: float, scaling: dict) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are divided by `factor`, short ones kept, those between interpolated."""
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = original * inv_freq / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * inv_freq + (1 - keep) * inv_freq / factor


def _yarn(inv_freq: Tensor, factor: float, scaling: dict, config: ModelConfig) -> tuple[Tensor, float]:
    """YaRN (arXiv:2309.00071): frequencies [D / 2] and the factor on cos and sin.

    Fewer than `beta_slow` turns over the original context: interpolated; more than `beta_fast`: kept.
    """
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings

    def dimension(turns: float) -> float:
        return config.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = (torch.arange(len(inv_freq), dtype=torch.float64) - low) / max(high - low, 0.001)
    interpolate = ramp.clamp(0, 1)

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_scaling = scaling.get("attention_factor")
    if attention_scaling is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        attention_scaling = temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    if attention_scaling is None:
        attention_scaling = temperature(1.0)
    return interpolate * inv_freq / factor + (1 - interpolate) * inv_freq, attention_scaling
