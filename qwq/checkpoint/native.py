"""This project's own checkpoint: safetensors + recipe JSON + manifest, in a folder that is whole or not there.

model.safetensors  config.json  tokenizer files  recipe.json  [training.safetensors  training.json]  manifest.json
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from qwq.checkpoint.config_hf import from_dict
from qwq.checkpoint.files import MANIFEST, new_folder, read_json, read_manifest, write_manifest
from qwq.checkpoint.huggingface import build, read_tensors
from qwq.errors import QwqError
from qwq.model import Assembly, ModelConfig
from qwq.tokenizer import Tokenizer

FORMAT = "qwq-checkpoint-1"


def is_native(folder: Path) -> bool:
    """Whether the folder is a checkpoint of this project."""
    return (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("format") == FORMAT


def save(
    folder: Path,
    model: Assembly,
    tokenizer: Tokenizer | None,
    recipe: dict,
    *,
    generation: dict | None = None,
    training: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
) -> None:
    """Write a checkpoint; `training` is (tensors, JSON state) of the optimizer and the loader, for an exact resume."""
    with new_folder(Path(folder)) as temporary:
        tensors = {n: p.detach().contiguous() for n, p in model.named_parameters(remove_duplicate=True)}
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        _write_json(temporary / "config.json", dataclasses.asdict(model.config))
        _write_json(temporary / "recipe.json", recipe)
        if generation:
            _write_json(temporary / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(temporary)
        if training is not None:
            tensors, state = training
            save_file({k: t.contiguous() for k, t in tensors.items()}, temporary / "training.safetensors")
            _write_json(temporary / "training.json", state)
        write_manifest(temporary, format=FORMAT)


def load_model(folder: Path, dtype: Any = None) -> tuple[ModelConfig, Assembly]:
    """Config and weights, after the manifest was checked."""
    read_manifest(folder)
    config = from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    return config, build(config, read_tensors(folder), dtype, folder)


def load_training(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state that `save(training=...)` kept."""
    if not (folder / "training.json").is_file():
        raise QwqError(f"{folder} holds no training state: it can be used, not resumed")
    return load_file(folder / "training.safetensors"), read_json(folder / "training.json")


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a training run: the last `checkpoints/step-*` with a manifest."""
    steps = sorted((run / "checkpoints").glob("step-*"))
    return next((s for s in reversed(steps) if (s / MANIFEST).is_file()), None)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
