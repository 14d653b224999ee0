"""The decoder made of blocks; the other assemblies are in encoder.py.

Parameter names are Hugging Face's, so checkpoints load by name.

Shapes: B batch, T tokens, C hidden_size, V vocab_size.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from qwq.kernels.linear import Linear, linear
from qwq.model.attention import CacheRows, Tokens
from qwq.model.block import TransformerBlock
from qwq.model.config import ModelConfig
from qwq.model.depth import MixtureOfDepthsBlock
from qwq.model.layers import RotaryEmbedding, norm, sinusoidal


class Layers(nn.Module):
    """What Hugging Face keeps under `model.`: embeddings, blocks, final norm."""

    def __init__(self, config: ModelConfig, block: type[TransformerBlock] = TransformerBlock):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        kinds = [MixtureOfDepthsBlock if i in config.mod_layers else block for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(kind(config, i) for i, kind in enumerate(kinds))
        self.norm = norm(config)
        self.rotary = RotaryEmbedding(config)

    def begin(
        self, input_ids: Tensor, *, causal: bool, cache: CacheRows | None = None, boundaries: list[int] | None = None
    ) -> tuple[Tensor, Tokens]:
        """Token ids [B, T] -> their vectors [B, T, C], and where they stand."""
        device, mask, count = input_ids.device, None, input_ids.shape[1]
        if cache is not None:
            positions, mask, causal = cache.begin(count, device)
        elif boundaries is not None:
            positions = torch.cat([torch.arange(b - a, device=device) for a, b in pairwise(boundaries)])[None]
        else:
            positions = torch.arange(count, device=device)[None]
        x, rope = self.embed_tokens(input_ids), None
        if self.config.position_embedding == "rotary":
            rope = self.rotary(positions, x.dtype)
        else:
            x = x + sinusoidal(positions, x.shape[-1], x.dtype)
        return x, Tokens(positions, rope, causal, mask, cache, boundaries)


class Assembly(nn.Module):
    """What Decoder, Encoder and EncoderDecoder share: layers, and the head that turns their states into logits."""

    block = TransformerBlock

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Layers(config, self.block)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @torch.no_grad()
    def init_weights(self, seed: int, *, zero_residual: bool = False) -> None:
        """Normal weights of `initializer_range`.

        `zero_residual` starts every block as the identity (o_proj, down_proj = 0; Fixup, arXiv:1901.09321).
        """
        generator, residual = torch.Generator().manual_seed(seed), ("o_proj", "down_proj")
        for name, parameter in self.named_parameters():
            if "norm" in name and name.endswith(".weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias") or (zero_residual and name.removesuffix(".weight").endswith(residual)):
                parameter.zero_()
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)


class Decoder(Assembly):
    """Decoder-only language model: token ids [B, T] -> logits [B, T, V]."""

    def hidden(
        self,
        input_ids: Tensor,
        *,
        cache: CacheRows | None = None,
        boundaries: list[int] | None = None,
        num_layers: int | None = None,
    ) -> Tensor:
        """Token ids [B, T] -> final hidden states [B, T, C], normalised; what `lm_head` reads.

        With a `cache`, the ids continue its rows and are added to them; without one they start at position 0, or are
        documents packed one after the other ([1, T], cut at `boundaries`). `num_layers`: only the first so many.
        """
        x, tokens = self.model.begin(input_ids, causal=True, cache=cache, boundaries=boundaries)
        for layer in self.model.layers[:num_layers]:
            x = layer(x, tokens)
        if cache is not None:
            cache.end(input_ids.shape[1])
        return self.model.norm(x)

    def forward(self, input_ids: Tensor, *, cache: CacheRows | None = None, logits_to_keep: int = 0) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V]; only the last `logits_to_keep` positions when that is not 0."""
        x = self.hidden(input_ids, cache=cache)
        return linear(x[:, -logits_to_keep:], self.lm_head.weight)
