"""`qwq bench ablation`: what each part of the design buys at the size of `qwq-nano`, in bits per byte of held-out text.

Every arm is the dense model with one part added or taken away; the last one is the whole extended design. All train on
as many tokens, and the dense model in a second run on more. Between its two runs, in the logarithm of their steps, lies
what it reaches in the time that an arm took. What is read of long documents is at 4,096 tokens, after training at 512.
"""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.bench import ablation_page, common, nano, runs
from qwq.data.documents import read_documents
from qwq.model import Decoder
from qwq.model.layers import RotaryEmbedding
from qwq.recipe import Recipe
from qwq.recipes import find
from qwq.tokenizer import load_tokenizer
from qwq.train.evaluate import HeldOut

PARTS = {  # part: (arm with it, arm without it)
    "sparse attention": ("sparse", "dense"),
    "experts": ("experts", "dense"),
    "early-exit training": ("exits", "dense"),
    "grouped queries (5 heads over 1)": ("dense", "full-heads"),
    "RMSNorm, not LayerNorm": ("dense", "layer-norm"),
    "rotary, not sinusoidal": ("dense", "sinusoidal"),
    "the whole extended design": ("extended", "dense"),
}
LONGER = 1.4  # times the steps of all runs: the second run of the dense model
LONG = 4096
RANGES = (0, 512, 1024, 2048, LONG)


def arms() -> dict[str, Recipe]:
    """The recipe of every arm."""
    full, base = find("qwq-nano"), nano.dense()

    def one(**fields: Any) -> Recipe:
        return dataclasses.replace(base, model=dataclasses.replace(base.model, **fields))

    model = full.model
    return {
        "dense": base,
        "sparse": one(attention_patterns=model.attention_patterns),
        "experts": one(num_experts=model.num_experts, router_bias_update_rate=model.router_bias_update_rate),
        "exits": dataclasses.replace(one(exit_layers=model.exit_layers), objective=full.objective),
        "full-heads": one(num_key_value_heads=model.num_attention_heads),
        "layer-norm": one(norm_type="layer_norm"),
        "sinusoidal": one(position_embedding="sinusoidal"),
        "extended": full,
    }


def run(
    json_path: common.JsonPath = None,
    *,
    minutes: float = 2.0,
    seeds: int = 3,
    folder: Path = Path("bench-ablation"),
    page: Path = Path("docs/ablation.md"),
) -> dict:
    """Train every arm with every seed for `minutes` of one core (the dense model's; up to 5), and write `page`.

    Finished runs are kept in `folder`/runs.jsonl: an interrupted ablation goes on where it was.
    """
    runs.prepare(folder)
    recipes = arms()
    made = {name: functools.partial(runs.ours, recipe, 0) for name, recipe in recipes.items()}
    seconds = runs.step_seconds(made, recipes["dense"].model.vocab_size, folder / "step-seconds.json")
    steps = round(60 * minutes / seconds["dense"])
    wanted = [(arm, seed, steps) for arm in recipes for seed in range(seeds)]
    wanted += [("dense", seed, round(LONGER * steps)) for seed in range(seeds)]
    results = runs.train_all([_job(*job, recipes[job[0]]) for job in wanted], folder, fit)
    parts = list(_readings(results, seconds, seeds))
    rows = []
    for part in parts:
        for reading, (ours, theirs) in part["readings"].items():
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            numbers = statistics.mean(ours), statistics.mean(theirs), "bits/byte", statistics.median(ratios)
            case = f"nano-{steps}-steps-{reading}-{part['on']}-{part['off']}"
            rows.append(common.Row(case, part["part"], "", *numbers, (min(ratios), max(ratios)), None))
    more = {"seeds": seeds, "step_seconds": seconds, "steps": steps, "parts": parts, "runs": results}
    found = common.report("ablation", rows, common.limits(), common.versions(), json_path, **more)
    if page.is_file():
        ablation_page.write(page, found, RANGES)
    return found


def _readings(results: list[dict], seconds: dict[str, float], seeds: int) -> Iterator[dict]:
    """Of every part: bits per byte with it and without it, by seed, at equal tokens and at equal time."""
    bits: dict[str, list[float]] = {}
    for result in results:
        bits.setdefault(result["job"]["arm"], []).append(result["bits_per_byte"]["mean"])
    short, long = bits["dense"][:seeds], bits["dense"][seeds:]
    for part, (on, off) in PARTS.items():
        readings = {}
        time = seconds[on if off == "dense" else off] / seconds["dense"]
        for reading, more in (("equal tokens", 1.0), ("equal time", time)):
            share = math.log(more) / math.log(LONGER)
            read = bits | {"dense": [a + (b - a) * share for a, b in zip(short, long, strict=True)]}
            readings[reading] = read[on], read[off]
        yield {"part": part, "on": on, "off": off, "readings": readings}


def _job(arm: str, seed: int, steps: int, recipe: Recipe) -> dict:
    return {"arm": arm, "seed": seed, "steps": steps, "recipe": recipe.to_dict()}


def fit(job: dict, folder: str) -> dict:
    """Train an arm for the job's steps on one thread, and read it: at its end, at exits, on long documents."""
    torch.set_num_threads(1)
    recipe = Recipe.from_dict(job["recipe"])
    arm = runs.ours(recipe, job["seed"])
    result = runs.fit(arm, job, Path(folder))
    if job["arm"] in ("dense", "exits", "extended"):
        result["by_depth"] = by_depth(arm, find("qwq-nano").model.exit_layers, Path(folder))
    if job["arm"] in ("dense", "extended"):
        result["by_range"] = by_range(arm.scored, recipe.data.seq_len, Path(folder))
    return result


class _Shallow(nn.Module):
    """The first layers of a decoder with its norm and its head."""

    def __init__(self, model: Decoder, num_layers: int):
        super().__init__()
        self.model, self.num_layers, self.lm_head = model, num_layers, model.lm_head

    def hidden(self, input_ids: Tensor) -> Tensor:
        return self.model.hidden(input_ids, num_layers=self.num_layers)


def by_depth(arm: runs.Arm, exits: tuple[int, ...], folder: Path) -> dict[str, float]:
    """Mean bits per byte where the model is left after each of these layers, by number of layers."""
    tokenizer, model = load_tokenizer(folder / "tokenizer"), arm.scored
    shallow = {layer + 1: dataclasses.replace(arm, scored=_Shallow(model, layer + 1)) for layer in exits}
    return {str(depth): runs.bits_per_byte(one, tokenizer, folder)["mean"] for depth, one in shallow.items()}


def by_range(model: Decoder, trained: int, folder: Path) -> dict[str, list[float]]:
    """Bits per byte of long held-out documents by position: the text in pieces of the trained length, whole, with YaRN.

    YaRN (arXiv:2309.00071) is switched on after training, with the factor from the trained length to 4,096.
    """
    tokenizer = load_tokenizer(folder / "tokenizer")
    sizes = HeldOut(folder / "tokens", tokenizer, trained, 1).token_bytes
    documents = [
        window
        for path in sorted((folder / "tokens" / "heldout").glob("*.jsonl.zst"))
        for document in read_documents(path)
        if not document.messages
        for window in torch.tensor(tokenizer.encode_prompt(document.text)).split(LONG + 1)
        if len(window) == LONG + 1
    ]
    found = {"in pieces": _bits(model, documents, sizes, trained), "whole": _bits(model, documents, sizes, LONG)}
    scaling = {"rope_type": "yarn", "factor": LONG / trained, "original_max_position_embeddings": trained}
    model.model.rotary = RotaryEmbedding(dataclasses.replace(model.config, rope_scaling=scaling))
    return found | {"whole, YaRN": _bits(model, documents, sizes, LONG)}


@torch.no_grad()
def _bits(model: Decoder, documents: list[Tensor], sizes: Tensor, window: int) -> list[float]:
    """Bits per byte in each of `RANGES`, all documents together; tokens see at most `window` tokens back."""
    nats, size = torch.zeros(LONG, dtype=torch.float64), torch.zeros(LONG, dtype=torch.float64)
    for document in documents:
        inputs, labels = document[:-1].view(-1, window), document[1:]
        logits = model(inputs).flatten(0, 1)
        nats += F.cross_entropy(logits, labels, reduction="none")
        size += sizes[labels]
    cuts = [slice(a, b) for a, b in itertools.pairwise(RANGES)]
    return [round(float(nats[cut].sum() / size[cut].sum() / math.log(2)), 4) for cut in cuts]
