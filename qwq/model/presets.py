"""The named sizes."""

import dataclasses

from qwq.model.config import ModelConfig


def extended(config: ModelConfig, num_experts: int, *, router_bias_update_rate: float = 0.001) -> ModelConfig:
    """The extended design at a size: what `qwq-nano`, `qwq-small` and `qwq-32b-sparse` have in common.

    Every layer attends to an eighth of the context and to its first block; beyond that, layers take turns: one block
    drawn at random, or those that a gate has learned to choose. Every second layer has experts half as wide as the
    dense feed-forward, two for a token, so that a token costs what it costs the dense model. Exits after a quarter
    and after half of the layers.
    """
    block, window, layers = config.attention_block_size, config.max_position_embeddings // 8, config.num_hidden_layers
    learned = max(2, window // block // 4)
    return dataclasses.replace(
        config,
        attention_patterns=(
            f"local({window})+global({block})+random(1)",
            f"local({window})+global({block})+learnable({learned})",
        ),
        num_experts=num_experts,
        num_experts_per_tok=2,
        moe_intermediate_size=config.intermediate_size // 2,
        decoder_sparse_step=2,
        router_bias_update_rate=router_bias_update_rate,
        exit_layers=(round(layers / 4) - 1, round(layers / 2) - 1),
    )


PRESETS: dict[str, ModelConfig] = {
    # For a laptop CPU: 16M parameters, 8.5M active. Shallow and wide: what learns most in minutes (docs/log.md).
    "qwq-nano": extended(
        ModelConfig(
            hidden_size=320,
            intermediate_size=1280,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=1,
            use_qk_norm=True,
        ),
        num_experts=8,
        router_bias_update_rate=0.003,  # few steps to balance in
    ),
    # For one GPU: 381M parameters, 121M active.
    "qwq-small": extended(
        ModelConfig(
            vocab_size=32_000,
            hidden_size=768,
            intermediate_size=2304,
            num_hidden_layers=14,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            use_qk_norm=True,
        ),
        num_experts=16,
    ),
    # An encoder of 24 layers and 16 heads, 950M parameters, of which a token passes through 350M. Experts in layers 3,
    # 7, 11, 15 and 19, numbered from 0 as Hugging Face does: every fourth layer but the last. The classic block:
    # norm_type layer_norm, position_embedding sinusoidal, hidden_act relu, gated_mlp false, use_qk_norm false.
    "qwq-encoder-24": ModelConfig(
        architecture="encoder",
        vocab_size=32_128,  # 32,000 of a tokenizer, and 128 for [MASK], [CLS] and their like
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        use_qk_norm=True,
        num_experts=16,
        moe_intermediate_size=2816,
        decoder_sparse_step=4,
        mlp_only_layers=(23,),
        router_bias_update_rate=0.001,
    ),
    # 32.7B parameters, 3.4B active. On paper: `qwq plan qwq-32b-sparse`.
    "qwq-32b-sparse": extended(
        ModelConfig(
            vocab_size=152_064,
            hidden_size=2560,
            intermediate_size=5120,
            num_hidden_layers=48,
            num_attention_heads=20,
            num_key_value_heads=4,
            head_dim=128,
            max_position_embeddings=32_768,
            rope_theta=1_000_000.0,
            tie_word_embeddings=False,
            use_qk_norm=True,
        ),
        num_experts=64,
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
