"""How much computation the tokens of a reply get."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qwq.errors import UsageError
from qwq.model import ModelConfig

Mode = Literal["full", "speculative", "early-exit"]


@dataclass(frozen=True)
class ComputePolicy:
    """What a request spends.

    "full": every layer for every token. "speculative": the first `draft_layers` guess `draft_tokens` tokens, and all
    layers check them in one go; the reply is that of "full" (speculate.py). "early-exit": a token leaves at the first
    of the model's exits where the most likely token has at least the probability `confidence` (CALM, arXiv:2207.07061);
    replies differ from those of "full". In every mode, thinking of `max_thinking_tokens` tokens is closed: the model is
    made to say `thinking_end` (as Qwen3 does, arXiv:2505.09388), which does not count; None never closes it.
    """

    mode: Mode = "full"
    draft_layers: int | None = None  # None: up to the model's first exit
    draft_tokens: int = 3
    confidence: float = 0.9
    max_thinking_tokens: int | None = None
    thinking_end: str = "\n\nMy time to think is over; I answer with what I have.\n</think>\n\n"

    def __post_init__(self) -> None:
        def check(name: str, kind: type | tuple[type, ...], low: float, high: float | None, expected: str) -> None:
            value = getattr(self, name)
            good = isinstance(value, kind) and not isinstance(value, bool)
            if not good or value < low or (high is not None and value > high):
                raise UsageError(f"{name} must be {expected}, got {value!r}")

        if self.mode not in get_args(Mode):
            raise UsageError(f"compute must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        check("draft_tokens", int, 1, 64, "between 1 and 64")
        check("confidence", (int, float), 0, 1, "between 0 and 1")
        if self.draft_layers is not None:
            check("draft_layers", int, 1, None, "1 or more")
        if self.max_thinking_tokens is not None:
            check("max_thinking_tokens", int, 0, None, "0 or more")

    @staticmethod
    def of(value: Any) -> "ComputePolicy":
        """A policy from itself, from the name of a mode, or from its fields. `UsageError` where that makes no sense."""
        if isinstance(value, ComputePolicy):
            return value
        fields = {"mode": value} if isinstance(value, str) else value
        known = [field.name for field in dataclasses.fields(ComputePolicy)]
        if not isinstance(fields, Mapping) or not set(fields) <= set(known):
            raise UsageError(f"compute must be the name of a mode or an object of {', '.join(known)}, got {value!r}")
        return ComputePolicy(**fields)

    def of_model(self, config: ModelConfig) -> "ComputePolicy":
        """What the engine computes by, `draft_layers` settled and all else left out: rows that share it are one batch.

        `UsageError` where the model has not what the mode needs.
        """
        if self.mode == "full":
            return ComputePolicy()
        if not config.exit_layers and (self.mode == "early-exit" or self.draft_layers is None):
            raise UsageError(f"compute {self.mode!r} needs a model that was trained with exits (exit_layers)")
        if self.mode == "early-exit":
            return ComputePolicy(self.mode, confidence=self.confidence)
        layers = min(config.exit_layers) + 1 if self.draft_layers is None else self.draft_layers
        if layers >= config.num_hidden_layers:
            raise UsageError(f"draft_layers must be below {config.num_hidden_layers}, the model's layers, got {layers}")
        return ComputePolicy(self.mode, draft_layers=layers, draft_tokens=self.draft_tokens)
