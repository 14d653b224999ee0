"""What a benchmark is made of: examples, a kind of request, a grade for each answer, metrics over all grades."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwq.evals.files import Source

Columns = Mapping[str, np.ndarray]  # a grade's fields, one value an example
Metric = Callable[[Columns], float]


@dataclass(frozen=True)
class Example:
    """One question. As a shot before another's it is `prompt` + `answer`."""

    id: str
    prompt: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    target: Any = None  # what `grade` compares with
    group: str = ""  # examples of one group (a paragraph, a dialogue) are drawn and resampled together


@dataclass
class Split:
    """The examples of an evaluation. `official`: they are the complete official split, in its own form."""

    examples: list[Example]
    official: bool = False
    shots: list[Example] | None = None  # where few-shot examples come from; None: other examples of the same file


class Task(ABC):
    """A benchmark. By `kind`, the answer that `grade` receives is

    "choice": a `Likelihood` of each choice, or of `Example.answer` where there are none; "rolling": log p of the prompt
    in nats; "generate": `samples` texts, greedy for one; "tuned": a head and its baseline (tuned.py).
    """

    name: str
    kind = "generate"
    metrics: Mapping[str, Metric]  # the first one is the headline
    version = 1  # of the prompt: another wording is another benchmark
    fewshot = 0
    label = "sample"  # of what is not the complete official split
    note = ""
    max_tokens = 64
    stop: tuple[str, ...] = ("\n",)
    samples = 1

    @abstractmethod
    def load(self, source: Source) -> Split:
        """Read the files. `QwqError` is one line that names the file and what is wrong with it."""

    @abstractmethod
    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        """Numbers of one answered example, to be kept and aggregated."""


def mean(field: str) -> Metric:
    """The mean of a grade's field."""
    return lambda columns: float(columns[field].mean())


class ChoiceTask(Task):
    """The likeliest choice is the prediction; `Example.target` is the index of the right one."""

    kind = "choice"
    metrics: Mapping[str, Metric] = {"accuracy": mean("correct")}

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        prediction = int(np.argmax([choice.nats for choice in answer]))
        return {"correct": prediction == example.target, "prediction": prediction, "target": example.target}
