"""Merge rules of a byte-pair vocabulary that lists only its tokens, in the order in which they were learnt."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

Symbol = TypeVar("Symbol", str, bytes)


def merges_from_ranks(ranks: Mapping[Symbol, int], tokens: Iterable[Symbol]) -> list[tuple[Symbol, Symbol]]:
    """The pair that makes each token of `tokens` (given in learning order): what the tokens learnt before make of it.

    A token learnt after its parts is always made from the same two of them, whatever stands around it, so one rule
    a token gives exactly the ids of the original (SentencePiece BPE, tiktoken). A token that earlier ones do not make
    out of two parts cannot be reached by merging and has no rule.
    """
    merges = []
    for token in tokens:
        parts = _split(token, ranks)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _split(token: Symbol, ranks: Mapping[Symbol, int]) -> list[Symbol]:
    """`token` as the tokens learnt before it spell it: always the earliest-learnt pair first, leftmost first."""
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, where = limit, -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            if rank is not None and rank < best:
                best, where = rank, i
        if where < 0:
            break
        parts[where : where + 2] = [parts[where] + parts[where + 1]]
    return parts
