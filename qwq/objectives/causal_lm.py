"""Causal language modelling: every token predicts the next one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwq.objectives import early_exit
from qwq.objectives.cross_entropy import cross_entropy_sum
from qwq.objectives.objective import Batch, Objective, Window


@dataclass
class CausalLM(Objective):
    """A window of packed tokens as it is, each token labelled with the next.

    `early_exit_loss_coef` and `layer_dropout` train for early exit (LayerSkip, arXiv:2404.16710): see early_exit.py.
    """

    chunk_size: int = 512  # tokens whose logits exist at one time
    early_exit_loss_coef: float = 0.0
    layer_dropout: float = 0.0

    name = "causal_lm"
    architectures = ("decoder",)
    reason = "every token of an encoder sees the one that it should predict"

    def batch(self, window: Window, generator: torch.Generator) -> Batch:
        return Batch(*window)

    def sum(self, model: Any, batch: Batch) -> Tensor:
        if torch.is_grad_enabled() and (self.early_exit_loss_coef > 0 or self.layer_dropout > 0):
            return early_exit.loss_sum(
                model,
                batch,
                early_exit_loss_coef=self.early_exit_loss_coef,
                layer_dropout=self.layer_dropout,
                chunk_size=self.chunk_size,
            )
        return cross_entropy_sum(model.hidden(batch.input_ids), model.lm_head.weight, batch.labels, self.chunk_size)
