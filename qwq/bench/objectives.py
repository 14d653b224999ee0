"""`qwq bench objectives`: what masked LM, sentence pairs and distillation learn from real text in minutes.

Masked LM beside counts of neighbours, sentence pairs beside the overlap of words (baselines.py), a distilled student
beside one that had no teacher. All on the held-out documents of the demo corpus, counted in steps, one thread a run.
"""

import dataclasses
import math
import statistics
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from qwq.bench import common, runs
from qwq.bench.baselines import BothSides, Overlap
from qwq.bench.runs import Arm
from qwq.checkpoint import native
from qwq.data.loader import PackedLoader
from qwq.data.shards import TokenShards
from qwq.kernels.linear import linear
from qwq.model import ModelConfig
from qwq.objectives import IGNORE, Batch, LateInteraction, MaskedLM, NextSentence, Objective, Vocabulary
from qwq.recipe import DataConfig, ObjectiveConfig, Recipe, TrainingConfig
from qwq.tokenizer import Tokenizer, load_tokenizer
from qwq.train.evaluate import HeldOut

WINDOW = 128  # tokens of an encoder's window
SPARE = 64  # ids beyond the tokenizer's
HARD = 0.1  # weight of the labels beside the teacher
STEPS = {"masked_lm": 12_000, "pairs": 1000, "teacher": 500, "student": 150}

SMALL = ModelConfig(
    hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
    use_qk_norm=True,
)  # fmt: skip
ENCODER = dataclasses.replace(SMALL, architecture="encoder", vocab_size=8192 + SPARE)
TEACHER = dataclasses.replace(SMALL, hidden_size=256, intermediate_size=1024, num_attention_heads=4)
STUDENT = dataclasses.replace(SMALL, hidden_size=128, intermediate_size=384, num_attention_heads=2)


def run(json_path: common.JsonPath = None, *, seeds: int = 3, folder: Path = Path("bench-nano")) -> dict:
    """Masked LM, then sentence pairs from its weights; a teacher, then students with and without it.

    Finished runs are kept in `folder`/runs.jsonl, so an interrupted benchmark goes on where it was.
    """
    runs.prepare(folder)
    masked, teacher = runs.train_all([_masked_job(), _student_job("teacher", TEACHER, 0)], folder, fit)
    pairs = runs.train_all([_pair_job(), *(_late_job(seed) for seed in range(seeds))], folder, fit)
    arms = {name: [_student_job(name, STUDENT, seed) for seed in range(seeds)] for name in ("alone", "distilled")}
    students = {name: runs.train_all(jobs, folder, fit) for name, jobs in arms.items()}
    tokenizer = load_tokenizer(folder / "tokenizer")
    counts, overlap = _counts(folder, tokenizer), _overlap(folder, tokenizer)
    rows = [*_masked_rows(masked, counts), *_pair_rows("next-sentence-at-cls", pairs[:1], overlap)]
    rows += [*_pair_rows("next-sentence", pairs[1:], overlap), *_student_rows(teacher, **students)]
    results = [masked, teacher, *pairs, *students["alone"], *students["distilled"]]
    more = {"runs": results, "neighbours": counts, "word_overlap": overlap}
    return common.report("objectives", rows, common.limits(), common.versions("scikit-learn"), json_path, **more)


def _job(name: str, seed: int, model: ModelConfig, objective: ObjectiveConfig, steps: int) -> dict:
    training = TrainingConfig(batch_size=8, micro_batch_size=8, zero_residual=False)
    recipe = Recipe(name, model, data=DataConfig(seq_len=WINDOW), objective=objective, training=training)
    return {"arm": name, "seed": seed, "steps": steps, "recipe": recipe.to_dict()}


def _masked_job() -> dict:
    """More is masked in training than is asked for: what helps where steps are few (arXiv:2202.08005)."""
    return _job("masked_lm", 0, ENCODER, ObjectiveConfig(name="masked_lm", mask_fraction=0.4), STEPS["masked_lm"])


def _pair_job() -> dict:
    """From the weights of masked LM. Windows of 4,096 tokens: wrong pairs are of one kind of text, as in evaluation."""
    job = _job("next_sentence", 0, ENCODER, ObjectiveConfig(name="next_sentence"), STEPS["pairs"])
    job["recipe"]["data"]["seq_len"], job["start"] = 4096, "masked_lm-0"
    for size in ("batch_size", "micro_batch_size"):
        job["recipe"]["training"][size] = 1
    return job


def _late_job(seed: int) -> dict:
    """The same windows; a twentieth of the rates, to keep what masked LM learned."""
    job = _pair_job()
    job["arm"], job["seed"] = "late_interaction", seed
    job["recipe"]["name"] = job["recipe"]["objective"]["name"] = "late_interaction"
    for rate in ("learning_rate", "matrix_learning_rate"):
        job["recipe"]["training"][rate] /= 20
    return job


def _student_job(name: str, model: ModelConfig, seed: int) -> dict:
    objective = ObjectiveConfig(chunk_size=512)
    if name == "distilled":
        objective = ObjectiveConfig(name="distillation", teacher="teacher-0", cross_entropy=HARD, temperature=1.0)
    return _job(name, seed, model, objective, STEPS["teacher" if name == "teacher" else "student"])


def fit(job: dict, folder: str) -> dict:
    """One run on one thread. The weights of `masked_lm` and `teacher` are kept, for the runs that need them."""
    torch.set_num_threads(1)
    place, recipe = Path(folder), Recipe.from_dict(job["recipe"])
    tokenizer = load_tokenizer(place / "tokenizer")
    if recipe.objective.teacher:
        objective = dataclasses.replace(recipe.objective, teacher=str(place / recipe.objective.teacher))
        recipe = dataclasses.replace(recipe, objective=objective)
    arm = runs.ours(recipe, job["seed"], tokenizer)
    if "start" in job:
        arm.scored.load_state_dict(native.load_model(place / job["start"])[1].state_dict())
    scores = {"masked_lm": masked_tokens, "next_sentence": told_right, "late_interaction": told_right_apart}
    score = scores.get(job["arm"], runs.bits_per_byte)
    result = runs.fit(arm, job, place, score)
    if job["arm"] in ("masked_lm", "teacher"):
        native.save(place / f"{job['arm']}-{job['seed']}", arm.scored, tokenizer, recipe.to_dict())
    return result


def _held_out(folder: Path, tokenizer: Tokenizer, objective: Objective, window: int) -> dict[str, list[Batch]]:
    """The same batches for everybody, by domain: rows of `window` tokens, eight at a time."""
    texts, generator = HeldOut(folder / "tokens", tokenizer, window, runs.EVAL_TOKENS), torch.Generator().manual_seed(0)
    return {
        domain: [objective.batch(rows, generator) for rows in texts.batches(ids)]
        for domain, ids in texts.domains.items()
    }


def _masked(folder: Path, tokenizer: Tokenizer) -> dict[str, list[Batch]]:
    return _held_out(folder, tokenizer, MaskedLM(Vocabulary(tokenizer, ENCODER.vocab_size)), WINDOW)


def _pairs(
    folder: Path, tokenizer: Tokenizer, kind: type[NextSentence] = NextSentence
) -> tuple[NextSentence, dict[str, list[Batch]]]:
    """The same pairs for every kind."""
    objective = kind(Vocabulary(tokenizer, ENCODER.vocab_size))
    return objective, _held_out(folder, tokenizer, objective, 512)


@torch.no_grad()
def masked_tokens(arm: Arm, tokenizer: Tokenizer, folder: Path) -> dict[str, float]:
    """Bits a masked token and top-1 accuracy by held-out domain, and their means; 15 % are asked for, 80/10/10."""
    found: dict[str, float] = {}
    for domain, batches in _masked(folder, tokenizer).items():
        bits, right = [], []
        for batch in batches:
            asked = batch.labels[0] != IGNORE
            hidden = arm.scored.hidden(batch.input_ids, boundaries=batch.boundaries)[0, asked]
            log_p, labels = linear(hidden, arm.scored.lm_head.weight).log_softmax(-1), batch.labels[0, asked]
            bits += (-log_p.gather(1, labels[:, None]) / math.log(2)).flatten().tolist()
            right += (log_p.argmax(-1) == labels).tolist()
        found |= {f"{domain} bits": statistics.mean(bits), f"{domain} top-1": statistics.mean(right)}
    return _with_means(found, ("bits", "top-1"))


def _with_means(found: dict[str, float], units: tuple[str, ...]) -> dict[str, float]:
    """Rounded, with the mean over domains of every unit."""
    for unit in units:
        found[f"mean {unit}"] = statistics.mean(v for k, v in found.items() if k.endswith(unit))
    return {key: round(float(value), 4) for key, value in found.items()}


def told_right(arm: Arm, tokenizer: Tokenizer, folder: Path) -> dict[str, float]:
    """Share of the held-out pairs that are told right at [CLS], by domain and over all."""
    return _told_right(arm, *_pairs(folder, tokenizer))


def told_right_apart(arm: Arm, tokenizer: Tokenizer, folder: Path) -> dict[str, float]:
    """The same where the passages are read apart."""
    return _told_right(arm, *_pairs(folder, tokenizer, LateInteraction))


@torch.no_grad()
def _told_right(arm: Arm, objective: NextSentence, domains: dict[str, list[Batch]]) -> dict[str, float]:
    right: dict[str, list[bool]] = {"all": []}
    for domain, batches in domains.items():
        for batch in batches:
            answers = objective.logits(arm.scored, batch)[: len(batch.labels)].argmax(-1) == batch.labels
            right[domain] = right.get(domain, []) + answers.tolist()
        right["all"] += right[domain]
    return {domain: round(statistics.mean(answers), 4) for domain, answers in right.items()}


def _counts(folder: Path, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """The scores of `masked_tokens` for the neighbours' counts of all training text, on the same batches."""
    shards, mask = TokenShards(folder / "tokens"), tokenizer.vocab_size
    model = BothSides(np.asarray(shards[0 : len(shards)]).astype(np.int64), mask + 1)
    found: dict[str, dict[str, float]] = {}
    for domain, batches in _masked(folder, tokenizer).items():
        separator, texts, labels = torch.full((2,), shards.manifest["separator"]), [], []
        for batch in batches:
            for start, end in pairwise(batch.boundaries or []):
                texts += [separator, batch.input_ids[0, start:end].clamp(max=mask)]
                labels += [torch.full((2,), IGNORE), batch.labels[0, start:end]]
        ids, asked = torch.cat([*texts, separator]).numpy(), torch.cat(labels).numpy()
        places = np.nonzero(asked != IGNORE)[0]
        for name, (bits, top) in model.scores(ids, places, asked[places]).items():
            found.setdefault(name, {}).update({f"{domain} bits": bits, f"{domain} top-1": top})
    return {name: _with_means(scores, ("bits", "top-1")) for name, scores in found.items()}


def _texts(batches: list[Batch], tokenizer: Tokenizer, separator: int) -> tuple[list[tuple[str, str]], list[int]]:
    """Packed pairs as text, with their labels."""
    couples, labels = [], []
    for batch in batches:
        ends = (batch.boundaries or [])[: len(batch.labels) + 1]
        for start, end in pairwise(ends):
            ids = batch.input_ids[0, start + 1 : end - 1].tolist()
            middle = ids.index(separator)
            couples.append((tokenizer.decode(ids[:middle]), tokenizer.decode(ids[middle + 1 :])))
        labels += batch.labels.tolist()
    return couples, labels


def _overlap(folder: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Accuracy of the overlap of words: fitted to the pairs that the encoders were trained on."""
    objective, domains = _pairs(folder, tokenizer)
    separator, generator = objective.vocabulary.separator, torch.Generator().manual_seed(0)
    loader = PackedLoader(folder / "tokens", 1, 4096, 0, checksums=False)
    seen = [objective.batch(next(loader), generator) for _ in range(STEPS["pairs"])]
    model, weighted, total = Overlap(*_texts(seen, tokenizer, separator)), 0.0, 0
    found = {}
    for domain, batches in domains.items():
        couples, labels = _texts(batches, tokenizer, separator)
        found[domain] = round(model.accuracy(couples, labels), 4)
        weighted, total = weighted + found[domain] * len(labels), total + len(labels)
    return found | {"all": round(weighted / total, 4)}


def _masked_rows(result: dict, counts: dict[str, dict[str, float]]) -> list[common.Row]:
    """Bits: fewer are better; accuracy: more."""
    rows, scores = [], result["masked_tokens"]
    for name, theirs in counts.items():
        for key, value in theirs.items():
            ratio = value / scores[key] if key.endswith("bits") else scores[key] / value
            case = "masked-lm-" + key.replace(" ", "-")
            unit = "bits/token" if key.endswith("bits") else "top-1"
            rows.append(common.Row(case, f"trigram-{name}", "", scores[key], value, unit, ratio, (ratio, ratio), None))
    return rows


def _pair_rows(name: str, results: list[dict], overlap: dict[str, float]) -> list[common.Row]:
    rows = []
    for domain, theirs in overlap.items():
        found = [result.get("told_right_apart") or result["told_right"] for result in results]
        ours, case = [scores[domain] for scores in found], f"{name}-{domain}"
        row = common.compare(case, ours, [theirs] * len(ours), peer="tf-idf-overlap", peer_setting="", unit="accuracy")
        rows.append(row)
    return rows


def _student_rows(teacher: dict, alone: list[dict], distilled: list[dict]) -> list[common.Row]:
    """Ours is bits per byte with the teacher, theirs without; the ratio is the share of the gap that is closed."""
    rows = []
    for domain, best in teacher["bits_per_byte"].items():
        ours, theirs = ([r["bits_per_byte"][domain] for r in results] for results in (distilled, alone))
        closed = [(b - a) / (b - best) for a, b in zip(ours, theirs, strict=True)]
        spread, means = (min(closed), max(closed)), (statistics.mean(ours), statistics.mean(theirs))
        setting = f"cross-entropy alone, as many steps; ratio is the share closed of the gap to the teacher's {best:g}"
        case, middle = f"distilled-{domain}", statistics.median(closed)
        rows.append(common.Row(case, "student-alone", setting, *means, "bits/byte", middle, spread, None))
    return rows
