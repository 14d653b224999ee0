"""Dynamic depth: exits and layers that are left out (LayerSkip, arXiv:2404.16710).

Shapes: B batch, T tokens, C hidden_size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qwq.model.transformer import Decoder


def dropout_rates(num_layers: int, highest: float) -> list[float]:
    """How often each layer is left out: never the first, `highest` the last, exponentially between."""
    return [highest * (2 ** (layer / max(1, num_layers - 1)) - 1) for layer in range(num_layers)]


def exit_states(
    model: "Decoder",
    input_ids: Tensor,
    *,
    boundaries: list[int] | None = None,
    layer_dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Token ids [B, T] -> what `lm_head` reads after each of `config.exit_layers` and at the end, each [B, T, C].

    One pass, for training: no cache. With `layer_dropout` a layer is left out of the whole call with the chance that
    `dropout_rates` gives it, drawn from `generator` (a CPU one; by default torch's own, which a checkpoint keeps).
    """
    x, tokens = model.model.begin(input_ids, causal=True, boundaries=boundaries)
    states = []
    rates = dropout_rates(len(model.model.layers), layer_dropout)
    for index, (layer, rate) in enumerate(zip(model.model.layers, rates, strict=True)):
        if rate == 0 or float(torch.rand((), generator=generator)) >= rate:
            x = layer(x, tokens)
        if index in model.config.exit_layers:
            states.append(model.model.norm(x))
    return [*states, model.model.norm(x)]
