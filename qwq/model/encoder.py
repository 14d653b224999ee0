"""Encoder and EncoderDecoder, from the same block as the decoder.

Shapes: B batch, S source tokens, T target tokens, C hidden_size, V vocab_size.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.kernels.linear import linear
from qwq.model.attention import CacheRows, CrossAttention, KVCache, Memory, Tokens
from qwq.model.config import ModelConfig
from qwq.model.layers import norm
from qwq.model.transformer import Assembly, Decoder, TransformerBlock


class Encoder(Assembly):
    """Every token sees its whole document: token ids [B, S] -> logits [B, S, V] of what stands at each place.

    A batch is either padded ([B, S] with `attention_mask`, True where there is a token) or documents packed one after
    the other ([1, N], cut at `boundaries`), which computes the same without the padding.
    """

    def hidden(
        self, input_ids: Tensor, *, boundaries: list[int] | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Token ids [B, S] -> states [B, S, C], normalised; what `lm_head` reads."""
        x, tokens = self.model.begin(input_ids, causal=False, boundaries=boundaries)
        tokens.mask = _keys(attention_mask)
        for layer in self.model.layers:
            x = layer(x, tokens)
        return self.model.norm(x)

    def forward(
        self, input_ids: Tensor, *, boundaries: list[int] | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Token ids [B, S] -> logits [B, S, V]"""
        hidden = self.hidden(input_ids, boundaries=boundaries, attention_mask=attention_mask)
        return linear(hidden, self.lm_head.weight)

    def embed(self, input_ids: Tensor, *, boundaries: list[int]) -> Tensor:
        """Packed documents [1, N] -> one vector of length 1 for each, [documents, C]: the mean of its states."""
        states = self.hidden(input_ids, boundaries=boundaries)[0]
        sizes = torch.tensor(boundaries, device=states.device).diff().tolist()
        return F.normalize(torch.stack([part.mean(0) for part in states.split(sizes)]), dim=-1)


class CrossBlock(TransformerBlock):
    """A block whose tokens also read an encoder's states, after they have read each other (arXiv:1706.03762)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.cross_attn_layernorm = norm(config)
        self.cross_attn = CrossAttention(config, layer)

    def forward(self, x: Tensor, tokens: Tokens, memory: Memory | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tokens)
        x = x + self.cross_attn(self.cross_attn_layernorm(x), tokens, memory)
        return x + self.mlp(self.post_attention_layernorm(x))


class EncoderDecoder(Assembly):
    """The encoder reads `input_ids` [B, S], the decoder writes `target_ids` [B, T]; both share the embeddings.

    Packed batches have one list of boundaries for the sources and one for the targets: target i reads source i.
    """

    block = CrossBlock

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        # The encoder's layers are blocks of the same config; depth that adapts is the decoder's.
        config = dataclasses.replace(config, exit_layers=(), mod_layers=())
        layers = nn.ModuleList(TransformerBlock(config, i) for i in range(config.num_encoder_layers))
        self.encoder = nn.ModuleDict({"layers": layers, "norm": norm(config)})

    def encode(
        self, input_ids: Tensor, *, boundaries: list[int] | None = None, attention_mask: Tensor | None = None
    ) -> Memory:
        """Token ids [B, S] -> what the decoder reads. Padded or packed, as `Encoder` takes them."""
        x, tokens = self.model.begin(input_ids, causal=False, boundaries=boundaries)
        tokens.mask = _keys(attention_mask)
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            x = layer(x, tokens)
        return Memory(self.encoder["norm"](x), tokens.mask, boundaries)

    def decode(
        self,
        target_ids: Tensor,
        memory: Memory,
        *,
        cache: CacheRows | None = None,
        boundaries: list[int] | None = None,
    ) -> Tensor:
        """Token ids [B, T], after those in `cache` -> states [B, T, C], normalised; what `lm_head` reads."""
        x, tokens = self.model.begin(target_ids, causal=True, cache=cache, boundaries=boundaries)
        for layer in self.model.layers:
            x = layer(x, tokens, memory)
        if cache is not None:
            cache.end(target_ids.shape[1])
        return self.model.norm(x)

    def forward(
        self,
        input_ids: Tensor,
        target_ids: Tensor,
        *,
        boundaries: list[int] | None = None,
        target_boundaries: list[int] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Sources [B, S] and targets [B, T] -> logits [B, T, V] of the token after each of the target."""
        memory = self.encode(input_ids, boundaries=boundaries, attention_mask=attention_mask)
        return linear(self.decode(target_ids, memory, boundaries=target_boundaries), self.lm_head.weight)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, start: int, stop: int, max_tokens: int, *, attention_mask: Tensor | None = None
    ) -> list[list[int]]:
        """The likeliest next token, again and again, after the token `start`: a list of ids for each source.

        A row ends before its first `stop` token, or with `max_tokens`.
        """
        memory = self.encode(input_ids, attention_mask=attention_mask)
        memory.keep = True
        rows = len(input_ids)
        cache = KVCache(self.config, rows, memory.states.dtype, input_ids.device)
        newest, written = input_ids.new_full((rows, 1), start), input_ids.new_empty(rows, 0)
        while written.shape[1] < max_tokens and not bool((written == stop).any(1).all()):
            hidden = self.decode(newest, memory, cache=cache.rows(0, rows))
            newest = linear(hidden, self.lm_head.weight).argmax(-1)
            written = torch.cat((written, newest), 1)
        return [row[: row.index(stop)] if stop in row else row for row in written.tolist()]


def _keys(attention_mask: Tensor | None) -> Tensor | None:
    """[B, S] -> [B, 1, 1, S]"""
    return None if attention_mask is None else attention_mask.bool()[:, None, None]


ASSEMBLIES: dict[str, type[Assembly]] = {"decoder": Decoder, "encoder": Encoder, "encoder-decoder": EncoderDecoder}


def build(config: ModelConfig) -> Assembly:
    """The assembly that `config.architecture` names; weights are whatever torch put there."""
    return ASSEMBLIES[config.architecture](config)
