"""What happens before the first step: which recipe counts, a fake batch, minutes to steps."""

import dataclasses
import os
import shutil
import time
from pathlib import Path

import torch

from qwq.data.shards import tokenizer_hash
from qwq.errors import QwqError, UsageError
from qwq.model import Assembly
from qwq.objectives import Objective
from qwq.recipe import Recipe
from qwq.tokenizer import Tokenizer
from qwq.train import optim, state
from qwq.train.gradients import compute_gradients

EVALUATION_COST = 0.4  # of a training token: no backward pass, no optimizer


def settle(
    recipe: Recipe, tokenizer: Tokenizer, out: Path, *, resume: bool, minutes: float | None
) -> tuple[Recipe, bool]:
    """The recipe that counts, and whether its number of steps is settled. A resumed run goes on under its own recipe.

    `UsageError` if `out` holds a run and `resume` is False, if that run has another recipe, or if the tokenizer has
    more ids than the model.
    """
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, and model.vocab_size is {recipe.model.vocab_size:,}"
        )
    if recipe.data.seq_len > recipe.model.max_position_embeddings:
        raise UsageError(
            f"data.seq_len ({recipe.data.seq_len}) is beyond model.max_position_embeddings "
            f"({recipe.model.max_position_embeddings})"
        )
    earlier = state.started_with(out)
    if earlier is not None:
        if not resume:
            raise UsageError(f"{out} holds a training run already: add --resume to go on, or choose another --out")
        steps = dataclasses.replace(recipe.training, steps=earlier.training.steps, minutes=earlier.training.minutes)
        given = dataclasses.replace(recipe, name=earlier.name, training=steps)
        difference = state.first_difference(given.to_dict(), earlier.to_dict())
        if difference:
            raise UsageError(f"{out} was started with another recipe: {difference}; resume it with its own")
        return earlier, True
    if minutes is not None:
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, minutes=minutes))
    return recipe, False


def check_tokenizer(manifest: dict, tokenizer: Tokenizer, data: Path) -> None:
    """`UsageError` if the shards were written with another vocabulary."""
    if manifest.get("tokenizer") != tokenizer_hash(tokenizer):
        raise UsageError(f"{data} was tokenized with another tokenizer; give that one, or tokenize again with this one")


def compile_blocks(model: Assembly) -> bool:
    """torch.compile of one block, which all others share: far quicker than compiling the whole model.

    On a CPU it needs a C++ compiler; False where there is none, and the model stays as it was.
    """
    on_cpu = model.model.norm.weight.device.type == "cpu"
    if on_cpu and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))):
        return False
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    return True


def fake_steps(model: Assembly, optimizers: list[torch.optim.Optimizer], recipe: Recipe, objective: Objective) -> float:
    """Whole steps on made-up tokens: what runs out of memory does so now. Returns the seconds of a step.

    They also pay for what only the first steps pay, such as compilation.

    The weights are spoilt by it (initialise or restore them afterwards); the optimizers' state is cleared here.
    """
    training, shape = recipe.training, (recipe.training.micro_batch_size, recipe.data.seq_len)
    if training.compile:
        compile_blocks(model)
    times = []
    random = torch.Generator().manual_seed(0)
    try:
        for _ in range(5):
            start = time.perf_counter()
            ids = [
                torch.randint(recipe.model.vocab_size, shape, generator=random)
                for _ in range(training.batch_size // shape[0])
            ]
            compute_gradients(model, [objective.batch((x, x), random) for x in ids], objective)
            optim.clip(list(model.parameters()), training.max_grad_norm)
            optim.update(optimizers, 0.0)
            times.append(time.perf_counter() - start)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise QwqError(
            f"out of memory at the first batch: lower training.micro_batch_size ({shape[0]}) "
            f"or data.seq_len ({shape[1]})"
        ) from None
    for optimizer in optimizers:
        optimizer.state.clear()
    return min(times[1:])  # a busy moment must not decide how long a run is


def steps_of_minutes(recipe: Recipe, begun: float, step_seconds: float, eval_tokens: int) -> Recipe:
    """`training.minutes`, from `begun` on, as steps, with time left for the evaluations; without minutes, as it is."""
    training = recipe.training
    if training.minutes is None:
        return recipe
    planned = training.minutes * 60
    left = max(planned - (time.monotonic() - begun), planned / 2)  # a slow start does not eat the whole run
    token_seconds = step_seconds / (training.batch_size * recipe.data.seq_len)
    evaluation = min(EVALUATION_COST * token_seconds * eval_tokens, 0.2 * left)
    steps = max(1, int((left - evaluation) / (step_seconds + evaluation / training.eval_every)))
    return dataclasses.replace(recipe, training=dataclasses.replace(training, steps=steps))
