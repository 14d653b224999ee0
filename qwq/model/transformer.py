"""TransformerBlock and the decoder made of it. Parameter names are Hugging Face's, so checkpoints load by name.

Shapes: B batch, T tokens, C hidden_size, V vocab_size.
"""

import torch
from torch import Tensor, nn

from qwq.kernels.linear import Linear, linear
from qwq.model.attention import Attention, CacheRows
from qwq.model.config import ModelConfig
from qwq.model.layers import MLP, RMSNorm, RotaryEmbedding


class TransformerBlock(nn.Module):
    """Pre-norm residual block: attention, then feed-forward. [B, T, C] -> [B, T, C]"""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool, cache: CacheRows | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, causal, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Layers(nn.Module):
    """What Hugging Face keeps under `model.`: embeddings, blocks, final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TransformerBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)


class Decoder(nn.Module):
    """Decoder-only language model: token ids [B, T] -> logits [B, T, V]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = _Layers(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, input_ids: Tensor, *, cache: CacheRows | None = None) -> Tensor:
        """Token ids [B, T] -> final hidden states [B, T, C], normalised; what `lm_head` reads.

        With a `cache`, the ids continue its rows and are added to them; without one they start at position 0.
        """
        tokens = input_ids.shape[1]
        mask, causal = None, True
        if cache is None:
            positions = torch.arange(tokens, device=input_ids.device)[None]
        else:
            positions, mask, causal = cache.begin(tokens, input_ids.device)
        x = self.model.embed_tokens(input_ids)
        rope = self.model.rotary(positions, x.dtype)
        for layer in self.model.layers:
            x = layer(x, rope, mask, causal, cache)
        if cache is not None:
            cache.end(tokens)
        return self.model.norm(x)

    def forward(self, input_ids: Tensor, *, cache: CacheRows | None = None, logits_to_keep: int = 0) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V]; only the last `logits_to_keep` positions when that is not 0."""
        x = self.hidden(input_ids, cache=cache)
        return linear(x[:, -logits_to_keep:], self.lm_head.weight)

    @torch.no_grad()
    def init_weights(self, seed: int, *, zero_residual: bool = False) -> None:
        """Normal weights of `initializer_range`.

        `zero_residual` starts every block as the identity (o_proj, down_proj = 0; Fixup, arXiv:1901.09321).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias") or (zero_residual and name.endswith(("o_proj.weight", "down_proj.weight"))):
                parameter.zero_()
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
