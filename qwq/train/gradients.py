"""The gradients of one step, from as many micro-batches as it takes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from qwq.model import Decoder
from qwq.objectives import cross_entropy_sum
from qwq.objectives.causal_lm import IGNORE
from qwq.recipe import ObjectiveConfig


def precision(device: torch.device) -> AbstractContextManager:
    """bf16 products over fp32 weights on a GPU; plain fp32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def compute_gradients(model: Decoder, batches: Sequence[tuple[Tensor, Tensor]], objective: ObjectiveConfig) -> float:
    """Add to `.grad` the gradient of the mean loss over all labelled tokens of all micro-batches; returns that mean.

    Divided by the number of labelled tokens of the whole step, not batch by batch: every token weighs the same, however
    ragged the labels are and however the step is cut into micro-batches.
    """
    device = next(model.parameters()).device
    valid = max(1, sum(int((labels != IGNORE).sum()) for _, labels in batches))
    total = 0.0
    for input_ids, labels in batches:
        with precision(device):
            hidden = model.hidden(input_ids.to(device))
            loss = cross_entropy_sum(hidden, model.lm_head.weight, labels.to(device), objective.chunk_size) / valid
        loss.backward()
        total += float(loss.detach())
    return total
