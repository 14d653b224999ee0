"""A model that speaks: prompts and messages in, text out, streamed. What `qwq.load` returns."""

import dataclasses
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qwq.checkpoint import Checkpoint
from qwq.engine.core import Engine, Request
from qwq.engine.sampler import SamplingParams
from qwq.errors import QwqError, UsageError
from qwq.model import Decoder
from qwq.tokenizer import ThinkSplitter, Tokenizer, encode_chat

_FIELDS = {f.name for f in dataclasses.fields(SamplingParams)}


@dataclass
class Usage:
    """Token counts of one request; `reasoning_tokens` are part of `completion_tokens`.

    At its end also what it cost: floating-point operations, the prompt's included, and the layers that a token of the
    reply took on average, guesses that were wrong included.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    flops: int | None = None
    mean_depth: float | None = None


@dataclass
class TokenLogprob:
    """Natural logarithm of a token's probability before sampling, and the most likely tokens."""

    token: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass
class Delta:
    """A piece of a reply. The last one has a `finish_reason` and `usage`, and `error` where the reason is "error"."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None  # "stop", "length", "cancelled" or "error"
    usage: Usage | None = None
    error: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass
class Reply:
    """A whole answer; `reasoning` is what stood between <think> and </think>, None where the model did not think."""

    content: str
    reasoning: str | None
    usage: Usage
    finish_reason: str


class LanguageModel:
    """A checkpoint with its tokenizer and its engine."""

    def __init__(
        self, checkpoint: Checkpoint, *, name: str | None = None, max_batch_size: int = 8, max_queue: int = 64
    ):
        self.name = checkpoint.name if name is None else name
        self.tokenizer: Tokenizer = checkpoint.tokenizer
        if not isinstance(checkpoint.model, Decoder):
            raise UsageError(f"{self.name} is an {checkpoint.config.architecture}: only a decoder can chat")
        self.model, self.config = checkpoint.model, checkpoint.config
        self.context_length = context_length(checkpoint)
        self.default_sampling = {k: v for k, v in checkpoint.generation.items() if k in _FIELDS and v is not None}
        eos = checkpoint.generation.get("eos_token_id", [])
        self.stop_ids = frozenset([*self.tokenizer.eos_token_ids, *([eos] if isinstance(eos, int) else eos)])
        self.engine = Engine(
            self.model,
            max_batch_size=max_batch_size,
            max_queue=max_queue,
            context_length=self.context_length,
            quantised=checkpoint.quantised,
        )

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {self.config.num_parameters():,} parameters)"

    # Text in, text out ------------------------------------------------------------------------------------------------

    def generate(self, prompt: str, **sampling: Any) -> str:
        """Continue a raw prompt; sampling is `SamplingParams`' fields. Returns the new text only."""
        return "".join(delta.content for delta in self.stream(prompt, **sampling))

    def stream(self, prompt: str, **sampling: Any) -> Iterator[Delta]:
        """`generate`, piece by piece. Leaving the iterator early frees the request."""
        return self._iterate(self.prompt_ids(prompt), self.sampling(**sampling), split=False)

    def chat(self, messages: list[dict], template: dict | None = None, **sampling: Any) -> Reply:
        """Answer [{"role", "content"}, ...]; `template` holds variables of the chat template (enable_thinking, ...)."""
        content, reasoning, last = "", "", Delta()
        for last in self.chat_stream(messages, template, **sampling):
            content, reasoning = content + last.content, reasoning + last.reasoning
        assert last.usage is not None
        assert last.finish_reason is not None
        return Reply(content, reasoning or None, last.usage, last.finish_reason)

    def chat_stream(self, messages: list[dict], template: dict | None = None, **sampling: Any) -> Iterator[Delta]:
        """`chat`, piece by piece."""
        return self._iterate(self.chat_ids(messages, **(template or {})), self.sampling(**sampling), split=True)

    def logits(self, token_ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """LongTensor [B, T] -> FloatTensor [B, T, vocab_size]"""
        with torch.inference_mode():
            return self.model(torch.as_tensor(token_ids, device=self.engine.device))

    # Ids and requests -------------------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: str) -> list[int]:
        """A raw prompt in ids, after the beginning-of-text token where there is one. Control tokens stay text."""
        ids = self.tokenizer.encode_prompt(prompt)
        bos = self.tokenizer.bos_token_id
        return [bos] if not ids and bos is not None else ids

    def chat_ids(self, messages: list[dict], **template: Any) -> list[int]:
        """Messages through the chat template, up to where the assistant speaks."""
        return encode_chat(self.tokenizer, messages, **template)

    def sampling(self, **given: Any) -> SamplingParams:
        """The model's own defaults, overridden by what is given. `UsageError` for an unknown name."""
        unknown = set(given) - _FIELDS
        if unknown:
            raise UsageError(f"unknown sampling parameter {sorted(unknown)[0]!r}; known: {', '.join(sorted(_FIELDS))}")
        return SamplingParams(**{**self.default_sampling, **given})

    def starts_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends inside a thought: QwQ's template ends with "<think>\\n"."""
        tail = self.tokenizer.decode(list(prompt_ids[-8:]), skip_special=False)
        return tail.rstrip().endswith("<think>")

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        *,
        split: bool = True,
    ) -> Request:
        """Queue a request; `on_delta` is called on the engine's thread. `split` separates thinking from the answer.

        Raises `PromptTooLong`, `QueueFull` and `UsageError` at once.
        """
        thinking = split and self.starts_thinking(prompt_ids)
        text = _TextStream(self, len(prompt_ids), params, on_delta, ThinkSplitter(thinking) if split else None)
        return self.engine.submit(prompt_ids, params, text.on_token, sorted(self.stop_ids), text.closing())

    def _iterate(self, prompt_ids: list[int], params: SamplingParams, *, split: bool) -> Iterator[Delta]:
        deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        request = self.submit(prompt_ids, params, deltas.put, split=split)
        try:
            while True:
                delta = deltas.get()
                if delta.finish_reason == "error":
                    raise QwqError(f"{self.name} failed while generating: {delta.error}")
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            request.cancel()

    def stats(self) -> dict[str, int]:
        """Running and waiting requests, prompt and generated tokens so far."""
        engine = self.engine
        return {
            "running": len(engine.rows),
            "waiting": len(engine.waiting),
            "prompt_tokens": engine.prompt_tokens,
            "generated_tokens": engine.generated_tokens,
        }

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.close()


def context_length(checkpoint: Checkpoint) -> int:
    """Tokens the model can hold: its config's, or YaRN's factor times the original context where that is longer."""
    config, scaling = checkpoint.config, checkpoint.config.rope_scaling or {}
    original = scaling.get("original_max_position_embeddings")
    return max(config.max_position_embeddings, int(original * scaling["factor"]) if original else 0)


class _TextStream:
    """One request's way from ids to text: whole characters, stop strings across token borders, thinking apart."""

    def __init__(
        self,
        lm: LanguageModel,
        prompt_tokens: int,
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        splitter: ThinkSplitter | None,
    ):
        self.tokenizer, self.params, self.on_delta, self.splitter = lm.tokenizer, params, on_delta, splitter
        self.decoder = lm.tokenizer.stream()
        self.usage = Usage(prompt_tokens=prompt_tokens)
        self.thinking_end = lm.tokenizer.encode(params.compute.thinking_end, special=True)
        self.held = ""  # text that may be the beginning of a stop string
        self.stopped = False
        self.logprobs: list[TokenLogprob] = []

    def on_token(self, request: Request, token: int | None, reason: str | None) -> bool:
        if token is None:
            self._finish(request, reason)
            return False
        if request.logprobs is not None:
            score, top = request.logprobs
            name = self._name
            self.logprobs.append(TokenLogprob(name(token), score, [(name(t), p) for t, p in top]))
        text = self.decoder.push(token)
        if text:
            self._emit(self._until_stop(text))
        if self.splitter is not None and self.splitter.in_thinking:
            self.usage.reasoning_tokens += 1
        if (ids := self.closing()) and not request.sampler.forced:
            request.sampler.forced.extend(ids)
        return self.stopped

    def closing(self) -> list[int]:
        """What the model must say next: the end of its thinking, where that is as long as it may be."""
        budget, splitter = self.params.compute.max_thinking_tokens, self.splitter
        spent = budget is not None and self.usage.reasoning_tokens >= budget
        return self.thinking_end if spent and splitter is not None and splitter.in_thinking else []

    def _until_stop(self, text: str) -> str:
        """The text that can be shown now: up to a stop string, less an end that may become one."""
        text = self.held + text
        found = [i for s in self.params.stop if (i := text.find(s)) >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        keep = max((n for s in self.params.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _emit(self, text: str) -> None:
        reasoning, content = self.splitter.push(text) if self.splitter is not None else ("", text)
        if reasoning or content or self.logprobs:
            self.on_delta(Delta(content, reasoning, logprobs=self.logprobs))
            self.logprobs = []

    def _finish(self, request: Request, reason: str | None) -> None:
        if not self.stopped:
            rest = self._until_stop(self.decoder.flush())
            self._emit(rest + self.held)
        reasoning, content = self.splitter.flush() if self.splitter is not None else ("", "")
        self.usage.completion_tokens = len(request.generated)
        self.usage.flops = request.flops
        self.usage.mean_depth = request.layers / max(1, len(request.generated))
        self.on_delta(Delta(content, reasoning, reason, self.usage, request.error, self.logprobs))

    def _name(self, token: int) -> str:
        return self.tokenizer.token_bytes(token).decode("utf-8", "replace")
