"""Optimizers and the schedule of the learning rate."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from qwq.recipe import TrainingConfig


def build(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks (arXiv:2502.16982's recipe), AdamW for embeddings, head, norms and biases.

    Each group keeps its highest learning rate as `peak`; `update` scales it step by step. No weight decay on
    vectors; none on the embeddings either, whose rare rows would only shrink.
    """
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim == 2 and ".layers." in name
        (matrices if matrix else others).append(parameter)
    fused = all(p.device.type in ("cpu", "cuda") for p in others)
    groups = [{"params": others, "peak": config.learning_rate, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        # match_rms_adamw: one rate fits matrices of every shape, and is of AdamW's size.
        group = {"params": matrices, "peak": config.matrix_learning_rate}
        optimizers.append(torch.optim.Muon([group], weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    else:
        groups.append({"params": matrices, "peak": config.learning_rate, "weight_decay": config.weight_decay})
    optimizers.append(torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-10, fused=fused))
    return optimizers


class StackedMuon(torch.optim.Optimizer):
    """`torch.optim.Muon` (match_rms_adamw) of every matrix in a stack [E, M, N], which torch's own refuses.

    A group's `parts`: how many matrices an [M, N] is cut into, row-wise (gate and up are two that share an input).
    """

    def __init__(self, groups: list[dict], weight_decay: float, momentum: float = 0.95):
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum, "parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(state["momentum_buffer"], momentum)
                update = update.unflatten(1, (group["parts"], -1)).flatten(0, 1)  # [E * parts, M, N]
                scale = 0.2 * math.sqrt(max(update.shape[1:]))
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(orthogonal(update).reshape(parameter.shape), alpha=-rate * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """[..., M, N] -> roughly U V^T of each one's U S V^T, in bf16: five Newton-Schulz steps (Muon, Jordan 2024)."""
    x = matrices.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of the highest rate at `step` (0 is the first): warm-up, flat, then linearly to zero (arXiv:2405.18392)."""
    warmup, decay = config.warmup_fraction * config.steps, config.decay_fraction * config.steps
    up = (step + 1) / warmup if warmup >= 1 else 1.0
    down = (config.steps - step) / decay if decay >= 1 else 1.0
    return min(1.0, up, down)


def clip(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale all gradients together to an L2 norm of at most `max_norm` (0: only measure); returns the norm before."""
    return float(nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf))


def update(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """One step of every optimizer at `factor` of its highest rate; the gradients are spent."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
