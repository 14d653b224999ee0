"""Optimizers and the schedule of the learning rate."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from qwq.recipe import TrainingConfig


def build(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks (arXiv:2502.16982's recipe), AdamW for embeddings, head, norms and biases,
    and for experts and their routers (docs/log.md: Muon for those is dearer, and unsettles the balance).

    Each group keeps its highest learning rate as `peak`; `update` scales it step by step. No weight decay on
    vectors; none on the embeddings either, whose rare rows would only shrink.
    """
    matrices: list[Tensor] = []
    stacks: list[Tensor] = []  # of experts
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim == 2 and ".layers." in name and not name.endswith(".mlp.gate.weight")
        (stacks if parameter.ndim == 3 else matrices if matrix else others).append(parameter)
    fused = all(p.device.type in ("cpu", "cuda") for p in others)
    groups = [{"params": others, "peak": config.learning_rate, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        # match_rms_adamw: one rate fits matrices of every shape, and is of AdamW's size.
        group = {"params": matrices, "peak": config.matrix_learning_rate}
        optimizers.append(torch.optim.Muon([group], weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    else:
        stacks += matrices
    if stacks:
        groups.append({"params": stacks, "peak": config.learning_rate, "weight_decay": config.weight_decay})
    optimizers.append(torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-10, fused=fused))
    return optimizers


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
