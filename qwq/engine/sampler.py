"""From a row of logits to the next token."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qwq.engine.policy import ComputePolicy
from qwq.errors import UsageError


@dataclass
class SamplingParams:
    """How to continue a prompt. `temperature` 0 is greedy. `UsageError` names a field whose value makes no sense.

    `repetition_penalty` is CTRL's (arXiv:1909.05858), over prompt and reply; `presence_penalty` and `frequency_penalty`
    are OpenAI's, over the reply; `min_p` is arXiv:2407.01082. `max_tokens` None: as many as the context holds.
    `compute` is a `ComputePolicy`, its mode's name or its fields; `max_thinking_tokens`, where given, is put into it.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None
    max_thinking_tokens: int | None = None
    compute: ComputePolicy = field(default_factory=ComputePolicy)

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise UsageError(f"{name} must be {expected}, got {getattr(self, name)!r}")

        for name, kind in _KINDS.items():
            value = getattr(self, name)
            optional = name in ("max_tokens", "seed", "logprobs")
            number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            check(name, (optional and value is None) or (number and math.isfinite(value)), f"a finite {kind.__name__}")
        check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "1 or more")
        check("temperature", 0 <= self.temperature <= 100, "between 0 and 100")
        check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        check("top_k", self.top_k >= 0, "0 (off) or more")
        check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        check("repetition_penalty", self.repetition_penalty > 0, "above 0")
        check("seed", self.seed is None or -(2**63) <= self.seed < 2**64, "a 64-bit integer")
        check("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, "between 0 and 20")
        self.compute = ComputePolicy.of(self.compute)
        if self.max_thinking_tokens is not None:
            self.compute = replace(self.compute, max_thinking_tokens=self.max_thinking_tokens)
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        check("stop", all(isinstance(s, str) and s for s in self.stop), "a list of strings that are not empty")


_KINDS: dict[str, type] = {
    "max_tokens": int, "temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float,
    "presence_penalty": float, "frequency_penalty": float, "seed": int, "logprobs": int,
}  # fmt: skip


class Sampler:
    """One request's sampler: its parameters, its own random stream, the tokens it has seen.

    What is put into `forced` comes next, whatever the logits are.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], device: torch.device | str = "cpu"):
        self.params = params
        self.generator = torch.Generator(device=device)
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed & (2**63 - 1))
        self.prompt = torch.tensor(sorted(set(prompt_ids)), dtype=torch.long, device=device)
        self.counts: dict[int, int] = {}
        self.forced: deque[int] = deque()
        self._races: deque[tuple[Tensor, Tensor]] = deque()  # of tokens to come, and their luck

    def __call__(self, logits: Tensor) -> int:
        """logits [V] -> token id."""
        token = self.forced.popleft() if self.forced else self._choose(self.penalise(logits.float()))
        self.counts[token] = self.counts.get(token, 0) + 1
        return token

    def _choose(self, logits: Tensor) -> int:
        if self.params.temperature == 0:
            return int(logits.argmax())
        race = self._races.popleft()[0] if self._races else self._race(len(logits))
        return int((self.distribution(logits) / race).argmax())

    def _race(self, size: int) -> Tensor:
        """Exponentially distributed times [V]: the smallest time over probability wins with that probability."""
        return torch.empty(size, device=self.generator.device).exponential_(generator=self.generator)

    def ahead(self, count: int, size: int) -> Tensor:
        """The luck of the next `count` tokens, [count, size]: at this temperature, argmax(logits + luck) is a draw.

        A draft that has the same luck as the token it guesses is right more often (arXiv:2408.07978).
        """
        if self.params.temperature == 0:
            return torch.zeros(count, size, device=self.generator.device)
        while len(self._races) < count:
            race = self._race(size)
            self._races.append((race, race.log() * -self.params.temperature))
        return torch.stack([self._races[i][1] for i in range(count)])

    def penalise(self, logits: Tensor) -> Tensor:
        """logits [V] with the penalties; the same tensor when there are none."""
        p = self.params
        if p.repetition_penalty == 1 and p.presence_penalty == 0 and p.frequency_penalty == 0:
            return logits
        logits = logits.clone()
        said = torch.tensor(list(self.counts), dtype=torch.long, device=logits.device)
        if p.repetition_penalty != 1:
            seen = torch.cat((self.prompt, said)).unique()
            scores = logits[seen]
            logits[seen] = torch.where(scores > 0, scores / p.repetition_penalty, scores * p.repetition_penalty)
        if len(said):
            times = torch.tensor(list(self.counts.values()), dtype=logits.dtype, device=logits.device)
            logits[said] -= p.presence_penalty + p.frequency_penalty * times
        return logits

    def distribution(self, logits: Tensor) -> Tensor:
        """logits [V] -> probabilities [V] after temperature, top-k, top-p, min-p, in the order of `transformers`."""
        p = self.params
        logits = logits / p.temperature
        if 0 < p.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(p.top_k).values[-1], -torch.inf)
        probabilities = logits.softmax(-1)
        if p.top_p < 1:
            ordered, index = probabilities.sort(descending=True)
            beyond = ordered.cumsum(0) - ordered >= p.top_p  # the token that crosses top_p stays
            probabilities = probabilities.index_fill(0, index[beyond], 0.0)
        if p.min_p > 0:
            probabilities = torch.where(probabilities < p.min_p * probabilities.max(), 0.0, probabilities)
        return probabilities
