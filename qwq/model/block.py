"""The block that every assembly is made of.

Shapes: B batch, T tokens, C hidden_size.
"""

from torch import Tensor, nn

from qwq.kernels.elementwise import rotate
from qwq.model.attention import Attention, DenseAttention, Tokens
from qwq.model.config import ModelConfig
from qwq.model.layers import MLP, PlainMLP, norm
from qwq.model.moe import MoE


class TransformerBlock(nn.Module):
    """Pre-norm residual block: attention, then feed-forward. [B, T, C] -> [B, T, C]"""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config)
        self.mlp = feed_forward(config, layer)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tokens)
        return x + self.mlp(self.post_attention_layernorm(x))

    def fill(self, x: Tensor, tokens: Tokens) -> None:
        """Only put the keys and values of x into the cache: of tokens that left the model before this block."""
        attention, h = self.self_attn, self.input_layernorm(x)
        if not isinstance(attention.attend, DenseAttention):  # a gate keeps more than keys and values
            attention(h, tokens)
            return
        key, value = attention.key_value(h)
        if tokens.rope is not None:
            key = rotate(key, *tokens.rope)
        assert tokens.cache is not None
        tokens.cache.store(attention.layer, key, value)


def feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    """The feed-forward of a layer: experts where the config has them."""
    if config.is_moe(layer):
        return MoE(config)
    return MLP(config) if config.gated_mlp else PlainMLP(config)
