"""Named recipes: each a function that returns a Recipe. Trials behind the numbers are in docs/log.md."""

import difflib
from collections.abc import Callable
from pathlib import Path

from qwq.errors import UsageError
from qwq.model import PRESETS
from qwq.recipe import DataConfig, ObjectiveConfig, Recipe, TrainingConfig


def qwq_nano() -> Recipe:
    """16M parameters, 8.5M active, for a laptop CPU: minutes, not hours."""
    training = TrainingConfig(batch_size=2, micro_batch_size=2, zero_residual=False)
    objective = ObjectiveConfig(early_exit_loss_coef=0.1)
    return Recipe(name="qwq-nano", model=PRESETS["qwq-nano"], objective=objective, training=training)


def qwq_small() -> Recipe:
    """381M parameters, 121M active, for one GPU: 2.6 billion tokens, 20 for an active parameter."""
    return Recipe(
        name="qwq-small",
        model=PRESETS["qwq-small"],
        data=DataConfig(seq_len=2048),
        objective=ObjectiveConfig(chunk_size=4096, early_exit_loss_coef=0.1, layer_dropout=0.1),
        training=TrainingConfig(
            steps=5000, batch_size=256, micro_batch_size=16, learning_rate=1e-3, eval_tokens=262_144, compile=True
        ),
    )


def qwq_encoder_24() -> Recipe:
    """950M parameters, 350M active: masked language modelling, for one GPU."""
    return Recipe(
        name="qwq-encoder-24",
        model=PRESETS["qwq-encoder-24"],
        data=DataConfig(seq_len=512),
        objective=ObjectiveConfig(name="masked_lm", chunk_size=4096),
        training=TrainingConfig(steps=20_000, batch_size=256, micro_batch_size=16, learning_rate=5e-4, compile=True),
    )


def qwq_32b_sparse() -> Recipe:
    """On paper (`qwq plan`): 630 billion tokens, 20 for each parameter."""
    return _on_paper("qwq-32b-sparse", steps=150_000)


def qwq_32b() -> Recipe:
    """On paper too: the dense model of the same size, for as many tokens."""
    return _on_paper("qwq-32b", steps=150_000)


def _on_paper(name: str, steps: int) -> Recipe:
    """Steps of 4.2 million tokens."""
    training = TrainingConfig(steps=steps, batch_size=1024, micro_batch_size=1, learning_rate=3e-4, compile=True)
    exits = 0.1 if PRESETS[name].exit_layers else 0.0
    objective = ObjectiveConfig(chunk_size=4096, early_exit_loss_coef=exits, layer_dropout=exits)
    return Recipe(name=name, model=PRESETS[name], data=DataConfig(seq_len=4096), objective=objective, training=training)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "qwq-nano": qwq_nano,
    "qwq-small": qwq_small,
    "qwq-encoder-24": qwq_encoder_24,
    "qwq-32b": qwq_32b,
    "qwq-32b-sparse": qwq_32b_sparse,
}


def find(name: str) -> Recipe:
    """A named recipe, or one from a JSON file. `UsageError` names the nearest known name."""
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".json") or Path(name).is_file():
        return Recipe.load(Path(name))
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(RECIPES)}, or give a JSON file"
    raise UsageError(f"no recipe {name!r}: {hint}")
