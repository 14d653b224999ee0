"""Every token through its own experts: gated feed-forwards, stacked, none of whose tokens is dropped.

Shapes: N tokens, C hidden_size, E experts, A experts of a token, S = N * A, I width of an expert.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.kernels.linear import available, weight_gradient

Activation = Callable[[Tensor], Tensor]


def experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, act: Activation) -> Tensor:
    """Sum over a token's experts of weight * down(act(gate(x)) * up(x)): x [N, C] -> [N, C].

    gate_up [E, 2 I, C] (gate first), down [E, C, I], weights [N, A] and expert numbers chosen [N, A].
    """
    if x.device.type == "cuda":
        return _grouped(x, gate_up, down, weights, chosen, act)
    return _Experts.apply(x, gate_up, down, weights, chosen, act)


def reference(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, act: Activation) -> Tensor:
    """The same expert by expert, in plain operations: what tests compare with."""
    out = torch.zeros_like(x)
    for expert, (up_matrix, down_matrix) in enumerate(zip(gate_up.unbind(), down.unbind(), strict=True)):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], up_matrix).chunk(2, dim=-1)
        out = out.index_add(0, token, F.linear(act(gate) * up, down_matrix) * weights[token, slot, None])
    return out


def sort(chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The S pairs of token and expert in the order of the experts [S], and how many each expert has [E]."""
    flat = chosen.flatten()
    return flat.argsort(stable=True), flat.bincount(minlength=num_experts)


def _grouped(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, act: Activation) -> Tensor:
    """On a GPU: torch's grouped product, in the precision of autocast."""
    order, counts = sort(chosen, len(gate_up))
    ends = counts.cumsum(0, dtype=torch.int32)
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    rows = x.to(dtype)[order // chosen.shape[1]]
    gate, up = F.grouped_mm(rows, gate_up.to(dtype).transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(act(gate) * up, down.to(dtype).transpose(1, 2), offs=ends)
    out = out * weights.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return out[back].view(*chosen.shape, -1).sum(1).to(x.dtype)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.ops.qwq.product(x, matrix) if available(x) else F.linear(x, matrix)


class _Experts(torch.autograd.Function):
    """Expert by expert, so that what is between its two products stays in the cache; the gradient is written out."""

    @staticmethod
    def forward(ctx, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, act: Activation):
        order, found = sort(chosen, len(gate_up))
        token, weight, counts = order // chosen.shape[1], weights.flatten()[order], found.tolist()
        hidden: list[Tensor] = []
        out = torch.zeros_like(x)
        for expert, (rows, w) in enumerate(zip(token.split(counts), weight.split(counts), strict=True)):
            if len(rows):
                hidden.append(_product(x[rows], gate_up[expert]))
                gate, up = hidden[-1].chunk(2, dim=-1)
                out.index_add_(0, rows, _product(act(gate) * up * w[:, None], down[expert]))
        ctx.act, ctx.counts = act, counts
        ctx.save_for_backward(x, gate_up, down, weight, order, token, *hidden)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, gate_up, down, weight, order, token, *hidden = ctx.saved_tensors
        grad_x, grad_gate_up, grad_down = torch.zeros_like(x), torch.empty_like(gate_up), torch.empty_like(down)
        grad_weight: list[Tensor] = []
        left = iter(hidden)
        for expert, (rows, w) in enumerate(zip(token.split(ctx.counts), weight.split(ctx.counts), strict=True)):
            if not len(rows):
                grad_gate_up[expert].zero_()
                grad_down[expert].zero_()
                continue
            with torch.enable_grad():
                both = next(left).detach().requires_grad_()
                gate, up = both.chunk(2, dim=-1)
                inner = ctx.act(gate) * up
            g = grad[rows]
            grad_inner = _product(g, down[expert].t())
            value = inner.detach()
            grad_weight.append((grad_inner * value).sum(-1))
            (grad_both,) = torch.autograd.grad(inner, both, grad_inner * w[:, None])
            grad_down[expert] = weight_gradient(g, value * w[:, None])
            grad_gate_up[expert] = weight_gradient(grad_both, x[rows])
            grad_x.index_add_(0, rows, _product(grad_both, gate_up[expert].t()))
        by_slot = torch.empty_like(weight).scatter_(0, order, torch.cat(grad_weight))
        return grad_x, grad_gate_up, grad_down, by_slot.view(len(x), -1), None, None
