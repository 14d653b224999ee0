"""GLUE (arXiv:1804.07461), all nine tasks by prompt: the likeliest answer is the prediction."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qwq.errors import QwqError
from qwq.evals.files import Rows, Source, index_of, read_table, read_text
from qwq.evals.task import ChoiceTask, Columns, Example, Metric, Split, mean


def matthews(columns: Columns) -> float:
    """Matthews correlation of two classes; 0 where one of the sides is constant, as scikit-learn has it."""
    return pearson(columns)  # of two classes written 0 and 1 they are the same


def f1(columns: Columns) -> float:
    """F1 of class 1."""
    both = (columns["prediction"] * columns["target"]).sum()
    return float(2 * both / max(1, columns["prediction"].sum() + columns["target"].sum()))


def pearson(columns: Columns) -> float:
    """Pearson correlation; 0 where one of the sides is constant."""
    a, b = columns["prediction"] - columns["prediction"].mean(), columns["target"] - columns["target"].mean()
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / spread) if spread > 1e-12 else 0.0


def spearman(columns: Columns) -> float:
    """Pearson correlation of ranks, ties at their mean rank."""
    return pearson({name: _ranks(columns[name]) for name in ("prediction", "target")})


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


class _Spec(NamedTuple):
    folder: str  # in the official archive
    official: int  # rows of dev
    columns: tuple[str, ...]  # of the texts, then of the label, as the official file names them
    prompt: str  # {0} and {1} are the texts
    choices: tuple[str, ...]  # in the order of the labels
    labels: tuple[str, ...] = ("0", "1")  # as the file writes them; none: scores from 0 to 5
    metrics: Mapping[str, Metric] = ChoiceTask.metrics
    hub_columns: tuple[str, ...] = ("sentence1", "sentence2", "label")
    dev: str = "dev.tsv"
    headerless: tuple[str, ...] = ()


_BOTH: Mapping[str, Metric] = {"accuracy": mean("correct"), "f1": f1}
_PAIR, _ONE, _NO_YES = ("sentence1", "sentence2", "label"), ("sentence", "label"), (" no", " yes")
_ENTAILS = ("entailment", "not_entailment")
_SPECS = {
    "cola": _Spec(
        "CoLA", 1043, _ONE, "{0}\nQuestion: Is this sentence grammatically correct?\nAnswer:", _NO_YES,
        metrics={"matthews": matthews, "accuracy": mean("correct")}, hub_columns=_ONE,
        headerless=("source", "label", "mark", "sentence"),
    ),
    "sst2": _Spec(
        "SST-2", 872, _ONE, "Review: {0}\nSentiment (positive or negative):", (" negative", " positive"),
        hub_columns=_ONE, headerless=("sentence", "label"),
    ),
    "mrpc": _Spec(
        "MRPC", 408, ("#1 String", "#2 String", "Quality"),
        "{0}\n{1}\nQuestion: Do both sentences mean the same?\nAnswer:", _NO_YES, metrics=_BOTH,
    ),
    "stsb": _Spec(
        "STS-B", 1500, ("sentence1", "sentence2", "score"),
        "{0}\n{1}\nQuestion: How alike are these sentences in meaning, from 0 (not at all) to 5 (the same)?\nAnswer:",
        tuple(f" {i}" for i in range(6)), (), {"pearson": pearson, "spearman": spearman},
    ),
    "qqp": _Spec(
        "QQP", 40430, ("question1", "question2", "is_duplicate"),
        "{0}\n{1}\nQuestion: Do both questions mean the same?\nAnswer:", _NO_YES, metrics=_BOTH,
        hub_columns=("question1", "question2", "label"),
    ),
    "mnli": _Spec(
        "MNLI", 9815, ("sentence1", "sentence2", "gold_label"), "{0}\nQuestion: {1} True, false, or neither?\nAnswer:",
        (" True", " Neither", " False"), ("entailment", "neutral", "contradiction"),
        hub_columns=("premise", "hypothesis", "label"), dev="dev_matched.tsv",
    ),
    "qnli": _Spec(
        "QNLI", 5463, ("question", "sentence", "label"),
        '{1}\nQuestion: Does this text answer the question "{0}"?\nAnswer:', (" yes", " no"), _ENTAILS,
        hub_columns=("question", "sentence", "label"),
    ),
    "rte": _Spec("RTE", 277, _PAIR, "{0}\nQuestion: {1} True or false?\nAnswer:", (" True", " False"), _ENTAILS),
    "wnli": _Spec("WNLI", 71, _PAIR, "{0}\nQuestion: {1} True or false?\nAnswer:", (" False", " True")),
}  # fmt: skip
GLUE = tuple(_SPECS)


class Glue(ChoiceTask):
    """One of the nine. The complete dev set in its archive's form is the official one, all else a sample."""

    def __init__(self, name: str):
        self.name = self.subset = name
        self.spec, self.metrics = _SPECS[name], _SPECS[name].metrics

    def load(self, source: Source) -> Split:
        folders = (f"glue/{self.subset}", f"glue/{self.spec.folder}")
        names = [f"{folder}/{file}" for file in (self.spec.dev, "train.txt") for folder in folders]
        read = partial(read_table, columns=self.spec.columns, headerless=self.spec.headerless)
        split = "validation" + self.spec.dev.removeprefix("dev").removesuffix(".tsv")
        rows, where = source.rows(names, read, ("nyu-mll/glue", self.subset, split))
        train = source.find(*(f"{folder}/train.tsv" for folder in folders))
        shots = None if train is None else self._examples(read(train), str(train))
        official = len(rows) == self.spec.official
        if self.subset == "sst2" and Path(where).is_file():  # its archive has a header; somebody's copy may not
            official &= read_text(Path(where)).startswith("sentence\t")
        return Split(self._examples(rows, where), official, shots)

    def _examples(self, rows: Rows, where: str) -> list[Example]:
        spec, examples = self.spec, []
        columns = spec.columns if set(spec.columns) <= set(rows[0]) else spec.hub_columns
        for number, row in enumerate(rows, 1):
            *texts, label = (row[column] for column in columns)
            at = f"{where}, row {number}"
            target = index_of(label, spec.labels, at) if spec.labels else _score(label, at)
            answer = spec.choices[round(target)]
            examples.append(Example(str(number), spec.prompt.format(*texts), answer, spec.choices, target))
        return examples

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        if self.spec.labels:
            return super().grade(example, answer)
        nats = np.array([choice.nats for choice in answer])
        weights = np.exp(nats - nats.max())  # the prediction is the mean of the scores by their probability
        return {"prediction": float(weights @ np.arange(6) / weights.sum()), "target": example.target}


def _score(value: Any, where: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 5:
        raise QwqError(f"{where}: {value!r} is no score from 0 to 5")
    return score
