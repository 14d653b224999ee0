"""Checkpoints in and out: this project's own, Hugging Face folders, GGUF files (in)."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qwq.checkpoint import builtin, gguf, huggingface, native
from qwq.checkpoint.config_hf import from_hf
from qwq.checkpoint.files import new_folder, read_json
from qwq.errors import QwqError, UsageError
from qwq.kernels.quantised import Quantised
from qwq.model import Assembly, ModelConfig
from qwq.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Checkpoint", "convert", "load", "locate"]


@dataclass
class Checkpoint:
    """A model with what belongs to it. `generation` is generation_config.json: sampling defaults and end tokens."""

    name: str
    path: Path
    format: str  # "qwq", "hf" or "gguf"
    config: ModelConfig
    model: Assembly
    tokenizer: Tokenizer
    generation: dict = field(default_factory=dict)
    recipe: dict | None = None
    quantised: dict[str, Quantised] = field(default_factory=dict)  # weights as a GGUF file has them, by parameter name


def locate(model: str | Path) -> tuple[Path, str]:
    """A folder, a .gguf file, a built-in name or a hub id -> (path, format).

    A training run's folder stands for its newest checkpoint.
    """
    if str(model) in builtin.BUILTIN:
        return builtin.fetch(str(model)), "gguf"
    path = Path(model)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"{path} is a file of unknown kind; a model is a folder or a .gguf file")
        return path, "gguf"
    if path.is_dir():
        newest = native.newest(path)
        if newest is not None:
            return newest, "qwq"
        if native.is_native(path):
            return path, "qwq"
        if (path / "config.json").is_file():
            return path, "hf"
        raise QwqError(f"{path} is not a model: it holds neither manifest.json nor config.json")
    if str(model).count("/") == 1 and not str(model).startswith((".", "/", "~")):
        return _from_hub(str(model)), "hf"
    near = difflib.get_close_matches(str(model), builtin.BUILTIN, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"built-in names: {', '.join(builtin.BUILTIN)}"
    raise UsageError(f"no model at {str(model)!r}: no such folder, .gguf file or built-in name ({hint})")


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        files = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
        return Path(snapshot_download(repo, allow_patterns=files))
    except Exception as error:  # whatever the hub's client raises, the person needs the one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise QwqError(f"no folder {repo!r} here, and the model hub did not give {repo!r}: {reason}") from None


def load(model: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Checkpoint:
    """Load any model this project knows. `dtype` None: float32 on a CPU, bfloat16 on a GPU."""
    path, kind = locate(model)
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
    name = str(model) if str(model) in builtin.BUILTIN else Path(model).stem if kind == "gguf" else Path(model).name
    generation, recipe, quantised = {}, None, {}
    if kind == "gguf":
        reader = gguf.open_gguf(path)
        config = gguf.read_config(reader, path)
        decoder = huggingface.build(config, gguf.read_tensors(reader, config, path), dtype, path)
        quantised = dict(gguf.read_blocks(reader, config)) if device == "cpu" else {}
    elif kind == "qwq":
        config, decoder = native.load_model(path, dtype)
        recipe = read_json(path / "recipe.json")
        name = recipe.get("name", name)
    else:
        config = from_hf(read_json(path / "config.json"), str(path / "config.json"))
        decoder = huggingface.build(config, huggingface.read_tensors(path), dtype, path)
    if str(model) in builtin.BUILTIN:
        generation = dict(builtin.BUILTIN[str(model)].generation)
    if kind != "gguf" and (path / "generation_config.json").is_file():
        generation = read_json(path / "generation_config.json")
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise QwqError(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} ids, and the model embeds {config.vocab_size:,}"
        )
    return Checkpoint(name, path, kind, config, decoder.to(device).eval(), tokenizer, generation, recipe, quantised)


def convert(model: str | Path, to: str, out: Path) -> Checkpoint:
    """Write a model in another format: "hf" (a folder `transformers` reads) or "qwq". Returns what was read."""
    if to not in ("hf", "qwq"):
        raise UsageError(f"cannot write {to!r} yet; formats to write are hf, qwq")
    if out.exists():
        raise UsageError(f"{out} is there already; choose another --out")
    source = load(model)
    if to == "qwq":
        recipe = source.recipe or {"converted_from": source.name, "model": dataclasses.asdict(source.config)}
        native.save(out, source.model, source.tokenizer, recipe, generation=source.generation)
    else:
        with new_folder(out) as temporary:
            eos = list(source.tokenizer.eos_token_ids)  # without it `transformers` writes on past the end of a reply
            huggingface.write(source.model, temporary, generation={"eos_token_id": eos, **source.generation})
            source.tokenizer.save(temporary)
    return source
