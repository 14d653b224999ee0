"""The loss of a model that may be left early: an exit predicts the next token, as the end does (LayerSkip)."""

from typing import Any

import torch
from torch import Tensor

from qwq.errors import UsageError
from qwq.model.depth import exit_states
from qwq.objectives.cross_entropy import cross_entropy_sum


def loss_sum(
    model: Any,
    batch: Any,
    *,
    early_exit_loss_coef: float,
    layer_dropout: float = 0.0,
    chunk_size: int = 512,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sum over the batch's labels of the end's cross-entropy plus `early_exit_loss_coef` times an exit's, in nats.

    The model is a `Decoder`, the batch a `Batch`. One exit a call, drawn with a chance that grows with its depth: on
    average the weighted mean of all exits, at the price of one (arXiv:2404.16710, section 4.1). Draws are from
    `generator` (a CPU one; by default torch's own, which a checkpoint keeps). `UsageError` without exits.
    """
    depths = torch.tensor([layer + 1.0 for layer in model.config.exit_layers])
    if early_exit_loss_coef > 0 and not len(depths):
        raise UsageError("objective.early_exit_loss_coef needs exits: set model.exit_layers")
    *exits, end = exit_states(
        model, batch.input_ids, boundaries=batch.boundaries, layer_dropout=layer_dropout, generator=generator
    )
    weight = model.lm_head.weight
    loss = cross_entropy_sum(end, weight, batch.labels, chunk_size)
    if early_exit_loss_coef > 0:
        chosen = exits[int(torch.multinomial(depths, 1, generator=generator))]
        loss = loss + early_exit_loss_coef * cross_entropy_sum(chosen, weight, batch.labels, chunk_size)
    return loss
