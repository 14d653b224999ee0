"""Recipe: everything that decides a training run, as typed dataclasses; plain JSON in every checkpoint."""

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwq.errors import UsageError
from qwq.model import ModelConfig


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer to train with: a folder that `qwq tokenizer train` wrote, or a published one."""

    path: str = "data/tokenizer"


@dataclass(frozen=True)
class DataConfig:
    """Which token shards, and how they are packed into batches."""

    path: str = "data/tokens"  # the folder that `qwq data tokenize` wrote
    seq_len: int = 512
    seed: int = 0  # of the order of the sequences


@dataclass(frozen=True)
class ObjectiveConfig:
    """Logits to loss (qwq/objectives)."""

    name: Literal[
        "causal_lm",
        "masked_lm",
        "next_sentence",
        "sentence_order",
        "late_interaction",
        "span_denoising",
        "prefix_lm",
        "contrastive",
        "distillation",
    ] = "causal_lm"
    chunk_size: int = 512  # tokens whose logits exist at one time
    early_exit_loss_coef: float = 0.0  # causal_lm: weight of the loss at every exit (LayerSkip, arXiv:2404.16710)
    layer_dropout: float = 0.0  # causal_lm: rate at the last layer, falling towards the first
    mask_fraction: float = 0.15  # masked_lm, span_denoising: share of the tokens
    whole_words: bool = False  # masked_lm
    contrastive: Literal["info_nce", "multi_positive", "sigmoid"] = "info_nce"
    teacher: str = ""  # distillation: a model as `--model` takes it
    temperature: float = 2.0  # distillation, as the two below
    reverse_kl: float = 0.0  # share of KL(student, teacher) in the divergence, the rest is KL(teacher, student)
    cross_entropy: float = 0.5  # weight of the plain loss; the divergence has the rest

    def __post_init__(self) -> None:
        for name in ("mask_fraction", "layer_dropout", "reverse_kl", "cross_entropy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


@dataclass(frozen=True)
class TrainingConfig:
    """The loop. A step is one optimizer step on `batch_size` sequences, taken `micro_batch_size` at a time."""

    steps: int = 1000
    minutes: float | None = None  # becomes `steps` once, from the speed of the first fake batch
    batch_size: int = 16
    micro_batch_size: int = 16
    optimizer: Literal["muon", "adamw"] = "muon"  # "muon": matrices of the blocks by Muon, the rest by AdamW
    learning_rate: float = 3e-3  # AdamW
    matrix_learning_rate: float = 0.02  # Muon
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_fraction: float = 0.02  # of all steps, linear from 0
    decay_fraction: float = 0.6  # of all steps, linear to 0 at the end
    max_grad_norm: float = 1.0  # 0: no clipping
    zero_residual: bool = True  # o_proj and down_proj start at 0: every block starts as the identity
    save_every: int = 500  # steps; the last step is always saved
    eval_every: int = 500  # steps; the last step is always evaluated
    eval_tokens: int = 16_384  # held-out tokens of each domain
    keep: int = 2  # checkpoints that stay on disk
    compile: bool = False  # torch.compile of every block; needs a C++ compiler on a CPU
    seed: int = 0  # of the weights

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch_size", "save_every", "eval_every", "keep", "eval_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        for name in ("warmup_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Recipe:
    """model + tokenizer + data + objective + training, under a name."""

    name: str = "custom"
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], where: str = "recipe") -> "Recipe":
        """The inverse of `to_dict`; keys left out have their defaults.

        `UsageError` names an unknown key by its path with the nearest known one, a wrong type, or a value out of range.
        """
        return _build(Recipe, values, where, "")

    @staticmethod
    def load(path: Path) -> "Recipe":
        """A recipe from a JSON file."""
        try:
            return Recipe.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UsageError(f"{path} is not valid JSON: {error}") from None


def _build(cls: Any, values: Any, where: str, path: str) -> Any:
    """A dataclass from JSON values, checked key by key; `path` is where in the recipe we are ("model.")."""
    if not isinstance(values, dict):
        raise UsageError(f"{where}: {path.rstrip('.') or 'the recipe'} must be a JSON object, got {values!r}")
    kinds = typing.get_type_hints(cls)
    given = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.0)[0]
            raise UsageError(f"{where}: unknown key {path + key!r}; the nearest known one is {path + near!r}")
        if dataclasses.is_dataclass(kinds[name]):
            given[name] = _build(kinds[name], value, where, f"{path}{name}.")
        else:
            given[name] = _check(kinds[name], value, where, path + name)
    try:
        return cls(**given)
    except ValueError as error:
        raise UsageError(f"{where}: {path}{error}") from None


def _check(kind: Any, value: Any, where: str, path: str) -> Any:
    """The value, if it is of the field's type; an int where a float is asked for becomes one."""
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            choices = ", ".join(map(repr, typing.get_args(kind)))
            raise UsageError(f"{where}: {path} must be one of {choices}, got {value!r}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: {path} must be a list, got {value!r}")
        return tuple(_check(typing.get_args(kind)[0], item, where, path) for item in value)
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not any(isinstance(value, k) and (k is bool or not isinstance(value, bool)) for k in kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise UsageError(f"{where}: {path} must be {names}, got {value!r}")
    return value
