"""Dynamic depth: exits and layers that are left out (LayerSkip, arXiv:2404.16710), tokens that leave early (CALM,
arXiv:2207.07061), blocks that tokens go round (mixture-of-depths, arXiv:2404.02258), what all of that costs.

Shapes: B batch, T new tokens, S tokens seen, C hidden_size, K key/value heads, D head_dim, V vocab_size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.kernels.elementwise import rotate
from qwq.kernels.linear import Linear, linear
from qwq.model.attention import CacheRows, Tokens
from qwq.model.block import TransformerBlock
from qwq.model.config import ModelConfig

if TYPE_CHECKING:
    from qwq.model.transformer import Decoder


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
        layer.fill(x, tokens)
    rows.end(1)
    return logits, depth


class MixtureOfDepthsBlock(TransformerBlock):
    """A block that only a share of the tokens goes through. [B, T, C] -> [B, T, C]

    Where gradients are taken, the `mod_capacity` of a sequence with the highest scores goes: which ones, no token knows
    before the sequence has ended. Else a token goes where its own score is above zero, as `loss`, a binary
    cross-entropy, teaches the router; where that is not learned, the model computes something else than in training.
    A token that goes round is not seen by the others here: in the cache its key is zero, as no other key is.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.mod_router, self.capacity = Linear(config.hidden_size, 1), config.mod_capacity
        self.loss: Tensor | None = None  # of the last forward pass

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return self._by_own_score(x, tokens)
        scores = self.mod_router(x)  # [B, T, 1]
        best = scores[..., 0].topk(max(1, round(self.capacity * x.shape[1])), dim=1).indices.sort(dim=1).values
        wanted = torch.zeros_like(scores).scatter_(1, best[..., None], 1.0)
        self.loss = F.binary_cross_entropy_with_logits(self.mod_router(x.detach()), wanted)
        index = best[..., None].expand(-1, -1, x.shape[2])
        inside = x.gather(1, index)
        added = super().forward(inside, _chosen(tokens, best)) - inside
        return x.scatter_add(1, index, scores.gather(1, best[..., None]).sigmoid() * added)

    def _by_own_score(self, x: Tensor, tokens: Tokens) -> Tensor:
        scores = self.mod_router(x)
        goes = scores > 0
        if tokens.cache is not None and not bool(goes.any()):
            self._store(x, goes, tokens)
            return x
        attention, h = self.self_attn, self.input_layernorm(x)
        query = attention.query(h)
        if tokens.rope is not None:
            query = rotate(query, *tokens.rope)
        key, value = self._store(h, goes, tokens)
        heads = F.scaled_dot_product_attention(query, key, value, _seen(key, tokens), enable_gqa=True)
        out = x + attention.output(heads.masked_fill(~goes[:, None], 0.0))
        out = out + self.mlp(self.post_attention_layernorm(out))
        return torch.where(goes, x + scores.sigmoid() * (out - x), x)

    def fill(self, x: Tensor, tokens: Tokens) -> None:
        self._store(self.input_layernorm(x), self.mod_router(x) > 0, tokens)

    def _store(self, h: Tensor, goes: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, S, D] of all tokens so far and of h [B, T, C], zero for those that go round."""
        attention = self.self_attn
        if bool(goes.any()):
            key, value = attention.key_value(h)
            if tokens.rope is not None:
                key = rotate(key, *tokens.rope)
            key, value = key * goes[:, None], value * goes[:, None]
        else:
            width, size = attention.k_proj.out_features, h.shape[:2]
            key = h.new_zeros(*size, width // attention.head_dim, attention.head_dim).transpose(1, 2)
            value = h.new_zeros(*key.shape[:3], attention.value_dim)
        return (key, value) if tokens.cache is None else tokens.cache.store(attention.layer, key, value)


def _chosen(tokens: Tokens, index: Tensor) -> Tokens:
    """Where the tokens at `index` [B, k] (rising) stand: each sees those of them that it saw before."""
    batch, rope, boundaries = len(index), None, None
    if tokens.rope is not None:
        places = index[:, None, :, None].expand(-1, -1, -1, tokens.rope[0].shape[-1])
        cos, sin = (table.expand(batch, -1, -1, -1).gather(2, places) for table in tokens.rope)
        rope = cos, sin
    if tokens.boundaries is not None:
        ends = torch.searchsorted(index[0], torch.tensor(tokens.boundaries, device=index.device))
        boundaries = ends.unique_consecutive().tolist()
    return Tokens(tokens.positions.expand(batch, -1).gather(1, index), rope, tokens.causal, boundaries=boundaries)


def _seen(key: Tensor, tokens: Tokens) -> Tensor:
    """Which of the keys [B, K, S, D] each token sees: those that are there, and not after it. [B, 1, T or 1, S]"""
    there = (key != 0).flatten(3).any(3).any(1)[:, None, None]
    if tokens.mask is not None:
        return there & tokens.mask
    places = torch.arange(key.shape[2], device=key.device)
    if tokens.boundaries is not None:
        document = torch.searchsorted(torch.tensor(tokens.boundaries[1:], device=key.device), places, right=True)
        there = there & (document[:, None] == document)
    return there & (places <= places[:, None]) if tokens.causal else there


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """What the routers of mixture-of-depths blocks add to the loss of a token, from the last forward pass: 0.1 times
    the mean of their cross-entropies. None where there are none."""
    blocks = [module for module in model.modules() if isinstance(module, MixtureOfDepthsBlock)]
    losses = [block.loss for block in blocks if block.loss is not None]
    for block in blocks:
        block.loss = None
    return 0.1 * torch.stack(losses).mean() if losses else None
