"""What a run is at a step, and its way to the disk and back: weights, optimizers, place in the data, random numbers."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qwq.checkpoint import native
from qwq.errors import QwqError
from qwq.model import Assembly
from qwq.recipe import Recipe
from qwq.tokenizer import Tokenizer


class Loader(Protocol):
    """What the loop asks of a `PackedLoader`: batches without end, and a state that resumes exactly."""

    def __next__(self) -> tuple[Tensor, Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def folder_of(out: Path, step: int) -> Path:
    """The checkpoint after `step` steps."""
    return out / "checkpoints" / f"step-{step:08d}"


def save(
    out: Path,
    step: int,
    model: Assembly,
    optimizers: list[torch.optim.Optimizer],
    loader: Loader,
    recipe: Recipe,
    tokenizer: Tokenizer | None,
) -> Path:
    """Write the checkpoint of this step, then remove the oldest so that `keep` stay. Returns its folder."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    generation: dict[str, Any] = {}
    if tokenizer is not None and tokenizer.eos_token_ids:
        generation["eos_token_id"] = list(tokenizer.eos_token_ids)
    folder = folder_of(out, step)
    state = {"step": step, "loader": loader.state_dict()}
    native.save(folder, model, tokenizer, recipe.to_dict(), generation=generation or None, training=(tensors, state))
    whole = sorted((out / "checkpoints").glob("step-*"))
    killed = (out / "checkpoints").glob(".step-*")  # what a kill in the middle of a save leaves
    for old in [*whole[: -recipe.training.keep], *killed]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def restore(folder: Path, model: Assembly, optimizers: list[torch.optim.Optimizer], loader: Loader) -> int:
    """Put everything back as `save` found it; returns the step. `QwqError` if it is damaged or cannot be resumed."""
    _, saved = native.load_model(folder)
    model.load_state_dict(saved.state_dict())
    tensors, state = native.load_training(folder)
    torch.set_rng_state(tensors.pop("rng.cpu"))
    cuda = tensors.pop("rng.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        number, index, name = key.split(".", 2)
        if int(number) >= len(optimizers):
            raise QwqError(f"{folder} was trained with other optimizers; resume with the recipe it was started with")
        states[int(number)].setdefault(int(index), {})[name] = value
    for optimizer, values in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    loader.load_state_dict(state["loader"])
    return int(state["step"])


def started_with(out: Path) -> Recipe | None:
    """The recipe of the run in `out`, its step count settled; None where no run was started."""
    path = out / "recipe.json"
    return Recipe.load(path) if path.is_file() else None


def note_start(out: Path, recipe: Recipe) -> None:
    """Keep the settled recipe, so that a run killed before its first checkpoint starts again with as many steps."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / ".recipe.json.tmp"
    temporary.write_text(json.dumps(recipe.to_dict(), indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / "recipe.json")


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "") -> str | None:
    """Where two recipes differ first ("model.hidden_size: 256, was 384"), or None."""
    for key, value in a.items():
        if isinstance(value, dict) and isinstance(b.get(key), dict):
            inner = first_difference(value, b[key], f"{path}{key}.")
            if inner:
                return inner
        elif value != b.get(key):
            return f"{path}{key}: {value!r}, was {b.get(key)!r}"
    return None
