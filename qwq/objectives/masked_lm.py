"""Masked language modelling: an encoder finds the tokens that were hidden from it (BERT, arXiv:1810.04805)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwq.objectives.cross_entropy import IGNORE, cross_entropy_sum
from qwq.objectives.objective import Batch, Objective, Window, cut, pack
from qwq.objectives.vocabulary import Vocabulary


@dataclass
class MaskedLM(Objective):
    """Of the tokens, `mask_fraction` are chosen; 80 % of them become [MASK], 10 % a random token, 10 % stay.

    `whole_words` chooses words: all pieces of one, or none. Control tokens are never chosen.
    """

    vocabulary: Vocabulary
    mask_fraction: float = 0.15
    whole_words: bool = False
    chunk_size: int = 512

    name = "masked_lm"
    architectures = ("encoder",)
    reason = "a model that reads from left to right cannot use what follows a masked token"

    def __post_init__(self) -> None:
        self.vocabulary.reserve(1, self.name)

    def batch(self, window: Window, generator: torch.Generator) -> Batch:
        ids, boundaries = pack(cut(window[0], self.vocabulary.separator))
        chosen = self.choose(ids[0], boundaries, generator)[None]
        labels = ids.masked_fill(~chosen, IGNORE)
        fate = torch.rand(ids.shape, generator=generator)
        random = torch.randint(self.vocabulary.size, ids.shape, generator=generator)
        ids = torch.where(chosen & (fate < 0.8), self.vocabulary.mask, ids)
        return Batch(torch.where(chosen & (fate >= 0.8) & (fate < 0.9), random, ids), labels, boundaries)

    def choose(self, ids: Tensor, boundaries: list[int], generator: torch.Generator) -> Tensor:
        """Which of the packed ids [N] the model has to find, [N] bool."""
        units = torch.arange(len(ids))
        if self.whole_words:
            starts = self.vocabulary.starts_word[ids]
            starts[boundaries[:-1]] = True
            units = starts.cumsum(0) - 1
        drawn = torch.rand(len(ids), generator=generator) < self.mask_fraction
        return drawn[units] & ~self.vocabulary.control[ids]

    def sum(self, model: Any, batch: Batch) -> Tensor:
        hidden = model.hidden(batch.input_ids, boundaries=batch.boundaries)
        return cross_entropy_sum(hidden, model.lm_head.weight, batch.labels, self.chunk_size)
