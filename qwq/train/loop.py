"""The training loop."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from qwq.checkpoint import native
from qwq.data.loader import PackedLoader
from qwq.errors import QwqError
from qwq.kernels.limits import gemm_gflop_s
from qwq.model import build, moe
from qwq.recipe import Recipe
from qwq.tokenizer import Tokenizer
from qwq.train import optim, start, state
from qwq.train.evaluate import HeldOut, Score
from qwq.train.gradients import build_objective, compute_gradients
from qwq.train.log import Interrupt, Log


@dataclass(frozen=True)
class Result:
    """A finished run."""

    checkpoint: Path
    recipe: Recipe
    scores: dict[str, Score]  # of the last evaluation, by domain of the held-out text
    tokens_per_second: float
    mfu: float  # model FLOPs utilisation: share of the GEMM rate measured at start


class Interrupted(QwqError):
    """The person stopped the run; everything up to here is saved."""


def train(
    recipe: Recipe,
    data: Path,
    tokenizer: Tokenizer,
    out: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
) -> Result:
    """Train `recipe` on the token shards in `data`; checkpoints, recipe.json and metrics.jsonl go to `out`.

    `minutes` (or the recipe's) counts from this call and becomes a number of steps once, from the first fake batch.
    `resume` continues from the newest checkpoint, bit for bit. Ctrl-C saves, then raises `Interrupted`.
    """
    begun = time.monotonic()
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=str(data)))
    recipe, settled = start.settle(recipe, tokenizer, out, resume=resume, minutes=minutes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, objective = build(recipe.model).to(device), build_objective(recipe, tokenizer)
    parameters = list(model.parameters())
    optimizers = optim.build(model, recipe.training)
    loader = PackedLoader(data, recipe.training.micro_batch_size, recipe.data.seq_len, recipe.data.seed)
    start.check_tokenizer(loader.shards.manifest, tokenizer, data)
    held_out = HeldOut(data, tokenizer, recipe.data.seq_len, recipe.training.eval_tokens)
    gemm = gemm_gflop_s(device, torch.bfloat16 if device == "cuda" else torch.float32)
    seconds = start.fake_steps(model, optimizers, recipe, objective)
    if not settled:
        recipe = start.steps_of_minutes(recipe, begun, seconds, held_out.tokens)
        state.note_start(out, recipe)
    torch.manual_seed(recipe.training.seed)
    model.init_weights(recipe.training.seed, zero_residual=recipe.training.zero_residual)
    newest = native.newest(out)
    first = state.restore(newest, model, optimizers, loader) if newest else 0
    moe.take_loads(model)  # of the fake steps

    config, rate, mfu = recipe.training, 0.0, 0.0
    scores: dict[str, Score] = {}
    flops = recipe.model.flops_per_token(recipe.data.seq_len // 2, training=True)
    with Interrupt() as interrupt, Log(out, config.steps, first) as log:
        for step in range(first + 1, config.steps + 1):
            began = time.perf_counter()
            random = torch.Generator().manual_seed(config.seed << 32 | step)  # masks and pairs: resumed, the same ones
            windows = [next(loader) for _ in range(config.batch_size // config.micro_batch_size)]
            loss = compute_gradients(model, [objective.batch(w, random) for w in windows], objective)
            norm = optim.clip(parameters, config.max_grad_norm)
            if not math.isfinite(loss + norm):
                raise QwqError(f"the loss is {loss} at step {step}; lower the learning rates. Last saved: {newest}")
            factor = optim.learning_rate_factor(step - 1, config)
            optim.update(optimizers, factor)
            loads = moe.update_balance(model)
            speed = config.batch_size * recipe.data.seq_len / (time.perf_counter() - began)
            rate = 0.9 * rate + 0.1 * speed if rate else speed
            mfu = rate * flops / gemm / 1e9
            speeds = {"tokens_per_second": round(speed, 1), "mfu": mfu}
            log.step(step, loads, loss=loss, grad_norm=norm, lr_factor=factor, **speeds)

            last = step == config.steps
            if last or step % config.save_every == 0 or interrupt.requested:
                newest = state.save(out, step, model, optimizers, loader, recipe, tokenizer)
            if interrupt.requested and not last:
                raise Interrupted(f"stopped, step {step} is saved; go on: qwq train {recipe.name} --out {out} --resume")
            if last or step % config.eval_every == 0:
                scores = held_out.evaluate(model, objective)
                found = {name: dataclasses.asdict(score) for name, score in scores.items()}
                log.evaluation(step, loss, found, objective.unit)
    if newest is None:
        raise QwqError(f"{out}: nothing was trained")
    return Result(newest, recipe, scores or held_out.evaluate(model, objective), rate, mfu)
