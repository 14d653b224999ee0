"""What objectives that write batches of their own know of token ids: word starts, sentence ends, spare ids."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qwq.data.shards import separator
from qwq.errors import UsageError
from qwq.tokenizer import Tokenizer

_IDEOGRAPHS = 0x2E80  # from here on, scripts that put no space between words
_SENTENCE_ENDS = tuple(".!?。！？\n")


@dataclass
class Vocabulary:
    """A tokenizer and the rows that a model's embedding has beyond it: [MASK], [CLS], no, yes, then sentinels."""

    tokenizer: Tokenizer
    vocab_size: int  # of the model

    def __post_init__(self) -> None:
        self.size = self.tokenizer.vocab_size  # ids that stand for text
        self.separator = separator(self.tokenizer)
        self.mask, self.cls, self.no, self.yes = range(self.size, self.size + 4)
        self.sentinels = range(self.size + 4, self.vocab_size)

    def reserve(self, spare: int, objective: str) -> None:
        """`UsageError` if the model has fewer than `spare` rows beyond the tokenizer's ids."""
        if self.vocab_size < self.size + spare:
            raise UsageError(
                f"objective {objective} needs {spare} ids beyond the tokenizer's {self.size:,}: "
                f"set model.vocab_size to {-(-(self.size + spare) // 64) * 64} or more, it is {self.vocab_size}"
            )

    @cached_property
    def control(self) -> Tensor:
        """[vocab_size] True for ids that are no text."""
        found = torch.zeros(self.vocab_size, dtype=torch.bool)
        found[list(self.tokenizer.special_tokens.values())] = True
        return found

    @cached_property
    def starts_word(self) -> Tensor:
        """[vocab_size] False for pieces that go on with a word: they begin with a letter or digit, and no space.

        Ideographs are words by themselves.
        """
        texts = (self.tokenizer.token_bytes(i).decode("utf-8", "replace")[:1] for i in range(self.vocab_size))
        return torch.tensor([not (c.isalnum() and ord(c) < _IDEOGRAPHS) for c in texts])

    @cached_property
    def ends_sentence(self) -> Tensor:
        """[vocab_size] True for pieces that end with a full stop, its relatives, or a line."""
        texts = (self.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in range(self.vocab_size))
        return torch.tensor([text.endswith(_SENTENCE_ENDS) for text in texts])
