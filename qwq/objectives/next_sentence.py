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

    Every token looks for the state most like its own (cosine) in the other passage; how alike the passages are is the
    mean of what the tokens find, both ways. Tokens count by a weight that is read from their states: "yes" is its
    vector, and no head is added here either.
    """

    scale: float = 10.0  # from likeness to the logit of "yes",
    middle: float = 0.57  # which is 0 here

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
        weights = F.softplus(hidden @ model.lm_head.weight[self.vocabulary.yes] + 0.5)
        sizes = torch.tensor(batch.boundaries).diff().tolist()
        states, weights = F.normalize(hidden, dim=-1).split(sizes), weights.split(sizes)
        alike = []
        for i in range(len(batch.labels)):
            j = i + len(batch.labels)
            cosines = states[i] @ states[j].t()
            found = [(weights[i], cosines.amax(1)), (weights[j], cosines.amax(0))]
            alike.append(sum((weight * best).sum() / weight.sum() for weight, best in found) / 2)
        yes = self.scale * (torch.stack(alike) - self.middle) if alike else hidden.sum(1)[:0]
        return torch.stack((torch.zeros_like(yes), yes), 1)


class SentenceOrder(NextSentence):
    """The same question where the wrong pairs are right ones, swapped: harder, no topic helps (arXiv:1909.11942)."""

    name = "sentence_order"

    def wrong(self, found: list[Pair], index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return found[index].second, found[index].first
