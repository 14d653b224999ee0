"""The objective of a recipe, and the gradients of one step from as many micro-batches as it takes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from qwq.model import moe
from qwq.objectives import Batch, CausalLM, Objective
from qwq.recipe import Recipe
from qwq.tokenizer import Tokenizer


def build_objective(recipe: Recipe, tokenizer: Tokenizer | None = None) -> Objective:
    """The objective that a recipe names. `UsageError` if it makes no sense for the recipe's model."""
    config = recipe.objective
    objective = CausalLM(config.chunk_size, config.early_exit_loss_coef, config.layer_dropout)
    objective.check(recipe.model)
    return objective


def precision(device: torch.device) -> AbstractContextManager:
    """bf16 products over fp32 weights on a GPU; plain fp32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def compute_gradients(model: Any, batches: Sequence[tuple], objective: Objective) -> float:
    """Add to `.grad` the gradient of the mean loss over all labels of all micro-batches; returns that mean.

    Where the config asks for the routers' auxiliary loss, its gradient is added, and the mean returned is without it.

    Divided by the number of labels of the whole step, not batch by batch: every label weighs the same, however ragged
    they are and however the step is cut into micro-batches. A batch is a `Batch`, or just (input_ids, labels).
    """
    step = [Batch(*batch) for batch in batches]
    device = next(model.parameters()).device
    valid = max(1, sum(batch.labelled for batch in step))
    total = 0.0
    for batch in step:
        with precision(device):
            loss = objective.loss(model, batch)
            routers = moe.auxiliary_loss(model)
            whole = loss if routers is None else loss + batch.labelled * routers
        (whole / valid).backward()
        total += float(loss.detach()) / valid
    return total
