"""`qwq bench nano`: how well `qwq-nano` learns in a given time, beside Hugging Face's Qwen2 with a tuned AdamW.

Both arms read the same text in the same order and are scored on the same held-out text. Equal time: the seconds of a
step of each arm are measured first, interleaved, and turn the minutes into a number of steps for each; so what else the
machine does during the long part changes how long it takes, and not the result. A run has one core; as many go side
by side as there are cores, and minutes are minutes of one core.
"""

import dataclasses
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwq.bench import common
from qwq.checkpoint.config_hf import to_hf
from qwq.data.loader import PackedLoader
from qwq.model import Decoder, ModelConfig
from qwq.recipe import Recipe, TrainingConfig
from qwq.recipes import find
from qwq.tokenizer import load_tokenizer
from qwq.train import optim
from qwq.train.evaluate import HeldOut
from qwq.train.gradients import compute_gradients

PEER_RATES = (1.5e-3, 3e-3, 6e-3)
PEER_BATCHES = (2, 4)  # sequences a step
PEER_TOKENS = 512
EVAL_TOKENS = 25_000  # a domain
ROUNDS = 25


def run(
    json_path: Path | None = None, *, minutes: float = 4.0, seeds: int = 3, folder: Path = Path("bench-nano")
) -> dict:
    """Tune the peer (a third of the time for each setting), then `seeds` runs of each arm; bits per byte by domain.

    Finished runs are kept in `folder`/runs.jsonl, so an interrupted comparison goes on where it was.
    """
    _prepare(folder)
    recipe = find("qwq-nano")
    seconds = _step_seconds(folder, recipe)
    settings = [{"learning_rate": rate, "sequences": size} for size in PEER_BATCHES for rate in PEER_RATES]
    sweep = [_job("peer", 0, round(20 * minutes / seconds[f"peer-{s['sequences']}"]), peer=s) for s in settings]
    trials = _all(sweep, folder)
    tuned = min(trials, key=lambda result: result["bits_per_byte"]["mean"])["job"]["peer"]
    steps = {"qwq": round(60 * minutes / seconds["qwq"])}
    steps["peer"] = round(60 * minutes / seconds[f"peer-{tuned['sequences']}"])
    jobs = [_job(arm, seed, steps[arm], peer=tuned) for seed in range(seeds) for arm in ("qwq", "peer")]
    results = _all(jobs, folder)
    setting = f"AdamW, rate {tuned['learning_rate']:g}, {tuned['sequences']} sequences of {PEER_TOKENS} a step"
    rows = []
    for domain in results[0]["bits_per_byte"]:
        ours, theirs = (
            [r["bits_per_byte"][domain] for r in results if r["job"]["arm"] == arm] for arm in ("qwq", "peer")
        )
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        case = f"nano-{minutes:g}-minutes-{domain}"
        means = statistics.mean(ours), statistics.mean(theirs)
        spread = min(ratios), max(ratios)
        ratio = statistics.median(ratios)
        rows.append(common.Row(case, "transformers-Qwen2", setting, *means, "bits/byte", ratio, spread, None))
    more = {"minutes": minutes, "step_seconds": seconds, "sweep": trials, "runs": results}
    return common.report("nano", rows, common.limits(), common.versions("transformers"), json_path, **more)


def _step_seconds(folder: Path, recipe: Recipe) -> dict[str, float]:
    """Seconds of a step of each arm on one core: the fastest of many interleaved rounds, as on an idle machine."""
    path = folder / "step-seconds.json"
    if path.is_file():
        return json.loads(path.read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    arms = {"qwq": _ours(recipe, 0)}
    for size in PEER_BATCHES:
        arms[f"peer-{size}"] = _peer(recipe, 0, learning_rate=0.0, sequences=size)

    def timed(arm: Arm) -> Callable[[], float]:
        ids = torch.randint(recipe.model.vocab_size, (arm.sequences, arm.seq_len))

        def rate() -> float:
            start = time.process_time()  # not the time that other programs had
            arm.step([(ids, ids)], 0.5)
            return 1 / (time.process_time() - start)

        return rate

    rates = common.interleave({name: timed(arm) for name, arm in arms.items()}, ROUNDS)
    seconds = {name: 1 / max(values) for name, values in rates.items()}
    torch.set_num_threads(threads)
    path.write_text(json.dumps(seconds, indent=1) + "\n")
    return seconds


def _prepare(folder: Path) -> None:
    """The demo corpus, a tokenizer of 8192 pieces and token shards, made once."""
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


def _job(arm: str, seed: int, steps: int, *, peer: dict | None = None, recipe: dict | None = None) -> dict:
    return {"arm": arm, "seed": seed, "steps": steps, "peer": peer, "recipe": recipe or find("qwq-nano").to_dict()}


def _all(jobs: list[dict], folder: Path) -> list[dict]:
    """Results of the jobs, those already in runs.jsonl taken from there, the others on one core each."""
    path = folder / "runs.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    found = {json.dumps(r["job"], sort_keys=True): r for r in done}
    missing = [job for job in jobs if json.dumps(job, sort_keys=True) not in found]
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(cores), max(1, len(missing))), context) as pool:
        for result in pool.map(fit, missing, [str(folder)] * len(missing)):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            found[json.dumps(result["job"], sort_keys=True)] = result
    return [found[json.dumps(job, sort_keys=True)] for job in jobs]


def fit(job: dict, folder: str) -> dict:
    """Train one arm for the job's steps on one thread; returns the job with bits per byte by domain and tokens."""
    torch.set_num_threads(1)
    recipe = Recipe.from_dict(job["recipe"])
    tokenizer = load_tokenizer(Path(folder) / "tokenizer")
    held_out = HeldOut(Path(folder) / "tokens", tokenizer, recipe.data.seq_len, EVAL_TOKENS)
    arm = _ours(recipe, job["seed"]) if job["arm"] == "qwq" else _peer(recipe, job["seed"], **job["peer"])
    loader = PackedLoader(Path(folder) / "tokens", arm.sequences, arm.seq_len, job["seed"], checksums=False)
    losses, began, used = [], time.time(), time.process_time()
    for step in range(job["steps"]):
        losses.append(arm.step([next(loader)], step / job["steps"]))
    scores = held_out.evaluate(arm.scored)
    bits = {name: round(score.bits_per_byte, 5) for name, score in scores.items()}
    bits["mean"] = round(statistics.mean(bits.values()), 5)
    tokens = job["steps"] * arm.sequences * arm.seq_len
    print(
        f"{job['arm']} seed {job['seed']} {job['peer'] or ''}: {bits}, {job['steps']} steps, {tokens:,} tokens",
        flush=True,
    )
    result = {"job": job, "bits_per_byte": bits, "tokens": tokens, "loss": statistics.mean(losses[-20:])}
    seconds = {"cpu_seconds": time.process_time() - used, "wall_seconds": time.time() - began}
    return result | {name: round(value, 1) for name, value in seconds.items()}


@dataclasses.dataclass
class Arm:
    """One contender: `step(batches, share of all steps done)` returns the loss; `scored` has `hidden` and `lm_head`."""

    step: Callable[[list[tuple[Tensor, Tensor]], float], float]
    scored: Any
    optimizers: list[torch.optim.Optimizer]
    sequences: int
    seq_len: int


def _factor(share: float, config: TrainingConfig) -> float:
    """The recipe's schedule, by the share of the steps that is done."""
    up = (share + 0.002) / config.warmup_fraction if config.warmup_fraction else 1.0
    down = (1 - share) / config.decay_fraction if config.decay_fraction else 1.0
    return min(1.0, up, down)


def _ours(recipe: Recipe, seed: int) -> Arm:
    model = Decoder(recipe.model)
    model.init_weights(seed, zero_residual=recipe.training.zero_residual)
    optimizers = optim.build(model, recipe.training)
    parameters = list(model.parameters())

    def step(batches: list[tuple[Tensor, Tensor]], share: float) -> float:
        loss = compute_gradients(model, batches, recipe.objective)
        optim.clip(parameters, recipe.training.max_grad_norm)
        optim.update(optimizers, _factor(share, recipe.training))
        return loss

    return Arm(step, model, optimizers, recipe.training.batch_size, recipe.data.seq_len)


class _Scored(nn.Module):
    """The peer with the two parts that scoring asks for."""

    def __init__(self, peer: Any):
        super().__init__()
        self.peer, self.lm_head = peer, peer.lm_head

    def hidden(self, input_ids: Tensor) -> Tensor:
        return self.peer.model(input_ids=input_ids).last_hidden_state


def peer_config(config: ModelConfig) -> dict:
    """Qwen2's configuration of the same width, depth and vocabulary."""
    return to_hf(dataclasses.replace(config, use_qk_norm=False, attention_bias=True, hidden_act="silu"))


def _peer(recipe: Recipe, seed: int, *, learning_rate: float, sequences: int) -> Arm:
    """Hugging Face's own initialisation; AdamW with betas 0.9 and 0.95, decay 0.1, 5 % warm-up, cosine to 10 %."""
    import transformers

    torch.manual_seed(seed)
    values = {k: v for k, v in peer_config(recipe.model).items() if k != "architectures"}
    model: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**values)).float().train()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)

    def step(batches: list[tuple[Tensor, Tensor]], share: float) -> float:
        ((inputs, labels),) = batches
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(cosine, (share + 0.002) / 0.05)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Arm(step, _Scored(model), [optimizer], sequences, PEER_TOKENS)
