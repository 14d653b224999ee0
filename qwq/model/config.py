"""The shape of a model, in Hugging Face's names. The named sizes are in presets.py."""

import dataclasses
from dataclasses import dataclass

from qwq.model.block_layout import AttentionPattern

_CHOICES = {
    "architecture": ("decoder", "encoder", "encoder-decoder"),
    "hidden_act": ("silu", "relu2", "relu", "gelu"),
    "norm_type": ("rms_norm", "layer_norm"),
    "position_embedding": ("rotary", "sinusoidal"),
}


@dataclass(frozen=True)
class ModelConfig:
    """A transformer of the Llama family and what extends it. Field names are those of Hugging Face's config.json.

    Published architectures are settings of this one: Qwen2 has `attention_bias` (query, key and value only), Qwen3 has
    `use_qk_norm`, Llama has neither; with `num_experts` they are Qwen2-MoE, Qwen3-MoE and Mixtral. `ValueError` names
    the field that makes no sense.
    """

    architecture: str = "decoder"  # "decoder", "encoder" or "encoder-decoder"

    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    hidden_act: str = "silu"  # "silu" (SwiGLU when gated), "relu2" (squared, Primer, arXiv:2109.08668), "relu", "gelu"
    gated_mlp: bool = True  # down(act(gate(x)) * up(x)); otherwise down(act(up(x)))
    norm_type: str = "rms_norm"  # or "layer_norm"
    position_embedding: str = "rotary"  # or "sinusoidal", added to the embeddings (arXiv:1706.03762)
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

    # Encoder-decoder: `num_hidden_layers` are the decoder's.
    num_encoder_layers: int = 0

    # Sparse attention (sparsity.py): patterns by layer, from the first on and again from the start; none is dense.
    attention_patterns: tuple[str, ...] = ()  # such as "local(256)+global(64)+random(2)+learnable(4)" or "dense"
    attention_block_size: int = 64  # tokens
    shared_qk: bool = False  # query and key heads are one projection, each query head has a value head of its own

    # Mixture of experts (moe.py); 0 experts is dense.
    num_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool = True  # the weights of the chosen experts sum to 1
    decoder_sparse_step: int = 1  # every how many-th layer has experts
    mlp_only_layers: tuple[int, ...] = ()  # layers without experts all the same
    router_bias_update_rate: float = 0.0  # balance by a bias on selection (arXiv:2408.15664), step of one update
    router_aux_loss_coef: float = 0.0  # balance by a loss (Switch, arXiv:2101.03961)
    router_z_loss_coef: float = 0.0  # keeps the router's logits small (ST-MoE, arXiv:2202.08906)

    # Dynamic depth (depth.py)
    exit_layers: tuple[int, ...] = ()  # numbers of layers after which lm_head may already read (LayerSkip)
    mod_layers: tuple[int, ...] = ()  # mixture-of-depths: layers that only a share of the tokens goes through
    mod_capacity: float = 0.5  # that share

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # from JSON
                object.__setattr__(self, field.name, tuple(value))
            if field.type in (int, float) and (value < 0 or (value == 0 and field.default != 0)):
                raise ValueError(f"{field.name} must be positive, got {value}")
            allowed = _CHOICES.get(field.name)
            if allowed and value not in allowed:
                raise ValueError(f"{field.name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")
        if self.num_experts and not (self.moe_intermediate_size and self.num_experts_per_tok <= self.num_experts):
            raise ValueError(
                f"num_experts ({self.num_experts}) needs moe_intermediate_size and at least num_experts_per_tok "
                f"({self.num_experts_per_tok}) experts"
            )
        if (self.architecture == "encoder-decoder") != (self.num_encoder_layers > 0):
            raise ValueError("num_encoder_layers belongs to architecture encoder-decoder, and it needs them")
        beyond = [i for i in (*self.exit_layers, *self.mod_layers) if not 0 <= i < self.num_hidden_layers]
        if beyond:
            raise ValueError(f"exit_layers, mod_layers: there is no layer {beyond[0]}")
        for pattern in self.attention_patterns:
            if pattern != "dense":
                AttentionPattern.parse(pattern, self.attention_block_size)
        if self.mod_layers and self.architecture != "decoder":
            raise ValueError(f"mod_layers: an {self.architecture} has none, only a decoder")
        sparse = [i for i in self.mod_layers if self.attention_pattern(i) != "dense"]
        if sparse:
            raise ValueError(
                f"mod_layers: layer {sparse[0]} must attend densely, not {self.attention_pattern(sparse[0])}"
            )
        if not 0 < self.mod_capacity <= 1:
            raise ValueError(f"mod_capacity must be above 0 and at most 1, got {self.mod_capacity}")
        rope_type = (self.rope_scaling or {}).get("rope_type", "default")
        if rope_type not in ("default", "linear", "yarn", "llama3"):
            raise ValueError(f"rope_scaling: rope_type must be default, linear, yarn or llama3, got {rope_type!r}")

    def is_moe(self, layer: int) -> bool:
        """Whether this layer's feed-forward is a mixture of experts (Qwen's rule)."""
        chosen = (layer + 1) % self.decoder_sparse_step == 0 and layer not in self.mlp_only_layers
        return self.num_experts > 0 and chosen

    @property
    def value_dim(self) -> int:
        """Width of a value head as the cache holds it."""
        return self.head_dim * (self.num_attention_heads // self.num_key_value_heads if self.shared_qk else 1)

    def attention_pattern(self, layer: int) -> str:
        """This layer's pattern, "dense" where none is set."""
        return self.attention_patterns[layer % len(self.attention_patterns)] if self.attention_patterns else "dense"

    @property
    def is_llama(self) -> bool:
        """Whether this is the plain decoder that Llama, Qwen2 and Qwen3 are: RMSNorm, rotary, gated, all dense."""
        settings = ("architecture", "norm_type", "position_embedding", "gated_mlp", "shared_qk")
        plain = all(getattr(self, name) == ModelConfig.__dataclass_fields__[name].default for name in settings)
        return plain and self == self.dense()

    def dense(self) -> "ModelConfig":
        """The same width and depth without sparse attention, experts and dynamic depth."""
        return dataclasses.replace(
            self, attention_patterns=(), num_experts=0, router_bias_update_rate=0.0, exit_layers=(), mod_layers=()
        )

    def num_parameters(self, *, embeddings: bool = True, active: bool = False) -> int:
        """Number of parameters; without `embeddings`, of the layers and the final norm only.

        `active`: those that one token passes through, so of all experts the `num_experts_per_tok` and the shared one.
        """
        layers = sum(self._layer_parameters(layer, active) for layer in range(self.num_hidden_layers))
        if self.num_encoder_layers:
            layers += sum(self._layer_parameters(layer, active) for layer in range(self.num_encoder_layers))
            layers += sum(self._attention_parameters(layer) for layer in range(self.num_hidden_layers))
            layers += (self.num_hidden_layers + 1) * self._norm_parameters()
        layers += self._norm_parameters()
        return layers + embeddings * self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    def _norm_parameters(self) -> int:
        return self.hidden_size * (2 if self.norm_type == "layer_norm" else 1)

    def _attention_parameters(self, layer: int) -> int:
        output, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        query, value = (key, output) if self.shared_qk else (output, key)
        attention = self.hidden_size * (query + key + value + output)
        attention += self.attention_bias * (query + key + value) + self.attention_output_bias * self.hidden_size
        if "learnable" in self.attention_pattern(layer):
            attention += self.head_dim**2  # the gate
        return attention + self.use_qk_norm * 2 * self.head_dim * (2 if self.norm_type == "layer_norm" else 1)

    def _mlp_parameters(self, intermediate_size: int) -> int:
        mlp = (2 + self.gated_mlp) * self.hidden_size * intermediate_size
        return mlp + self.mlp_bias * ((1 + self.gated_mlp) * intermediate_size + self.hidden_size)

    def _layer_parameters(self, layer: int, active: bool) -> int:
        count = self._attention_parameters(layer) + 2 * self._norm_parameters()
        count += (layer in self.mod_layers) * (self.hidden_size + 1)
        if not self.is_moe(layer):
            return count + self._mlp_parameters(self.intermediate_size)
        experts = self.num_experts_per_tok if active else self.num_experts
        count += self.hidden_size * self.num_experts + experts * 3 * self.hidden_size * self.moe_intermediate_size
        count += self.num_experts * (self.router_bias_update_rate > 0)
        if self.shared_expert_intermediate_size:
            count += 3 * self.hidden_size * self.shared_expert_intermediate_size + self.hidden_size
        return count

    def flops_per_token(self, context: int, *, training: bool = False) -> int:
        """Multiply-adds x 2 of one token that sees `context` earlier tokens on average; x 3 with the backward pass.

        Matrix products and attention scores only, as in PaLM's appendix B (arXiv:2204.02311). Attention is counted as
        dense; what a pattern or an exit saves is counted where it is measured (depth.py).
        """
        layers = sum(self.layer_flops(layer, context) for layer in range(self.num_hidden_layers))
        return (layers + 2 * self.hidden_size * self.vocab_size) * (3 if training else 1)

    def layer_flops(self, layer: int, context: int) -> int:
        """The part of one layer, forward; of one that tokens go round (mixture-of-depths), `mod_capacity` of it."""
        output, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        multiplied = self.hidden_size * (2 * output + 2 * key) + 2 * output * context
        if self.is_moe(layer):
            inner = self.num_experts_per_tok * self.moe_intermediate_size + self.shared_expert_intermediate_size
            multiplied += 3 * self.hidden_size * inner + self.hidden_size * self.num_experts
        else:
            multiplied += (2 + self.gated_mlp) * self.hidden_size * self.intermediate_size
        if layer in self.mod_layers:
            multiplied = round(self.mod_capacity * multiplied) + self.hidden_size
        return 2 * multiplied

    def kv_bytes_per_token(self, itemsize: int = 4) -> int:
        """Bytes of key/value cache that one token takes."""
        return self.num_hidden_layers * self.num_key_value_heads * (self.head_dim + self.value_dim) * itemsize
