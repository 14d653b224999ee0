"""Held-out loss and bits per byte, by domain."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwq.data.documents import Document, read_documents
from qwq.data.shards import separator
from qwq.model import Decoder
from qwq.objectives import cross_entropy_sum
from qwq.tokenizer import Tokenizer, encode_chat
from qwq.train.gradients import precision


@dataclass(frozen=True)
class Score:
    """Over the text of one domain."""

    loss: float  # nats a token
    bits_per_byte: float  # bits a UTF-8 byte of text: comparable between tokenizers
    tokens: int
    bytes: int


class HeldOut:
    """The held-out documents beside the token shards, `heldout/<domain>.jsonl.zst`, as sequences of token ids.

    Documents of a domain are joined, an end token after each, as they are in training. At most `max_tokens` a domain.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, seq_len: int, max_tokens: int):
        self.seq_len = seq_len
        control = set(tokenizer.special_tokens.values())
        sizes = [0 if i in control else len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
        self.token_bytes = torch.tensor(sizes)
        self.domains: dict[str, Tensor] = {}
        for path in sorted((folder / "heldout").glob("*.jsonl.zst")):
            ids: list[int] = []
            for document in read_documents(path):
                ids += [*_encode(tokenizer, document), separator(tokenizer)]
                if len(ids) > max_tokens:
                    break
            if len(ids) > 1:
                self.domains[path.name.removesuffix(".jsonl.zst")] = torch.tensor(ids[: max_tokens + 1])

    @property
    def tokens(self) -> int:
        """How many tokens one evaluation reads."""
        return sum(len(ids) - 1 for ids in self.domains.values())

    def batches(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(input_ids, labels) [<= 8, seq_len], then the rest as a shorter row; all but the first are labels once."""
        count = (len(ids) - 1) // self.seq_len
        whole = count * self.seq_len
        if count:
            inputs, labels = ids[:whole].view(count, -1), ids[1 : whole + 1].view(count, -1)
            yield from zip(inputs.split(8), labels.split(8), strict=True)
        if whole < len(ids) - 1:
            yield ids[None, whole:-1], ids[None, whole + 1 :]

    def evaluate(self, model: Decoder) -> dict[str, Score]:
        """The score of every domain."""
        return {name: score(model, self.batches(ids), self.token_bytes) for name, ids in self.domains.items()}


def _encode(tokenizer: Tokenizer, document: Document) -> list[int]:
    """As `qwq.data.shards` does for training."""
    if document.messages:
        return encode_chat(tokenizer, document.messages, add_generation_prompt=False)
    return tokenizer.encode_prompt(document.text)


@torch.no_grad()
def score(model: Decoder, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Tensor) -> Score:
    """Score of a model on (input_ids, labels) batches; `token_bytes` [V] holds the length in bytes of every token.

    A control token has length 0: what it costs counts as loss, and adds no bytes.
    """
    nats, tokens, size = 0.0, 0, 0
    device = next(model.parameters()).device
    for input_ids, labels in batches:
        with precision(device):
            hidden = model.hidden(input_ids.to(device))
            nats += float(cross_entropy_sum(hidden, model.lm_head.weight, labels.to(device)))
        learned = labels[labels != -100]
        tokens += len(learned)
        size += int(token_bytes[learned].sum())
    return Score(nats / max(tokens, 1), nats / math.log(2) / max(size, 1), tokens, size)
