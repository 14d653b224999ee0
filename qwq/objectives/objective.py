"""What an objective is: it builds batches out of windows of tokens, and sums a loss over their labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from qwq.errors import UsageError
from qwq.model import Assembly, ModelConfig
from qwq.objectives.cross_entropy import IGNORE

Window = tuple[Tensor, Tensor]  # token ids [B, T] as a loader gives them, and the token after each of them


class Batch(NamedTuple):
    """What a model reads and is asked for. A label of -100 asks for nothing; all others count, in `labelled`."""

    input_ids: Tensor  # [B, T], or packed documents [1, N]
    labels: Tensor
    boundaries: list[int] | None = None  # document i is [boundaries[i], boundaries[i + 1])
    target_ids: Tensor | None = None  # what an encoder-decoder writes, packed [1, M]
    target_boundaries: list[int] | None = None
    sampled: bool = False  # whether the student wrote it (distillation on-policy)

    @property
    def labelled(self) -> int:
        """How many labels are learned from."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        targets = None if self.target_ids is None else self.target_ids.to(device)
        return self._replace(input_ids=self.input_ids.to(device), labels=self.labels.to(device), target_ids=targets)


class Objective(ABC):
    """One way to learn. Subclasses say which assemblies it makes sense for, and why not for others."""

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    reason: ClassVar[str]  # follows "it makes no sense for ...: "
    unit: ClassVar[str] = "byte"  # what held-out bits are counted by: bytes of the labelled tokens, or "pair"

    def check(self, config: ModelConfig) -> None:
        """`UsageError` where the objective makes no sense for the config's assembly."""
        if config.architecture not in self.architectures:
            fits = " or ".join(self.architectures)
            raise UsageError(
                f"objective {self.name} makes no sense for architecture {config.architecture!r}: {self.reason}; "
                f"it needs {fits!r}"
            )

    @abstractmethod
    def batch(self, window: Window, generator: torch.Generator) -> Batch:
        """A batch out of a window of packed tokens; everything random comes from `generator` (on the CPU)."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The loss summed over the batch's labels, in nats; divide by `batch.labelled` for the mean."""
        if isinstance(model, Assembly):
            self.check(model.config)
        return self.sum(model, batch.to(next(model.parameters()).device))

    @abstractmethod
    def sum(self, model: Any, batch: Batch) -> Tensor:
        """`loss`, for a batch that is where the model is."""


def cut(input_ids: Tensor, separator: int) -> list[Tensor]:
    """Rows of packed tokens [B, T] -> the documents in them, one at least, without the separator that ends each."""
    documents = []
    for row in input_ids:
        ends = (row == separator).nonzero().flatten().tolist()
        pieces = zip([-1, *ends], [*ends, len(row)], strict=True)
        documents += [row[start + 1 : end] for start, end in pieces if end > start + 1]
    return documents or [input_ids[0]]


def pack(documents: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Documents one after the other without padding: ids [1, N], boundaries."""
    boundaries = [0]
    for document in documents:
        boundaries.append(boundaries[-1] + len(document))
    return torch.cat(list(documents))[None], boundaries
