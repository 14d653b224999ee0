"""Hugging Face folders: config.json and safetensors, whole or sharded, in and out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwq.checkpoint.config_hf import to_hf
from qwq.checkpoint.files import read_json
from qwq.errors import QwqError
from qwq.model import Assembly, ModelConfig
from qwq.model import build as assemble

INDEX = "model.safetensors.index.json"

# Files hold experts one by one, memory holds them stacked: (name in Qwen's files, in Mixtral's) -> stacked parameter.
_PARTS = {("gate_proj", "w1"): "gate_up_proj", ("up_proj", "w3"): "gate_up_proj", ("down_proj", "w2"): "down_proj"}
_EXPERT = re.compile(r"(.+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_STACKED = re.compile(r"(.+)\.mlp\.experts\.(gate_up_proj|down_proj)")


def build(
    config: ModelConfig, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype | None, where: Path
) -> Assembly:
    """A model that takes the tensors as they come, by name; `dtype` None keeps theirs.

    `QwqError` names the first tensor that is missing, is not known, or has another shape than the config says.
    """
    with torch.device("meta"):
        model = assemble(config)
    expected = dict(model.named_parameters(remove_duplicate=True))
    state: dict[str, Tensor] = {}
    for name, tensor in _stack(config, tensors, where):
        if (name == "lm_head.weight" and config.tie_word_embeddings) or name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in expected:
            raise QwqError(f"{where}: tensor {name!r} has no place in this architecture")
        if tensor.shape != expected[name].shape:
            raise QwqError(
                f"{where}: {name} has shape {list(tensor.shape)}, and the config says {list(expected[name].shape)}"
            )
        state[name] = tensor if dtype is None else tensor.to(dtype)
    missing = [name for name in expected if name not in state]
    if missing:
        raise QwqError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} of {len(expected)} in all)")
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def _stack(config: ModelConfig, tensors: Iterator[tuple[str, Tensor]], where: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file with the experts of a layer as one; each is made when the last of its parts has come."""
    order = {name: (stacked, i) for i, (names, stacked) in enumerate(_PARTS.items()) for name in names}
    size, inner, experts = config.hidden_size, config.moe_intermediate_size, config.num_experts
    found: dict[str, dict[tuple[int, int], Tensor]] = {}
    for name, tensor in tensors:
        match = _EXPERT.fullmatch(name)
        if match is None or match[3] not in order or int(match[2]) >= experts:
            yield name.replace(".block_sparse_moe.gate.", ".mlp.gate."), tensor
            continue
        stacked, part = order[match[3]]
        shape = (size, inner) if stacked == "down_proj" else (inner, size)
        if tensor.shape != shape:
            raise QwqError(f"{where}: {name} has shape {list(tensor.shape)}, and the config says {list(shape)}")
        target = f"{match[1]}.mlp.experts.{stacked}"
        parts = found.setdefault(target, {})
        parts[int(match[2]), part] = tensor
        if len(parts) == experts * (1 if stacked == "down_proj" else 2):
            del found[target]
            yield target, torch.cat([parts[key] for key in sorted(parts)]).unflatten(0, (experts, -1))
    for target, parts in found.items():
        raise QwqError(f"{where}: {target} has only {len(parts)} of its {experts} experts' tensors")


def _split(name: str, tensor: Tensor, kind: str) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `_stack`, under the names of that model_type's files."""
    match, mixtral = _STACKED.fullmatch(name), kind == "mixtral"
    if match is None:
        yield name.replace(".mlp.gate.", ".block_sparse_moe.gate.") if mixtral else name, tensor
        return
    names = [pair[mixtral] for pair, stacked in _PARTS.items() if stacked == match[2]]
    folder = f"{match[1]}.{'block_sparse_moe' if mixtral else 'mlp'}.experts"
    for expert, matrix in enumerate(tensor):
        for part, piece in zip(names, matrix.chunk(len(names)), strict=True):
            yield f"{folder}.{expert}.{part}.weight", piece


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of model.safetensors, or of the shards that the index names."""
    names = ["model.safetensors"]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    for name in names:
        path = folder / name
        if not path.is_file():
            other = next(folder.glob("*.bin"), None)
            hint = f"; {other.name} is a pickle, convert it to safetensors first" if other else ""
            raise QwqError(f"{path} is missing{hint}")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (a safe_open is not a mapping)
                    yield key, file.get_tensor(key)
        except SafetensorError as error:
            raise QwqError(f"{path} ({path.stat().st_size:,} bytes) is truncated or not safetensors: {error}") from None


def write(model: Assembly, folder: Path, *, generation: dict, max_shard_bytes: int = 5 * 10**9) -> None:
    """config.json, generation_config.json and the tensors, in shards of at most `max_shard_bytes`, into a folder."""
    config = to_hf(model.config)
    config["dtype"] = str(model.model.norm.weight.dtype).removeprefix("torch.")
    config.update({k: generation[k] for k in ("bos_token_id", "eos_token_id") if k in generation})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if generation:
        text = json.dumps(generation, indent=2) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8")

    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    named = model.named_parameters(remove_duplicate=True)
    for name, tensor in (part for n, t in named for part in _split(n, t.detach(), config["model_type"])):
        if size + tensor.nbytes > max_shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
