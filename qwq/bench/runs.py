"""Short training runs that several benchmarks compare: one corpus, workers of one core each, results that are kept.

Runs are counted in steps. The seconds of a step are measured first, interleaved, and turn minutes into steps; so what
else the machine does during the long part changes how long it takes, and not the result.
"""

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwq.bench import common
from qwq.data.loader import PackedLoader
from qwq.model import build, moe
from qwq.recipe import Recipe, TrainingConfig
from qwq.tokenizer import Tokenizer, load_tokenizer
from qwq.train import optim
from qwq.train.evaluate import HeldOut
from qwq.train.gradients import build_objective, compute_gradients

EVAL_TOKENS = 25_000  # a domain
ROUNDS = 25


@dataclass
class Arm:
    """One contender: `step(batches, share of all steps done)` returns the loss; `scored` has `hidden` and `lm_head`."""

    step: Callable[[list[tuple[Tensor, Tensor]], float], float]
    scored: Any
    optimizers: list[torch.optim.Optimizer]
    sequences: int
    seq_len: int


def ours(recipe: Recipe, seed: int, tokenizer: Tokenizer | None = None) -> Arm:
    """The recipe's model with its objective, optimizers and schedule; all but causal_lm ask for a tokenizer."""
    model = build(recipe.model)
    model.init_weights(seed, zero_residual=recipe.training.zero_residual)
    optimizers = optim.build(model, recipe.training)
    parameters, objective = list(model.parameters()), build_objective(recipe, tokenizer)
    generator = torch.Generator().manual_seed(seed)

    def step(batches: list[tuple[Tensor, Tensor]], share: float) -> float:
        loss = compute_gradients(model, [objective.batch(batch, generator) for batch in batches], objective)
        optim.clip(parameters, recipe.training.max_grad_norm)
        optim.update(optimizers, _factor(share, recipe.training))
        moe.update_balance(model)
        return loss

    return Arm(step, model, optimizers, recipe.training.batch_size, recipe.data.seq_len)


def _factor(share: float, config: TrainingConfig) -> float:
    """The recipe's schedule, by the share of the steps that is done."""
    up = (share + 0.002) / config.warmup_fraction if config.warmup_fraction else 1.0
    down = (1 - share) / config.decay_fraction if config.decay_fraction else 1.0
    return min(1.0, up, down)


def prepare(folder: Path) -> None:
    """The demo corpus, a tokenizer of 8192 pieces and token shards in `folder`, made once."""
    from qwq.data import build
    from qwq.data.documents import read_documents
    from qwq.data.shards import tokenize
    from qwq.tokenizer import train_sentencepiece

    if not (folder / "corpus" / "report.json").is_file():
        build(["demo"], folder / "corpus")
    if not (folder / "tokenizer" / "tokenizer.json").is_file():
        train_sentencepiece((d.text for d in read_documents(folder / "corpus")), 8192, folder / "tokenizer")
    if not (folder / "tokens" / "manifest.json").is_file():
        tokenize(folder / "corpus", load_tokenizer(folder / "tokenizer"), folder / "tokens")


def step_seconds(arms: Mapping[str, Callable[[], Arm]], vocab_size: int, path: Path) -> dict[str, float]:
    """Seconds of a step of each arm on one core: the fastest of many interleaved rounds, as on an idle machine.

    Kept in `path`, so that a comparison that goes on has the same number of steps.
    """
    if path.is_file():
        return json.loads(path.read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def timed(arm: Arm) -> Callable[[], float]:
        ids = torch.randint(vocab_size, (arm.sequences, arm.seq_len))

        def rate() -> float:
            start = time.process_time()  # not the time that other programs had
            arm.step([(ids, ids)], 0.5)
            return 1 / (time.process_time() - start)

        return rate

    rates = common.interleave({name: timed(make()) for name, make in arms.items()}, ROUNDS)
    seconds = {name: 1 / max(values) for name, values in rates.items()}
    torch.set_num_threads(threads)
    path.write_text(json.dumps(seconds, indent=1) + "\n")
    return seconds


def train_all(jobs: list[dict], folder: Path, fit: Callable[[dict, str], dict]) -> list[dict]:
    """`fit(job, folder)` of every job, on one core each; those already in `folder`/runs.jsonl are taken from there."""
    path = folder / "runs.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = {_key(result["job"]): result for result in done}
    missing = {_key(job): job for job in jobs if _key(job) not in found}
    workers = max(1, min(len(os.sched_getaffinity(0)), len(missing)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(fit, job, str(folder)) for job in missing.values()]):
            result = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            found[_key(result["job"])] = result
    return [found[_key(job)] for job in jobs]


def _key(job: dict) -> str:
    return json.dumps(job, sort_keys=True)


Score = Callable[[Arm, Tokenizer, Path], dict[str, float]]


def fit(arm: Arm, job: dict, folder: Path, score: Score | None = None) -> dict:
    """Train an arm for the job's steps, in the order of its seed; returns the job with tokens and seconds.

    And with its score, under the name of the function that took it: `bits_per_byte` where none is given.
    """
    score = bits_per_byte if score is None else score
    tokenizer = load_tokenizer(folder / "tokenizer")
    loader = PackedLoader(folder / "tokens", arm.sequences, arm.seq_len, job["seed"], checksums=False)
    losses, began, used = [], time.time(), time.process_time()
    for step in range(job["steps"]):
        losses.append(arm.step([next(loader)], step / job["steps"]))
    found = score(arm, tokenizer, folder)
    tokens = job["steps"] * arm.sequences * arm.seq_len
    name = " ".join(f"{key} {value}" for key, value in job.items() if key != "recipe" and value is not None)
    print(f"{name}: {found}, {tokens:,} tokens", flush=True)
    result = {"job": job, score.__name__: found, "tokens": tokens, "loss": statistics.mean(losses[-20:])}
    seconds = {"cpu_seconds": time.process_time() - used, "wall_seconds": time.time() - began}
    return result | {key: round(value, 1) for key, value in seconds.items()}


def bits_per_byte(arm: Arm, tokenizer: Tokenizer, folder: Path) -> dict[str, float]:
    """Of every held-out domain, and their mean."""
    scores = HeldOut(folder / "tokens", tokenizer, arm.seq_len, EVAL_TOKENS).evaluate(arm.scored)
    bits = {name: round(score.bits_per_byte, 5) for name, score in scores.items()}
    return bits | {"mean": round(statistics.mean(bits.values()), 5)}
