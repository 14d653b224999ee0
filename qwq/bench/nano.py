"""`qwq bench nano`: how well a dense `qwq-nano` learns in a given time, beside Hugging Face's Qwen2 with a tuned AdamW.

Both arms read the same text in the same order and are scored on the same held-out text. Equal time: runs.py. A run has
one core; as many go side by side as there are cores, and minutes are minutes of one core.
"""

import dataclasses
import functools
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwq.bench import common, runs
from qwq.bench.runs import Arm
from qwq.checkpoint.config_hf import to_hf
from qwq.model import ModelConfig
from qwq.recipe import ObjectiveConfig, Recipe
from qwq.recipes import find

PEER_RATES = (1.5e-3, 3e-3, 6e-3)
PEER_BATCHES = (2, 4)  # sequences a step
PEER_TOKENS = 512


def run(
    json_path: common.JsonPath = None, *, minutes: float = 4.0, seeds: int = 3, folder: Path = Path("bench-nano")
) -> dict:
    """Tune the peer (a third of the time for each setting), then `seeds` runs of each arm; bits per byte by domain.

    Finished runs are kept in `folder`/runs.jsonl, so an interrupted comparison goes on where it was.
    """
    runs.prepare(folder)
    recipe = dense()
    arms = {"qwq": functools.partial(runs.ours, recipe, 0)}
    for size in PEER_BATCHES:
        arms[f"peer-{size}"] = functools.partial(_peer, recipe, 0, learning_rate=0.0, sequences=size)
    seconds = runs.step_seconds(arms, recipe.model.vocab_size, folder / "step-seconds.json")
    settings = [{"learning_rate": rate, "sequences": size} for size in PEER_BATCHES for rate in PEER_RATES]
    sweep = [_job("peer", 0, round(20 * minutes / seconds[f"peer-{s['sequences']}"]), peer=s) for s in settings]
    trials = runs.train_all(sweep, folder, fit)
    tuned = min(trials, key=lambda result: result["bits_per_byte"]["mean"])["job"]["peer"]
    steps = {"qwq": round(60 * minutes / seconds["qwq"])}
    steps["peer"] = round(60 * minutes / seconds[f"peer-{tuned['sequences']}"])
    jobs = [_job(arm, seed, steps[arm], peer=tuned) for seed in range(seeds) for arm in ("qwq", "peer")]
    results = runs.train_all(jobs, folder, fit)
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


def dense() -> Recipe:
    """`qwq-nano` as the plain transformer that Qwen2 is too."""
    recipe = find("qwq-nano")
    return dataclasses.replace(recipe, model=recipe.model.dense(), objective=ObjectiveConfig())


def _job(arm: str, seed: int, steps: int, *, peer: dict | None = None) -> dict:
    return {"arm": arm, "seed": seed, "steps": steps, "peer": peer, "recipe": dense().to_dict()}


def fit(job: dict, folder: str) -> dict:
    """Train one arm for the job's steps on one thread; returns the job with bits per byte by domain and tokens."""
    torch.set_num_threads(1)
    recipe = Recipe.from_dict(job["recipe"])
    arm = runs.ours(recipe, job["seed"]) if job["arm"] == "qwq" else _peer(recipe, job["seed"], **job["peer"])
    return runs.fit(arm, job, Path(folder))


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
