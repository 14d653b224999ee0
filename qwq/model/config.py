"""The shape of a model, in Hugging Face's names, and the named sizes."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder of the Llama family. Field names are those of Hugging Face's config.json.

    Three published architectures are settings of this one: Qwen2 has `attention_bias` (query, key and value only),
    Qwen3 has `use_qk_norm`, Llama has neither. `ValueError` names the field that makes no sense.
    """

    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    hidden_act: str = "silu"  # "silu" (SwiGLU) or "relu2" (squared ReLU, Primer, arXiv:2109.08668), both gated
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None  # {"rope_type": "yarn" | "llama3" | "linear", "factor": ..., ...}
    tie_word_embeddings: bool = True
    attention_bias: bool = False  # bias of q_proj, k_proj, v_proj
    attention_output_bias: bool = False  # bias of o_proj
    mlp_bias: bool = False
    use_qk_norm: bool = False  # RMSNorm of every query and key head, before the rotary embedding
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and value <= 0:
                raise ValueError(f"{field.name} must be positive, got {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")
        if self.hidden_act not in ("silu", "relu2"):
            raise ValueError(f"hidden_act must be 'silu' or 'relu2', got {self.hidden_act!r}")
        rope_type = (self.rope_scaling or {}).get("rope_type", "default")
        if rope_type not in ("default", "linear", "yarn", "llama3"):
            raise ValueError(f"rope_scaling: rope_type must be default, linear, yarn or llama3, got {rope_type!r}")

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Number of parameters; without `embeddings`, of the layers and the final norm only."""
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * key)
        attention += self.attention_bias * (query + 2 * key) + self.attention_output_bias * self.hidden_size
        attention += self.use_qk_norm * 2 * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        layers = self.num_hidden_layers * (attention + mlp + 2 * self.hidden_size) + self.hidden_size
        return layers + embeddings * self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    def flops_per_token(self, context: int, *, training: bool = False) -> int:
        """Multiply-adds x 2 of one token that sees `context` earlier tokens on average; x 3 with the backward pass.

        Matrix products and attention scores only, as in PaLM's appendix B (arXiv:2204.02311).
        """
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer = self.hidden_size * (2 * query + 2 * key) + 3 * self.hidden_size * self.intermediate_size
        matmul = self.num_hidden_layers * layer + self.hidden_size * self.vocab_size
        attention = self.num_hidden_layers * 2 * query * context
        return 2 * (matmul + attention) * (3 if training else 1)

    def kv_bytes_per_token(self, itemsize: int = 4) -> int:
        """Bytes of key/value cache that one token takes."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * itemsize


PRESETS: dict[str, ModelConfig] = {
    # For a laptop CPU: about 8M parameters. Shallow and wide: what learns most in minutes (docs/log.md).
    "qwq-nano": ModelConfig(
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=1,
        use_qk_norm=True,
    ),
    # For one GPU: about 125M parameters.
    "qwq-small": ModelConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        use_qk_norm=True,
    ),
    # Qwen/QwQ-32B as published: 32,763,876,352 parameters.
    "qwq-32b": ModelConfig(
        vocab_size=152_064,
        hidden_size=5120,
        intermediate_size=27_648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rms_norm_eps=1e-5,
        rope_theta=1_000_000.0,
        tie_word_embeddings=False,
        attention_bias=True,
    ),
}
