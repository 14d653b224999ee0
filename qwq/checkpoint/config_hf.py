"""Between ModelConfig and Hugging Face's config.json, both ways. What has no slot is refused by name."""

import dataclasses
from typing import Any

from qwq.errors import QwqError
from qwq.model import ModelConfig

ARCHITECTURES = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "MixtralForCausalLM": "mixtral",
}
_SAME_NAME = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
    "rms_norm_eps tie_word_embeddings initializer_range"
).split()
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2", "relu": "relu", "gelu": "gelu"}
# Of the extended design: no Hugging Face class has these.
_NO_SLOT = (
    "architecture gated_mlp norm_type position_embedding attention_patterns shared_qk router_bias_update_rate "
    "router_z_loss_coef exit_layers mod_layers"
).split()


def from_hf(config: dict, where: str = "config.json") -> ModelConfig:
    """config.json of a Qwen2, Qwen3, Llama, Qwen2-MoE, Qwen3-MoE or Mixtral checkpoint -> ModelConfig.

    `QwqError` names what has no slot here.
    """
    kind = str(config.get("model_type"))
    architectures = config.get("architectures") or []
    if kind not in ARCHITECTURES.values() or (architectures and architectures[0] not in ARCHITECTURES):
        name = architectures[0] if architectures else kind
        raise QwqError(f"{where}: architecture {name!r} is not known; known are {', '.join(sorted(ARCHITECTURES))}")
    sliding = "sliding_window" if kind == "mixtral" else "use_sliding_window"
    if config.get(sliding):
        raise QwqError(f"{where}: {sliding} is set, and sliding-window attention has no slot here yet")
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
    default_theta = 1_000_000.0 if kind == "mixtral" else 10_000.0
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    scaling = rope if rope.get("rope_type", "default") != "default" else None
    qwen2 = kind in ("qwen2", "qwen2_moe")
    bias = bool(config.get("qkv_bias", True) if qwen2 else config.get("attention_bias", False))
    heads = config["num_attention_heads"]
    # Defaults differ between the classes where a file leaves a key out.
    settings: dict[str, Any] = {"tie_word_embeddings": False, "max_position_embeddings": 2048}
    settings["rms_norm_eps"] = 1e-5 if kind == "mixtral" else 1e-6
    settings |= {k: config[k] for k in _SAME_NAME if k in config}
    try:
        if kind in ("qwen2_moe", "qwen3_moe", "mixtral"):
            settings |= _experts_from_hf(config, kind)
        return ModelConfig(
            **settings,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or (128 if kind == "qwen3" else config["hidden_size"] // heads),
            hidden_act=_ACTIVATIONS[activation],
            rope_theta=float(theta),
            rope_scaling=scaling,
            attention_bias=bias and kind != "mixtral",
            attention_output_bias=bias and not qwen2 and kind != "mixtral",
            mlp_bias=bool(config.get("mlp_bias", False)) if kind == "llama" else False,
            use_qk_norm=kind in ("qwen3", "qwen3_moe"),
        )
    except KeyError as error:
        raise QwqError(f"{where}: {error.args[0]} is missing") from None
    except ValueError as error:
        raise QwqError(f"{where}: {error}") from None


def _experts_from_hf(config: dict, kind: str) -> dict[str, Any]:
    """The settings of a mixture of experts. In `transformers` the auxiliary loss counts with `output_router_logits`."""
    loss = config.get("router_aux_loss_coef", 0.001) if config.get("output_router_logits") else 0.0
    settings = {
        "num_experts": config["num_local_experts" if "num_local_experts" in config else "num_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "router_aux_loss_coef": loss,
    }
    if kind == "mixtral":
        return settings | {"moe_intermediate_size": config["intermediate_size"]}
    if kind == "qwen2_moe":
        settings["shared_expert_intermediate_size"] = config["shared_expert_intermediate_size"]
    return settings | {
        "moe_intermediate_size": config["moe_intermediate_size"],
        "norm_topk_prob": config.get("norm_topk_prob", False),
        "decoder_sparse_step": config.get("decoder_sparse_step", 1),
        "mlp_only_layers": tuple(config.get("mlp_only_layers") or ()),
    }


def to_hf(config: ModelConfig) -> dict:
    """ModelConfig -> config.json of the class that computes the same. `QwqError` names what no class has a slot for."""
    unknown = [f for f in _NO_SLOT if getattr(config, f) != ModelConfig.__dataclass_fields__[f].default]
    if unknown:
        values = ", ".join(f"{f}={getattr(config, f)!r}" for f in unknown)
        raise QwqError(f"no Hugging Face class has a slot for {values}")
    flags = ["use_qk_norm", "attention_bias", "attention_output_bias", "mlp_bias"]
    no_bias = not (config.attention_bias or config.attention_output_bias or config.mlp_bias)
    if config.num_experts:
        flags += ["shared_expert_intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"]
        if config.shared_expert_intermediate_size:
            kind = "qwen2_moe"
            allowed = not (config.use_qk_norm or config.attention_output_bias or config.mlp_bias)
        elif config.use_qk_norm:
            kind, allowed = "qwen3_moe", config.attention_bias == config.attention_output_bias and not config.mlp_bias
        else:
            everywhere = config.decoder_sparse_step == 1 and not config.mlp_only_layers
            kind, allowed = "mixtral", no_bias and config.norm_topk_prob and everywhere
    elif config.use_qk_norm:
        kind, allowed = "qwen3", config.attention_bias == config.attention_output_bias and not config.mlp_bias
    elif config.attention_bias and not config.attention_output_bias:
        kind, allowed = "qwen2", not config.mlp_bias
    else:
        kind, allowed = "llama", config.attention_bias == config.attention_output_bias
    if not allowed:
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
    if kind in ("qwen2", "qwen2_moe"):
        out["use_sliding_window"] = False
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            name = out["architectures"][0]
            raise QwqError(f"{name} has no slot for head_dim other than hidden_size / num_attention_heads")
    elif kind != "mixtral":
        out["attention_bias"] = config.attention_bias
    if kind == "llama":
        out["mlp_bias"] = config.mlp_bias
    return out | (_experts_to_hf(config, kind) if config.num_experts else {})


def _experts_to_hf(config: ModelConfig, kind: str) -> dict[str, Any]:
    loss = config.router_aux_loss_coef
    out: dict[str, Any] = {"num_experts_per_tok": config.num_experts_per_tok}
    out |= {"router_aux_loss_coef": loss, "output_router_logits": loss > 0}
    if kind == "mixtral":
        sizes = {"num_local_experts": config.num_experts, "intermediate_size": config.moe_intermediate_size}
        return out | sizes | {"sliding_window": None}
    names = ["num_experts", "moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step"]
    if kind == "qwen2_moe":
        names.append("shared_expert_intermediate_size")
        out["qkv_bias"] = config.attention_bias
    return out | {name: getattr(config, name) for name in names} | {"mlp_only_layers": list(config.mlp_only_layers)}


def from_dict(values: dict, where: str) -> ModelConfig:
    """This project's own JSON of a ModelConfig; an unknown key is an error."""
    unknown = set(values) - {f.name for f in dataclasses.fields(ModelConfig)}
    if unknown:
        raise QwqError(f"{where}: unknown key {sorted(unknown)[0]!r}; the file is of a newer version or was edited")
    try:
        return ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise QwqError(f"{where}: {error}") from None
