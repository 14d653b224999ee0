"""Pairs of neighbouring passages: does the second follow the first (BERT), or were they swapped (ALBERT)?"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.kernels.linear import linear
from qwq.objectives.objective import Batch, Objective, Window, cut, pack
from qwq.objectives.vocabulary import Vocabulary

SHORTEST = 8  # tokens of a passage


class Pair(NamedTuple):
    """Two passages, the second right after the first, and the number of their document."""

    first: Tensor
    second: Tensor
    document: int


def passages(document: Tensor, ends_sentence: Tensor, longest: int) -> list[Tensor]:
    """A document cut after sentences into passages of at most `longest` tokens; a longer sentence is cut anywhere."""
    found, start = [], 0
    ends = (ends_sentence[document].nonzero().flatten() + 1).tolist()
    while start < len(document):
        fitting = [end for end in ends if start + SHORTEST <= end <= start + longest]
        end = len(document) if len(document) <= start + longest else fitting[-1] if fitting else start + longest
        found.append(document[start:end])
        start = end
    return found


def pairs(window: Window, vocabulary: Vocabulary, longest: int) -> list[Pair]:
    """The pairs of neighbouring passages in a window; no passage is in two of them."""
    found = []
    for number, document in enumerate(cut(window[0], vocabulary.separator)):
        parts = passages(document, vocabulary.ends_sentence, longest)
        couples = zip(parts[::2], parts[1::2], strict=False)
        found += [Pair(a, b, number) for a, b in couples if min(len(a), len(b)) >= SHORTEST]
    return found


@dataclass
class NextSentence(Objective):
    """[CLS] first [SEP] second [SEP], read at [CLS]: "yes" where the second passage follows the first in the text.

    In half of the pairs the second passage is that of a pair from another document (arXiv:1810.04805). No head is
    added: "no" and "yes" are two ids of their own, and `lm_head` weighs one against the other.
    """

    vocabulary: Vocabulary
    longest: int = 64  # tokens of a passage

    name = "next_sentence"
    architectures = ("encoder",)
    reason = "the token that would be read for the answer has to see both passages"
    unit = "pair"

    def __post_init__(self) -> None:
        self.vocabulary.reserve(4, self.name)

    def batch(self, window: Window, generator: torch.Generator) -> Batch:
        found = pairs(window, self.vocabulary, self.longest)
        labels = torch.randperm(len(found), generator=generator) % 2
        couples = [
            (pair.first, pair.second) if label else self.wrong(found, index, generator)
            for index, (pair, label) in enumerate(zip(found, labels.tolist(), strict=True))
        ]
        return self.assemble(couples, labels)

    def assemble(self, couples: list[tuple[Tensor, Tensor]], labels: Tensor) -> Batch:
        """Couples of passages and whether the second follows (1) or not (0), as one packed batch."""
        cls, sep = torch.tensor([self.vocabulary.cls]), torch.tensor([self.vocabulary.separator])
        # Without a pair (a window of scraps) there is one text, and nothing asked of it.
        texts = [torch.cat((cls, a, sep, b, sep)) for a, b in couples] or [cls]
        ids, boundaries = pack(texts)
        return Batch(ids, labels, boundaries)

    def wrong(self, found: list[Pair], index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The first passage of a pair with a second one that does not follow it."""
        others = [p for p in found if p.document != found[index].document] or [*found[:index], *found[index + 1 :]]
        if not others:  # the only pair of its window
            return found[index].second, found[index].first
        return found[index].first, others[int(torch.randint(len(others), (), generator=generator))].second

    def sum(self, model: Any, batch: Batch) -> Tensor:
        logits = self.logits(model, batch)[: len(batch.labels)]
        return F.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.labels, reduction="sum"
        )

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Of "no" and "yes", for every pair of the batch: [P, 2]"""
        assert batch.boundaries is not None
        hidden = model.hidden(batch.input_ids, boundaries=batch.boundaries)[0, batch.boundaries[:-1]]
        return linear(hidden, model.lm_head.weight[[self.vocabulary.no, self.vocabulary.yes]])


@dataclass
class LateInteraction(NextSentence):
    """The same question of two passages that are read apart and compared token by token (ColBERT, arXiv:2004.12832).

    Every token looks for the state most like its own (cosine) in the other passage, where the same piece of text counts
    for one more (exact matches, arXiv:2104.07186). What it finds beyond what it expects is evidence; passages follow
    each other by the weighted mean of it, both ways. Weights and expectations are read from the states: "yes", and what
    parts "no" from it, are their vectors, and no head is added here either.
    """

    scale: float = 10.0  # from evidence to the logit of "yes"
    expected: float = 0.76  # likeness; where a token's own expectation starts

    name = "late_interaction"
    reason = "a token's state has to hold the whole passage it stands in"

    def assemble(self, couples: list[tuple[Tensor, Tensor]], labels: Tensor) -> Batch:
        """All first passages, then all second ones."""
        texts = [first for first, _ in couples] + [second for _, second in couples]
        ids, boundaries = pack(texts or [torch.tensor([self.vocabulary.cls])])
        return Batch(ids, labels, boundaries)

    def logits(self, model: Any, batch: Batch) -> Tensor:
        assert batch.boundaries is not None
        hidden = model.hidden(batch.input_ids, boundaries=batch.boundaries)[0]
        no, yes = model.lm_head.weight[[self.vocabulary.no, self.vocabulary.yes]]
        sizes = torch.tensor(batch.boundaries).diff().tolist()
        ids, states = batch.input_ids[0].split(sizes), F.normalize(hidden, dim=-1).split(sizes)
        weights = F.softplus(hidden @ yes + 0.5).split(sizes)
        expected = (self.expected + 0.1 * (hidden @ (no - yes))).split(sizes)
        evidence = []
        for i in range(len(batch.labels)):
            j = i + len(batch.labels)
            alike = states[i] @ states[j].t() + (ids[i][:, None] == ids[j])
            found = [(weights[i], alike.amax(1) - expected[i]), (weights[j], alike.amax(0) - expected[j])]
            evidence.append(sum((weight * more).sum() / weight.sum() for weight, more in found) / 2)
        logits = self.scale * torch.stack(evidence) if evidence else hidden.sum(1)[:0]
        return torch.stack((torch.zeros_like(logits), logits), 1)


class SentenceOrder(NextSentence):
    """The same question where the wrong pairs are right ones, swapped: harder, no topic helps (arXiv:1909.11942)."""

    name = "sentence_order"

    def wrong(self, found: list[Pair], index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return found[index].second, found[index].first
