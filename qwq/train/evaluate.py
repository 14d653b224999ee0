"""Held-out loss and bits per byte, by domain."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwq.data.documents import Document, read_documents
from qwq.data.shards import separator
from qwq.objectives import IGNORE, CausalLM, Objective, Window
from qwq.tokenizer import Tokenizer, encode_chat
from qwq.train.gradients import precision


@dataclass(frozen=True)
class Score:
    """Over the text of one domain."""

    loss: float  # nats a token
    bits_per_byte: float  # bits a UTF-8 byte of the labelled tokens; a pair where the objective's unit is "pair"
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

    def evaluate(self, model: Any, objective: Objective | None = None) -> dict[str, Score]:
        """The score of every domain; the objective is causal language modelling where none is given."""
        domains = self.domains.items()
        return {name: score(model, self.batches(ids), self.token_bytes, objective) for name, ids in domains}


def _encode(tokenizer: Tokenizer, document: Document) -> list[int]:
    """As `qwq.data.shards` does for training."""
    if document.messages:
        return encode_chat(tokenizer, document.messages, add_generation_prompt=False)
    return tokenizer.encode_prompt(document.text)


@torch.no_grad()
def score(model: Any, windows: Iterable[Window], token_bytes: Tensor, objective: Objective | None = None) -> Score:
    """Score of a model on windows of (input_ids, labels); `token_bytes` [V] holds the length in bytes of every token.

    A control token has length 0: what it costs counts as loss, and adds no bytes. What an objective draws (masks,
    pairs) is the same every time.
    """
    objective = CausalLM() if objective is None else objective
    nats, tokens, size = 0.0, 0, 0
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(0)
    for window in windows:
        batch = objective.batch(window, generator)
        with precision(device):
            nats += float(objective.loss(model, batch))
        learned = batch.labels[batch.labels != IGNORE]
        tokens += len(learned)
        if objective.unit == "byte":
            size += int(token_bytes[learned[learned < len(token_bytes)]].sum())
        else:
            size += len(learned)
    return Score(nats / max(tokens, 1), nats / math.log(2) / max(size, 1), tokens, size)
