"""Dynamic depth: exits and layers that are left out (LayerSkip, arXiv:2404.16710), tokens that leave early (CALM,
arXiv:2207.07061), what they cost.

Shapes: B batch, T tokens, C hidden_size, V vocab_size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwq.kernels.elementwise import rotate
from qwq.kernels.linear import linear
from qwq.model.attention import CacheRows, DenseAttention, Tokens
from qwq.model.config import ModelConfig

if TYPE_CHECKING:
    from qwq.model.transformer import Decoder, TransformerBlock


def flops_of_token(config: ModelConfig, layers: int, context: int, *, heads: int = 1) -> int:
    """Multiply-adds x 2 of one token that sees `context` others: its first `layers` layers and `heads` times lm_head.

    With all layers it is `config.flops_per_token`. What a token that leaves early still pays for is `filling_flops`.
    """
    through = sum(config.layer_flops(layer, context) for layer in range(layers))
    return through + heads * 2 * config.hidden_size * config.vocab_size


def filling_flops(config: ModelConfig, layers: int) -> int:
    """Of the keys and values that a token which left after `layers` layers has in the others."""
    each = config.num_key_value_heads * (config.head_dim + config.value_dim)
    return (config.num_hidden_layers - layers) * 2 * config.hidden_size * each


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


def leave_early(model: "Decoder", input_ids: Tensor, rows: CacheRows, confidence: float) -> tuple[Tensor, int]:
    """One token [1, 1] of one row -> its logits [1, 1, V] and the number of layers it went through.

    It leaves at the first of `config.exit_layers` where the most likely token's probability is at least `confidence`.
    The layers it does not go through get their keys and values from the state with which it left, so that later tokens
    find it everywhere.
    """
    x, tokens = model.model.begin(input_ids, causal=True, cache=rows)
    layers: list[TransformerBlock] = list(model.model.layers)  # type: ignore[arg-type]
    for depth, layer in enumerate(layers, start=1):
        x = layer(x, tokens)
        if depth - 1 in model.config.exit_layers or depth == len(layers):
            logits = linear(model.model.norm(x), model.lm_head.weight)
            if depth == len(layers) or float(logits.float().softmax(-1).max()) >= confidence:
                break
    for layer in layers[depth:]:
        _fill(layer, x, tokens)
    rows.end(1)
    return logits, depth


def _fill(layer: "TransformerBlock", x: Tensor, tokens: Tokens) -> None:
    """Keys and values of x in a layer that it does not go through."""
    attention, h = layer.self_attn, layer.input_layernorm(x)
    if not isinstance(attention.attend, DenseAttention):  # a gate keeps more than keys and values
        attention(h, tokens)
        return
    key, value = attention.key_value(h)
    if tokens.rope is not None:
        key = rotate(key, *tokens.rope)
    assert tokens.cache is not None
    tokens.cache.store(attention.layer, key, value)
