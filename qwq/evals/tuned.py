"""GLUE by fine-tuning: a linear head on the mean of a text's states, all weights trained on the task's training set.

Any model can read: an encoder sees the text both ways, a decoder from left to right. Beside each score stands the same
metric of TF-IDF + logistic regression, fitted to the same training set.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwq.errors import QwqError
from qwq.evals.files import Source
from qwq.evals.glue import Glue
from qwq.evals.task import Columns, Example, Metric, Split
from qwq.model import Assembly
from qwq.objectives.objective import pack
from qwq.tokenizer import Tokenizer

EPOCHS, BATCH, LONGEST = 3, 32, 256  # passes over the training set, texts a step, tokens of a text
RATE = 0.03  # over the model's width: 5e-5 at 576, 1.6e-4 at 192 (what fits one width fits another, arXiv:2203.03466)
HEAD_RATE = 1e-2  # of the head, which starts from nothing

Progress = Callable[[int, int], None]  # steps done, steps in all


class TunedGlue(Glue):
    """One of the nine, named `sst2-tuned` and so on."""

    kind = "tuned"

    def __init__(self, name: str):
        super().__init__(name)
        self.spec = self.spec._replace(prompt="{0}" if len(self.spec.columns) == 2 else "{0}\n{1}")
        self.name = f"{name}-tuned"
        first, metric = next(iter(self.spec.metrics.items()))
        self.metrics = {**self.spec.metrics, f"baseline_{first}": partial(_of_baseline, metric)}
        self.note = f"fine-tuned, {EPOCHS} epochs; baseline: TF-IDF + logistic regression on the same training set"

    def load(self, source: Source) -> Split:
        """`shots` of the split are what is trained on."""
        split = super().load(source)
        if split.shots is None:
            raise QwqError(f"{self.name}: no train.tsv of {self.spec.folder}, which a fine-tuned head needs")
        self.train = split.shots
        return split

    def answers(
        self, model: Assembly, tokenizer: Tokenizer, examples: Sequence[Example], seed: int, progress: Progress
    ) -> Iterator[tuple[float, float]]:
        """(prediction of the fine-tuned model, of the baseline) for each example; both are trained first."""
        texts, asked = [e.prompt for e in self.train], [e.prompt for e in examples]
        classes = len(self.spec.labels)
        theirs = baseline(texts, [e.target for e in self.train], asked, bool(classes))
        tuned = fine_tune(model, tokenizer, texts, [e.target for e in self.train], classes, seed, progress)
        yield from zip(tuned(asked), theirs, strict=True)

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        prediction, theirs = answer
        found = {"prediction": prediction, "baseline": theirs, "target": example.target}
        return {"correct": prediction == example.target, **found}


def _of_baseline(metric: Metric, columns: Columns) -> float:
    theirs = columns["baseline"]
    return metric({**columns, "prediction": theirs, "correct": theirs == columns["target"]})


class Reader(nn.Module):
    """A model and a head: texts as token ids -> logits [texts, classes], or a score [texts, 1] where there are none."""

    def __init__(self, model: Assembly, classes: int):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.hidden_size, max(1, classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, texts: Sequence[Tensor]) -> Tensor:
        ids, boundaries = pack(texts)
        states = self.model.hidden(ids, boundaries=boundaries)[0]  # type: ignore[operator]
        sizes = torch.tensor(boundaries).diff().tolist()
        return self.head(torch.stack([part.mean(0) for part in states.split(sizes)]))


def fine_tune(
    model: Assembly,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    targets: Sequence[float],
    classes: int,
    seed: int,
    progress: Progress,
) -> Callable[[Sequence[str]], list[float]]:
    """Train a copy of the model with a head for `classes` (0: a score); returns what predicts a class (or score)."""
    reader = Reader(copy.deepcopy(model), classes).to(next(model.parameters()).dtype)
    inner = [p for p in reader.model.parameters() if p.requires_grad]
    groups = [
        {"params": inner, "lr": RATE / model.config.hidden_size},
        {"params": list(reader.head.parameters()), "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = EPOCHS * -(-len(texts) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    encoded = [_ids(tokenizer, text) for text in texts]
    labels = torch.tensor(targets, dtype=torch.long if classes else reader.head.weight.dtype)
    generator, done = torch.Generator().manual_seed(seed), 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(texts), generator=generator).split(BATCH):
            logits = reader([encoded[row] for row in rows.tolist()])
            loss = F.cross_entropy(logits, labels[rows]) if classes else F.mse_loss(logits[:, 0], labels[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            progress(done, steps)

    @torch.no_grad()
    def predict(asked: Sequence[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(asked), BATCH):
            logits = reader([_ids(tokenizer, text) for text in asked[start : start + BATCH]])
            found += (logits.argmax(-1) if classes else logits[:, 0]).tolist()
        return found

    return predict


def _ids(tokenizer: Tokenizer, text: str) -> Tensor:
    return torch.tensor(tokenizer.encode(text or " ")[:LONGEST])


def baseline(texts: Sequence[str], targets: Sequence[float], asked: Sequence[str], classify: bool) -> list[float]:
    """TF-IDF of words and pairs of words, then logistic regression (for scores, ridge), by scikit-learn.

    Its one setting, the strength of regularisation, is chosen by cross-validation.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression, RidgeCV
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise QwqError("the baseline beside a fine-tuned head needs scikit-learn: pip install 'qwq[eval]'") from None
    last = RidgeCV()
    if classify:
        last = GridSearchCV(LogisticRegression(max_iter=1000), {"C": [0.3, 1, 3, 10, 30]}, cv=3)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), last)
    return model.fit(texts, targets).predict(asked).tolist()
