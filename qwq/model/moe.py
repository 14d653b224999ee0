"""Mixture of experts in place of a feed-forward: router, experts, balance.

Shapes: N tokens, C hidden_size, E experts, A experts of a token, I width of an expert.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.kernels.experts import count, experts
from qwq.kernels.linear import Linear
from qwq.model.config import ModelConfig
from qwq.model.layers import ACTIVATIONS, MLP


class Router(nn.Module):
    """[N, C] -> weights [N, A] and experts [N, A]; softmax in fp32 (or fp64) over all experts, then the best A.

    With `router_bias_update_rate`, a bias that no gradient reaches is added for the choice alone, not for the weights
    (arXiv:2408.15664). What gradients are taken of is noted: the tokens of every expert, and the auxiliary loss.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.update_rate = config.router_bias_update_rate
        self.aux_coef, self.z_coef = config.router_aux_loss_coef, config.router_z_loss_coef
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        if self.update_rate > 0:
            self.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)
        self.load: Tensor | None = None  # tokens of every expert since the last `take_loads`, [E]
        self.loss: Tensor | None = None  # of the last forward pass

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(kind), self.weight.to(kind))
        probabilities = logits.softmax(-1)
        scores = probabilities + self.e_score_correction_bias if self.update_rate > 0 else probabilities
        chosen = scores.topk(self.top_k, dim=-1).indices
        if self.norm_topk_prob:  # the probabilities over their sum, which a bias could make zero over zero
            weights = logits.gather(-1, chosen).softmax(-1)
        else:
            weights = probabilities.gather(-1, chosen)
        if torch.is_grad_enabled() and self.training:
            self._note(logits, probabilities, chosen)
        return weights.to(x.dtype), chosen

    def _note(self, logits: Tensor, probabilities: Tensor, chosen: Tensor) -> None:
        load = count(chosen, logits.shape[-1])
        self.load = load if self.load is None else self.load + load
        if self.aux_coef > 0 or self.z_coef > 0:
            balance = len(load) * (load / len(chosen) * probabilities.mean(0)).sum()
            self.loss = self.aux_coef * balance + self.z_coef * logits.logsumexp(-1).square().mean()


class Experts(nn.Module):
    """Stacked gated feed-forwards: gate_up_proj [E, 2 I, C], down_proj [E, C, I]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        inner = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * inner, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, inner))
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        return experts(x, self.gate_up_proj, self.down_proj, weights, chosen, self.act)


class MoE(nn.Module):
    """[B, T, C] -> [B, T, C]; every token goes through its experts, none is dropped.

    With `shared_expert_intermediate_size`, also through one that all tokens share, gated by a sigmoid (Qwen2-MoE).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_expert = None
        if config.shared_expert_intermediate_size:
            self.shared_expert = MLP(config, config.shared_expert_intermediate_size)
            self.shared_expert_gate = Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        out = self.experts(flat, *self.gate(flat))
        if self.shared_expert is not None:
            out = out + self.shared_expert_gate(flat).sigmoid() * self.shared_expert(flat)
        return out.view_as(x)


def routers(model: nn.Module) -> Iterator[tuple[str, Router]]:
    """Every router of a model, in order, by the name of its block ("model.layers.3")."""
    for name, module in model.named_modules():
        if isinstance(module, Router):
            yield name.removesuffix(".mlp.gate"), module


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """What the routers' balance and z-loss (Switch, arXiv:2101.03961; ST-MoE, arXiv:2202.08906) of the last forward
    pass add to the loss of a token, coefficients included: the mean over layers. None where the config asks for none.

    Balance is `transformers`' `load_balancing_loss_func` of one layer: E * sum of (tokens of e / N) * mean p(e).
    """
    found = [router.loss for _, router in routers(model) if router.loss is not None]
    for _, router in routers(model):
        router.loss = None
    return torch.stack(found).mean() if found else None


def take_loads(model: nn.Module) -> dict[str, Tensor]:
    """By block, the share of the routed tokens that each expert had [E], summing to 1, since the last call."""
    loads = {}
    for name, router in routers(model):
        if router.load is not None:
            loads[name] = router.load / router.load.sum()
        router.load = None
    return loads


@torch.no_grad()
def update_balance(model: nn.Module) -> dict[str, Tensor]:
    """After an optimizer step: raise the bias of experts with less than their share of the step's tokens, lower that
    of the others, by `router_bias_update_rate` (arXiv:2408.15664, algorithm 1). Returns `take_loads`."""
    loads = take_loads(model)
    for name, router in routers(model):
        if router.update_rate > 0 and name in loads:
            load = loads[name]
            router.e_score_correction_bias.add_(torch.sign(load.mean() - load), alpha=router.update_rate)
    return loads
