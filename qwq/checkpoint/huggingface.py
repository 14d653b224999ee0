"""Hugging Face folders: config.json and safetensors, whole or sharded, in and out."""

import json
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
    for name, tensor in tensors:
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
    for name, tensor in model.named_parameters(remove_duplicate=True):
        if size + tensor.nbytes > max_shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().contiguous()
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
