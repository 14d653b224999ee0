"""Between ModelConfig and Hugging Face's config.json, both ways. What has no slot is refused by name."""

import dataclasses

from qwq.errors import QwqError
from qwq.model import ModelConfig

ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
_SAME_NAME = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
    "rms_norm_eps tie_word_embeddings initializer_range"
).split()
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2"}


def from_hf(config: dict, where: str = "config.json") -> ModelConfig:
    """config.json of a Qwen2, Qwen3 or Llama checkpoint -> ModelConfig. `QwqError` names what has no slot here."""
    kind = config.get("model_type")
    architectures = config.get("architectures") or []
    if kind not in ARCHITECTURES.values() or (architectures and architectures[0] not in ARCHITECTURES):
        name = architectures[0] if architectures else kind
        raise QwqError(f"{where}: architecture {name!r} is not known; known are {', '.join(sorted(ARCHITECTURES))}")
    if config.get("use_sliding_window"):
        raise QwqError(f"{where}: use_sliding_window is set, and sliding-window attention has no slot here yet")
    if config.get("quantization_config"):
        raise QwqError(f"{where}: quantization_config is set; give the unquantised checkpoint or a GGUF file")
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise QwqError(f"{where}: hidden_act {activation!r} is not known; known are {', '.join(_ACTIVATIONS)}")
    missing = [k for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
               if k not in config]  # fmt: skip
    if missing:
        raise QwqError(f"{where}: {missing[0]} is missing")

    # transformers 5 keeps theta and the scaling together under rope_parameters; earlier files have two keys.
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    scaling = rope if rope.get("rope_type", "default") != "default" else None
    bias = bool(config.get("attention_bias", False))
    heads = config["num_attention_heads"]
    # Defaults differ between the classes where a file leaves a key out.
    settings = {k: config[k] for k in _SAME_NAME if k in config}
    try:
        return ModelConfig(
            **{"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, **settings},
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or (128 if kind == "qwen3" else config["hidden_size"] // heads),
            hidden_act=_ACTIVATIONS[activation],
            rope_theta=float(theta),
            rope_scaling=scaling,
            attention_bias=True if kind == "qwen2" else bias,
            attention_output_bias=False if kind == "qwen2" else bias,
            mlp_bias=bool(config.get("mlp_bias", False)) if kind == "llama" else False,
            use_qk_norm=kind == "qwen3",
        )
    except ValueError as error:
        raise QwqError(f"{where}: {error}") from None


def to_hf(config: ModelConfig) -> dict:
    """ModelConfig -> config.json of the class that computes the same. `QwqError` names what no class has a slot for."""
    if config.use_qk_norm:
        kind, allowed = "qwen3", config.attention_bias == config.attention_output_bias and not config.mlp_bias
    elif config.attention_bias and not config.attention_output_bias:
        kind, allowed = "qwen2", not config.mlp_bias
    else:
        kind, allowed = "llama", config.attention_bias == config.attention_output_bias
    if not allowed:
        flags = ("use_qk_norm", "attention_bias", "attention_output_bias", "mlp_bias")
        given = ", ".join(f"{f}={getattr(config, f)}" for f in flags)
        raise QwqError(f"no Hugging Face class has a slot for {given} together")
    out = {
        "architectures": [next(a for a, k in ARCHITECTURES.items() if k == kind)],
        "model_type": kind,
        **{k: getattr(config, k) for k in _SAME_NAME},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "use_cache": True,
    }
    if kind == "qwen2":
        out["use_sliding_window"] = False
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            raise QwqError("Qwen2ForCausalLM has no slot for head_dim other than hidden_size / num_attention_heads")
    else:
        out["attention_bias"] = config.attention_bias
    if kind == "llama":
        out["mlp_bias"] = config.mlp_bias
    return out


def from_dict(values: dict, where: str) -> ModelConfig:
    """This project's own JSON of a ModelConfig; an unknown key is an error."""
    unknown = set(values) - {f.name for f in dataclasses.fields(ModelConfig)}
    if unknown:
        raise QwqError(f"{where}: unknown key {sorted(unknown)[0]!r}; the file is of a newer version or was edited")
    try:
        return ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise QwqError(f"{where}: {error}") from None
