"""What an encoder-decoder learns: to write the spans that are missing, or how a text goes on (T5, arXiv:1910.10683)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwq.objectives.cross_entropy import cross_entropy_sum
from qwq.objectives.objective import Batch, Objective, Window, cut, pack
from qwq.objectives.vocabulary import Vocabulary


@dataclass
class _SequenceToSequence(Objective):
    """Documents become a source and a target that ends with the separator; the decoder starts from the separator."""

    vocabulary: Vocabulary
    chunk_size: int = 512

    architectures = ("encoder-decoder",)
    reason = "it has no encoder to read the source with and decoder to write the target"

    def batch(self, window: Window, generator: torch.Generator) -> Batch:
        documents = [d for d in cut(window[0], self.vocabulary.separator) if len(d) > 1]
        end = torch.tensor([self.vocabulary.separator])
        couples = [self.split(document, generator) for document in documents] or [(end, end[:0])]
        input_ids, boundaries = pack([source for source, _ in couples])
        labels, target_boundaries = pack([torch.cat((target, end)) for _, target in couples])
        target_ids, _ = pack([torch.cat((end, target)) for _, target in couples])
        return Batch(input_ids, labels, boundaries, target_ids, target_boundaries)

    @abstractmethod
    def split(self, document: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A document of two tokens or more -> what is read, and what is written."""

    def sum(self, model: Any, batch: Batch) -> Tensor:
        memory = model.encode(batch.input_ids, boundaries=batch.boundaries)
        hidden = model.decode(batch.target_ids, memory, boundaries=batch.target_boundaries)
        return cross_entropy_sum(hidden, model.lm_head.weight, batch.labels, self.chunk_size)


@dataclass
class SpanDenoising(_SequenceToSequence):
    """Spans of the text, `mask_fraction` of its tokens, give way to a sentinel each.

    The target is the spans, each after its sentinel.
    """

    mask_fraction: float = 0.15
    span: float = 3.0  # tokens of a span, on average

    name = "span_denoising"

    def __post_init__(self) -> None:
        self.vocabulary.reserve(5, self.name)

    def split(self, document: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        length, sentinels = len(document), self.vocabulary.sentinels
        hidden = min(max(round(length * self.mask_fraction), 1), length - 1)
        count = min(max(round(hidden / self.span), 1), hidden, length - hidden, len(sentinels))
        kept, gone = (_parts(n, count, generator) for n in (length - hidden, hidden))
        sizes = [size for couple in zip(kept, gone, strict=True) for size in couple]
        pieces, source, target = document.split(sizes), [], []
        for sentinel, visible, span in zip(sentinels, pieces[::2], pieces[1::2], strict=False):
            mark = torch.tensor([sentinel])
            source += [visible, mark]
            target += [mark, span]
        return torch.cat(source), torch.cat(target)


@dataclass
class PrefixLM(_SequenceToSequence):
    """The encoder reads a document up to a random place, the decoder writes the rest: causal, with a prefix."""

    name = "prefix_lm"

    def split(self, document: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        place = 1 + int(torch.randint(len(document) - 1, (), generator=generator))
        return document[:place], document[place:]


def _parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """`total` as a sum of `count` numbers of 1 or more, all such sums equally likely."""
    ends = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    return torch.diff(ends, prepend=torch.tensor([0]), append=torch.tensor([total])).tolist()
