"""Mixture of experts in place of a feed-forward: router, experts, balance.

Shapes: N tokens, C hidden_size, E experts, A experts of a token, I width of an expert.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.model.config import ModelConfig


class Router(nn.Module):
    """[N, C] -> weights [N, A] and experts [N, A]; softmax in fp32 over all experts, then the best A."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x, self.weight)
        probabilities = logits.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), experts


class Experts(nn.Module):
    """Stacked gated feed-forwards: gate_up_proj [E, 2 I, C], down_proj [E, C, I]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        inner = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * inner, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, inner))

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True)):
            token, slot = (experts == expert).nonzero(as_tuple=True)
            gate, up = F.linear(x[token], gate_up).chunk(2, dim=-1)
            out = out.index_add(0, token, F.linear(F.silu(gate) * up, down) * weights[token, slot, None])
        return out


class MoE(nn.Module):
    """[B, T, C] -> [B, T, C]; every token goes through its experts, none is dropped."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        return self.experts(flat, *self.gate(flat)).view_as(x)
