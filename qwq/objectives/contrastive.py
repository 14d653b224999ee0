"""Contrastive learning: what belongs together is near, all else is far. Text with text here, images with text alike.

Shapes: N pairs, C embedding size. Pairs of the same group (`groups` [N]) belong together, as images with the same
caption do, or passages of one document: no loss takes them for negatives.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.objectives.next_sentence import pairs
from qwq.objectives.objective import Batch, Objective, Window, pack
from qwq.objectives.vocabulary import Vocabulary


def info_nce(a: Tensor, b: Tensor, groups: Tensor, scale: float | Tensor) -> Tensor:
    """Each row of a [N, C] has to find its own of b [N, C], and the other way round; summed over pairs, in nats.

    The mean of both ways (CLIP, arXiv:2103.00020). `scale` multiplies the similarities: 1 / temperature. Others of the
    row's group are left out.
    """
    same = (groups[:, None] == groups) & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    logits = (scale * a @ b.t()).masked_fill(same, -torch.inf)
    own = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.t(), own, reduction="sum")) / 2


def multi_positive(a: Tensor, b: Tensor, groups: Tensor, scale: float | Tensor) -> Tensor:
    """As `info_nce`, but each row has to find all of its group: the mean of their losses (arXiv:2004.11362)."""
    positive = (groups[:, None] == groups).to(a.dtype)
    logits, share = scale * a @ b.t(), positive / positive.sum(1, keepdim=True)
    return -((share * logits.log_softmax(1)).sum() + (share * logits.t().log_softmax(1)).sum()) / 2


def sigmoid(a: Tensor, b: Tensor, groups: Tensor, scale: float | Tensor, bias: float | Tensor = 0.0) -> Tensor:
    """Every combination of a row of a and one of b is a question of its own: one group or not? (arXiv:2303.15343)"""
    sign = 2 * (groups[:, None] == groups).to(a.dtype) - 1
    return -F.logsigmoid(sign * (scale * a @ b.t() + bias)).sum()


@dataclass
class Contrastive(Objective):
    """Neighbouring passages of a document are near, those of different documents far (Cpt, arXiv:2201.10005)."""

    vocabulary: Vocabulary
    kind: Literal["info_nce", "multi_positive", "sigmoid"] = "info_nce"
    scale: float = 20.0  # 1 / temperature
    longest: int = 64  # tokens of a passage

    name = "contrastive"
    architectures = ("encoder",)
    reason = "a text's embedding is the mean of states that all see the whole text"
    unit = "pair"

    def batch(self, window: Window, generator: torch.Generator) -> Batch:
        found = pairs(window, self.vocabulary, self.longest)
        passages = [pair.first for pair in found] + [pair.second for pair in found]
        ids, boundaries = pack(passages or [window[0][0]])
        texts: dict[tuple, int] = {}  # a passage that comes again is of the group it was of
        groups = [texts.setdefault(tuple(pair.second.tolist()), pair.document) for pair in found]
        return Batch(ids, torch.tensor(groups, dtype=torch.long), boundaries)

    def sum(self, model: Any, batch: Batch) -> Tensor:
        count, embedded = len(batch.labels), model.embed(batch.input_ids, boundaries=batch.boundaries)
        a, b = embedded[:count], embedded[count : 2 * count]
        if self.kind == "sigmoid":  # at the start nearly all combinations are negatives: the bias says so
            return sigmoid(a, b, batch.labels, self.scale, -self.scale / 2)
        return (info_nce if self.kind == "info_nce" else multi_positive)(a, b, batch.labels, self.scale)
