"""What a benchmark asks of a model: log-likelihoods of continuations and of whole texts, and generated text.

Requests are answered in batches; what many prompts begin with is computed once. Fp32 products are not bit-equal between
batch sizes, so an answer also says by how much it was decided: less than `TIE` could fall the other way.
"""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qwq.engine import Delta, LanguageModel
from qwq.engine.core import common_prefix
from qwq.errors import QwqError
from qwq.kernels.linear import linear
from qwq.model import KVCache

TIE = 1e-3  # of a log-probability
WINDOW = 2048  # tokens of context at most
_BATCH_TOKENS = 1024  # of a batch, padding included: enough for the matrix products' full speed
_LOGITS_ROWS = 256
_WORTH_SHARING = 16

Pair = tuple[list[int], list[int]]  # ids of a context and of its continuation


@dataclass
class Likelihood:
    """Of a continuation: sum of log p in nats; log p of a token less that of its best rival, at the smallest."""

    nats: float = 0.0
    margin: float = float("inf")

    @property
    def greedy(self) -> bool:
        """Whether greedy decoding writes this continuation."""
        return self.margin >= 0


@dataclass
class _Question:
    """Sequences that begin with one context of `start` tokens. `stem`: what all of them need computed."""

    index: int
    sequences: list[list[int]]
    start: int
    stem: list[int] = field(init=False)

    def __post_init__(self) -> None:
        inputs = [s[:-1] for s in self.sequences]
        self.stem = inputs[0][: min(common_prefix(inputs[0], other) for other in inputs)]


class Requests:
    """Answers requests with a `LanguageModel`. Every method yields (request, answer) as batches are done."""

    def __init__(self, lm: LanguageModel, batch_size: int = 16):
        self.lm, self.tokenizer, self.batch_size = lm, lm.tokenizer, batch_size
        self.max_length = min(lm.context_length, WINDOW)
        bos, eos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_ids
        self.first_token = bos if bos is not None else eos[0] if eos else 0

    def encode_pair(self, context: str, continuation: str) -> Pair:
        """Ids of both, as they stand in the joined text; white space at the end of the context goes with the second."""
        bare = context.rstrip()
        whole, before = self.tokenizer.encode_prompt(context + continuation), self.tokenizer.encode_prompt(bare)
        return (before, whole[len(before) :]) if before else ([self.first_token], whole)

    def likelihoods(self, requests: Sequence[tuple[str, Sequence[str]]]) -> Iterator[tuple[int, list[Likelihood]]]:
        """(context, continuations) each -> a `Likelihood` for every continuation."""
        return self._answer([[self.encode_pair(context, c) for c in conts] for context, conts in requests])

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, float]]:
        """Log-likelihood of whole texts in nats. Windows share one token; the last one has as much context as fits."""
        windows: list[list[Pair]] = []
        owners: list[int] = []
        for owner, text in enumerate(texts):
            ids = [self.first_token, *self.tokenizer.encode(text)]
            for start in range(1, len(ids), self.max_length):
                end = min(start + self.max_length, len(ids))
                windows.append([(ids[max(0, end - 1 - self.max_length) : start], ids[start:end])])
                owners.append(owner)
        nats, left = [0.0] * len(texts), [owners.count(owner) for owner in range(len(texts))]
        for index, [answer] in self._answer(windows):
            owner = owners[index]
            nats[owner], left[owner] = nats[owner] + answer.nats, left[owner] - 1
            if not left[owner]:
                yield owner, nats[owner]

    def generate(
        self, prompts: Sequence[str], *, samples: int = 1, seed: int = 0, **sampling: Any
    ) -> Iterator[tuple[int, tuple[list[str], bool]]]:
        """`samples` texts each, and whether a greedy token was a tie. One sample is greedy, many have temperature 0.8.

        sampling: fields of `SamplingParams`; `max_tokens` must be among them.
        """
        plain = {"top_k": 0, "top_p": 1.0 if samples == 1 else 0.95, "temperature": 0.0 if samples == 1 else 0.8}
        sampling = {**plain, "logprobs": 2, **sampling, "stop": list(sampling.get("stop", ()))}
        arrived: queue.SimpleQueue[tuple[int, int, Delta]] = queue.SimpleQueue()
        texts, ties = [[""] * samples for _ in prompts], [False] * len(prompts)
        waiting = [(i, s) for i in range(len(prompts)) for s in range(samples)][::-1]
        running: dict[tuple[int, int], Any] = {}
        left = [samples] * len(prompts)
        try:
            while waiting or running:
                while waiting and len(running) < self.lm.engine.max_queue:
                    i, s = waiting.pop()
                    ids = self.lm.prompt_ids(prompts[i])[-(self.lm.context_length - sampling["max_tokens"]) :]
                    params = self.lm.sampling(**sampling, seed=seed + s)
                    running[i, s] = self.lm.submit(ids, params, partial(_put, arrived, i, s), split=False)
                i, s, delta = arrived.get()
                texts[i][s] += delta.content
                tops = (p.top for p in delta.logprobs if len(p.top) > 1)
                ties[i] |= sampling["temperature"] == 0 and any(a[1] - b[1] < TIE for a, b in tops)
                if delta.finish_reason == "error":
                    raise QwqError(f"{self.lm.name} failed while generating: {delta.error}")
                if delta.finish_reason is not None:
                    del running[i, s]
                    left[i] -= 1
                    if not left[i]:
                        yield i, (texts[i], ties[i])
        finally:
            for request in running.values():
                request.cancel()

    @torch.inference_mode()
    def _answer(self, requests: list[list[Pair]]) -> Iterator[tuple[int, list[Likelihood]]]:
        """Long stems first, `batch_size` of them at a time; too long a context loses its beginning."""
        questions = []
        for index, pairs in enumerate(requests):
            if not all(continuation for _, continuation in pairs):
                raise QwqError(f"request {index} has a continuation without tokens")
            room = max(1, self.max_length + 1 - max(len(continuation) for _, continuation in pairs))
            context = pairs[0][0][-room:]
            questions.append(_Question(index, [context + c for _, c in pairs], len(context)))
        if not questions:
            return
        shared = min(common_prefix(questions[0].stem, q.stem[: q.start - 1]) for q in questions)
        shared = shared if shared >= _WORTH_SHARING and len(questions) > 1 else 0
        cache, weight = None, self.lm.model.model.norm.weight
        if shared or any(len(q.stem) < len(s) - 1 for q in questions for s in q.sequences):
            cache = KVCache(self.lm.config, 2 * self.batch_size, weight.dtype, weight.device)
        if cache is not None and shared:
            self.lm.model.hidden(self._padded([questions[0].stem[:shared]]), cache=cache.rows(0, 1))
            for row in range(1, self.batch_size):
                cache.move(0, row)
        questions.sort(key=lambda q: -len(q.stem))
        while questions:
            fitting = _BATCH_TOKENS // max(1, len(questions[0].stem) - shared)
            size = max(1, min(self.batch_size, fitting))
            yield from self._batch(questions[:size], shared, cache)
            questions = questions[size:]

    def _batch(
        self, questions: list[_Question], shared: int, cache: KVCache | None
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """The stems in one pass behind the `shared` tokens, then what is left of each sequence, a batch at a time."""
        answers = [[Likelihood() for _ in q.sequences] for q in questions]
        ids, count = self._padded([q.stem[shared:] for q in questions]), len(questions)
        if cache is None:
            hidden = self.lm.model.hidden(ids)
        else:
            cache.lengths[:count] = [shared] * count
            hidden = self.lm.model.hidden(ids, cache=cache.rows(0, count))
            cache.lengths[:count] = [len(q.stem) for q in questions]
        known: list[tuple[Tensor, list[int], Likelihood]] = []  # states, the labels that follow them, whose they are
        rest: list[tuple[int, list[int], Likelihood]] = []  # row, tokens from the stem's last on, whose they are
        for row, question in enumerate(questions):
            start, end = question.start, len(question.stem)
            for answer, sequence in zip(answers[row], question.sequences, strict=True):
                known.append((hidden[row, start - 1 - shared : end - shared], sequence[start : end + 1], answer))
                if len(sequence) > end + 1:
                    rest.append((row, sequence[end:], answer))
        for first in range(0, len(rest), self.batch_size):
            assert cache is not None
            chunk, base = rest[first : first + self.batch_size], self.batch_size
            for i, (row, _, _) in enumerate(chunk):
                cache.move(row, base + i)
            ids = self._padded([tokens[:-1] for _, tokens, _ in chunk])
            hidden = self.lm.model.hidden(ids, cache=cache.rows(base, base + len(chunk)))
            known += [(hidden[i, : len(t) - 1], t[1:], answer) for i, (_, t, answer) in enumerate(chunk)]
        self._score(known)
        yield from ((q.index, a) for q, a in zip(questions, answers, strict=True))

    def _score(self, known: list[tuple[Tensor, list[int], Likelihood]]) -> None:
        """Add to each likelihood what its labels cost behind their states [n, C]."""
        states = torch.cat([s for s, _, _ in known])
        labels = torch.tensor([label for _, these, _ in known for label in these], device=states.device)[:, None]
        owners = [answer for _, these, answer in known for _ in these]
        for start in range(0, len(owners), _LOGITS_ROWS):
            rows = slice(start, start + _LOGITS_ROWS)
            logits = linear(states[rows], self.lm.model.lm_head.weight)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            chosen = logits.gather(1, labels[rows])[:, 0]
            nats = (chosen - logits.logsumexp(-1)).tolist()
            rivals = logits.scatter_(1, labels[rows], -torch.inf).amax(-1)
            for owner, cost, margin in zip(owners[rows], nats, (chosen - rivals).tolist(), strict=True):
                owner.nats += cost
                owner.margin = min(owner.margin, margin)

    def _padded(self, rows: list[list[int]]) -> Tensor:
        """Right-padded: what stands behind a row's end is never seen from it."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.lm.engine.device)


def _put(arrived: queue.SimpleQueue, index: int, sample: int, delta: Delta) -> None:
    arrived.put((index, sample, delta))
