"""Self-speculative decoding: the first layers guess tokens, all layers check them at once (arXiv:2404.16710).

The check is the plain decode loop: the logits after each guess go through the request's own sampler, and where it
takes another token than was guessed, the rest is thrown away. So a reply is, token by token and seed by seed, the one
of plain decoding, whatever sampler, penalties and stop strings are; a guess is kept with the probability that the
sampler gives it, which is speculative sampling (arXiv:2211.17192) for a draft that is certain of its guess. Guesses for
a sampler that draws are drawn too, with the luck that it will have (`Sampler.ahead`).

Shapes: B rows, N tokens of each (the last one taken and N - 1 guesses), C hidden_size, V vocab_size.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from qwq.kernels.linear import linear
from qwq.model import Decoder
from qwq.model.attention import CacheRows


class Decode(Protocol):
    """What the engine decodes with: `FastDecode` (kernels/decode.py), or `TorchDecode`."""

    def __call__(self, ids: Tensor, rows: CacheRows) -> Tensor:
        """ids [B, N] -> logits [B, N, V]; the rows hold N tokens more afterwards."""

    def draft(self, ids: Tensor, rows: CacheRows, luck: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """ids [B, 1] -> themselves and guesses, of the largest logit with `luck` [B, N - 1, V] added: [B, N]; the
        states of all after the first `layers`, [B, N, C]. The cache of those layers is written, the rows no longer."""

    def finish(self, ids: Tensor, states: Tensor, rows: CacheRows, layers: int) -> Tensor:
        """What `draft` gave, through the layers from `layers` on: logits [B, N, V]; N tokens more in the rows."""


class TorchDecode:
    """`Decode` in plain torch: the reference of the kernel, and for every model, device and dtype it does not know."""

    def __init__(self, model: Decoder):
        self.model = model

    def __call__(self, ids: Tensor, rows: CacheRows) -> Tensor:
        return self.model(ids, cache=rows)

    def draft(self, ids: Tensor, rows: CacheRows, luck: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        before = rows.cache.lengths[rows.start : rows.stop]
        drafted, states = [ids], []
        while True:
            states.append(self._layers(drafted[-1], None, rows, slice(layers)))
            if len(states) > luck.shape[1]:
                rows.cache.lengths[rows.start : rows.stop] = before
                return torch.cat(drafted, dim=1), torch.cat(states, dim=1)
            drafted.append((self._logits(states[-1]) + luck[:, len(states) - 1, None]).argmax(-1))

    def finish(self, ids: Tensor, states: Tensor, rows: CacheRows, layers: int) -> Tensor:
        return self._logits(self._layers(ids, states, rows, slice(layers, None)))

    def _layers(self, ids: Tensor, states: Tensor | None, rows: CacheRows, chosen: slice) -> Tensor:
        embedded, tokens = self.model.model.begin(ids, causal=True, cache=rows)
        x = embedded if states is None else states
        layers: Any = self.model.model.layers[chosen]
        for layer in layers:
            x = layer(x, tokens)
        rows.end(ids.shape[1])
        return x

    def _logits(self, states: Tensor) -> Tensor:
        return linear(self.model.model.norm(states), self.model.lm_head.weight)
