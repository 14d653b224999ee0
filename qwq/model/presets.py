"""The named sizes."""

from qwq.model.config import ModelConfig

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
