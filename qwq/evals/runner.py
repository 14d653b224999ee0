"""Asks a model every question of its benchmarks, keeps each answer at once, and makes scores with their intervals."""

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qwq.checkpoint import Checkpoint
from qwq.engine import LanguageModel
from qwq.errors import QwqError, UsageError
from qwq.evals.files import Source, some
from qwq.evals.requests import TIE, Requests
from qwq.evals.task import Columns, Example, Metric, Task
from qwq.evals.tuned import TunedGlue

_RESAMPLES = 1000


def evaluate(
    lm: LanguageModel | Checkpoint,
    tasks: Sequence[Task],
    *,
    data_dir: Path | str | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = True,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Scores of a model: {"model", "tasks": {name: {...}}, "not_measured": {name: reason}}, written to `out` as well.

    A task's entry has metrics with 95 % bootstrap intervals, n, label (real, sample, proxy), fewshot, seed, version of
    the prompt, ties (answers decided by less than 1e-3), seconds. Finished answers stand in `out` with the ending
    .items.jsonl, and are not asked again. `limit`: examples a task, drawn with `seed`. `data_dir` None: QWQ_DATA_DIR,
    or data/. A task that fails does not stop the others. An encoder comes as its checkpoint: it can be fine-tuned only.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be 1 or more, got {limit}")
    source = Source(Path(os.environ.get("QWQ_DATA_DIR", "data") if data_dir is None else data_dir))
    journal, weights = Journal(out, resume), _fingerprint(lm)
    requests = Requests(lm, batch_size) if isinstance(lm, LanguageModel) else None
    result: dict[str, Any] = {"model": lm.name, "tasks": {}, "not_measured": {}}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        for task in tasks:
            started, bar = time.perf_counter(), progress.add_task(task.name, total=None)
            try:
                shots = task.fewshot if fewshot is None else fewshot
                examples, prefix, label = _prepare(task, source, limit, shots, seed)
                setting = [weights, task.name, task.version, task.samples, seed, prefix]
                keys = {e.id: _key(setting, e) for e in examples}
                grades = {i: journal.kept[key] for i, key in keys.items() if key in journal.kept}
                todo = [e for e in examples if e.id not in grades]
                progress.update(bar, total=len(examples), completed=len(grades))

                def training(done: int, steps: int, bar: TaskID = bar, name: str = task.name) -> None:
                    progress.update(bar, description=f"{name}: training", completed=done, total=steps)

                if isinstance(task, TunedGlue):
                    answered = _tune(task, lm, todo, seed, training)
                elif requests is None:
                    raise QwqError(f"{lm.name} is an encoder: it can only be fine-tuned ({task.name}-tuned)")
                else:
                    answered = _ask(task, requests, todo, prefix, seed)
                for example, answer, tie in answered:
                    grades[example.id] = {**task.grade(example, answer), "tie": tie}
                    row = {"task": task.name, "id": example.id, "key": keys[example.id], "grade": grades[example.id]}
                    journal.add(row | ({"answer": answer} if task.kind == "generate" else {}))
                    progress.update(bar, description=task.name, total=len(examples), completed=len(grades))
                rows = [grades[e.id] for e in examples]
                table = {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}
                result["tasks"][task.name] = {
                    "metrics": scores(task.metrics, table, [e.group or e.id for e in examples], seed),
                    "n": len(rows),
                    "label": label,
                    "fewshot": shots,
                    "seed": seed,
                    "version": task.version,
                    "ties": int(table["tie"].sum()),
                    "seconds": round(time.perf_counter() - started, 1),
                    "note": task.note,
                }
            except QwqError as error:
                result["not_measured"][task.name] = str(error)
            progress.remove_task(bar)
            if out is not None:
                part = out.with_suffix(".part")  # all of the file or nothing
                part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                part.replace(out)
    return result


def _prepare(task: Task, source: Source, limit: int | None, shots: int, seed: int) -> tuple[list[Example], str, str]:
    """The examples that are asked, what stands before each of them, and the label of their score."""
    split = task.load(source)
    examples, prefix = some(split.examples, task.name), ""
    if shots:
        pool = examples if split.shots is None else split.shots
        if len(pool) <= shots:
            raise QwqError(f"{task.name}: {shots} examples cannot be shown, its file has {len(pool)}")
        chosen = random.Random(seed).sample(pool, shots)
        prefix = "".join(f"{e.prompt}{e.answer}\n\n" for e in chosen)
        if split.shots is None:
            examples = [e for e in examples if e not in chosen]
    asked = draw(examples, limit, seed)
    return asked, prefix, "real" if split.official and len(asked) == len(split.examples) else task.label


def draw(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """`limit` examples, drawn by whole groups, in the order of the file."""
    groups = list(dict.fromkeys(e.group or e.id for e in examples))
    random.Random(seed).shuffle(groups)
    rank = {group: i for i, group in enumerate(groups)}
    chosen = {e.id for e in sorted(examples, key=lambda e: rank[e.group or e.id])[:limit]}
    return [e for e in examples if e.id in chosen]


def _ask(
    task: Task, requests: Requests, examples: list[Example], prefix: str, seed: int
) -> Iterator[tuple[Example, Any, bool]]:
    """(example, answer, whether it was decided by next to nothing), as the answers come."""
    prompts = [prefix + e.prompt for e in examples]
    if task.kind == "generate":
        limits: dict[str, Any] = {"max_tokens": task.max_tokens, "stop": task.stop, "samples": task.samples}
        yield from ((examples[i], *done) for i, done in requests.generate(prompts, **limits, seed=seed))
    elif task.kind == "rolling":
        yield from ((examples[i], nats, False) for i, nats in requests.rolling(prompts))
    else:
        asked = [(p, e.choices or (e.answer,)) for p, e in zip(prompts, examples, strict=True)]
        for i, answer in requests.likelihoods(asked):
            best = sorted((a.nats for a in answer), reverse=True)
            yield examples[i], answer, (best[0] - best[1] if len(best) > 1 else abs(answer[0].margin)) < TIE


def _tune(
    task: TunedGlue, lm: LanguageModel | Checkpoint, examples: list[Example], seed: int, progress: Callable
) -> Iterator[tuple[Example, Any, bool]]:
    """The same by fine-tuning, where something is left to answer."""
    if examples:
        answers = task.answers(lm.model, lm.tokenizer, examples, seed, progress)
        yield from ((example, answer, False) for example, answer in zip(examples, answers, strict=True))


def scores(metrics: Mapping[str, Metric], table: Columns, groups: Sequence[str], seed: int) -> dict[str, dict]:
    """Each metric with a 95 % percentile interval over 1,000 resamples of the groups (Efron, 1979)."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    sets, numbers = [np.array(m) for m in members.values()], np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(_RESAMPLES):
        rows = numbers.integers(len(sets), size=len(sets))
        if len(sets) < len(groups):
            rows = np.concatenate([sets[i] for i in rows])
        sample = {name: values[rows] for name, values in table.items()}
        for name, metric in metrics.items():
            drawn[name].append(metric(sample))
    intervals = {name: np.percentile(values, [2.5, 97.5]) for name, values in drawn.items()}
    return {
        name: {"value": _plain(metric(table)), "interval": [_plain(bound) for bound in intervals[name]]}
        for name, metric in metrics.items()
    }


def _plain(value: float) -> float | None:
    """Eight digits, for JSON, which has neither NaN nor infinity."""
    return float(f"{value:.8g}") if math.isfinite(value) else None


def _fingerprint(lm: LanguageModel | Checkpoint) -> str:
    """Tells models apart by some of their weights: a folder can hold another model tomorrow."""
    digest = hashlib.sha256()
    for name, weight in sorted(lm.model.state_dict().items()):
        digest.update(name.encode() + weight.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _key(setting: list, e: Example) -> str:
    """An answer's name: the same model, setting and question have the same one."""
    asked = json.dumps([*setting, e.prompt, e.choices, e.answer, str(e.target)])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


class Journal:
    """Finished answers, a line each, beside the report: `kept` holds the grades of those that are not asked again."""

    def __init__(self, out: Path | None, resume: bool):
        self.path = None if out is None else out.with_suffix(".items.jsonl")
        self.kept: dict[str, dict[str, float]] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(encoding="utf-8") if resume and self.path.is_file() else ""
            whole = text[: text.rfind("\n") + 1]  # an interruption leaves half a line
            self.kept = {row["key"]: row["grade"] for row in map(json.loads, whole.split("\n")[:-1])}
            self.path.write_text(whole, encoding="utf-8")
        except OSError as error:
            raise QwqError(f"{self.path}: {error.strerror}") from None
        except (ValueError, LookupError, TypeError):
            raise QwqError(f"{self.path} is not a record of answers: move it away, or choose another --out") from None

    def add(self, row: dict[str, Any]) -> None:
        """Append an answer."""
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False, default=float) + "\n")
