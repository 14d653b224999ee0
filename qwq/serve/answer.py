"""What a client gets back: the engine's deltas in the shapes of the OpenAI API, and those shapes as types for /docs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import (
    Any,
    NotRequired,  # pydantic wants this TypedDict before Python 3.12
)

from typing_extensions import TypedDict

from qwq.engine import Delta, LanguageModel, TokenLogprob, Usage


class ErrorDetail(TypedDict):
    """What went wrong: one line, the parameter at fault if there is one, and a stable code."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every answer with an error status."""

    error: ErrorDetail


class ModelCard(TypedDict):
    """One model. `default_sampling` is what a request gets that names no sampling parameters."""

    id: str
    object: str
    created: int
    owned_by: str
    context_length: int
    parameters: int
    chat: bool
    default_sampling: dict[str, Any]


class ModelList(TypedDict):
    """All models that this server holds."""

    object: str
    data: list[ModelCard]


class TokensDetails(TypedDict):
    """How many of the completion tokens were thinking."""

    reasoning_tokens: int


class UsageBody(TypedDict):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokensDetails
    flops: int
    mean_depth: float


class AssistantMessage(TypedDict):
    """The answer. `reasoning` repeats `reasoning_content`: clients know one name or the other."""

    role: str
    content: str
    reasoning_content: str | None
    reasoning: str | None


class ChatChoice(TypedDict):
    """One of the `n` answers; finish_reason is "stop" or "length"."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(TypedDict):
    """The body of an answer that is not streamed."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class MessageDelta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: str
    content: str
    reasoning_content: str
    reasoning: str


class ChatChunkChoice(TypedDict):
    """What a chunk adds to one choice."""

    index: int
    delta: MessageDelta
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatChunk(TypedDict):
    """One server-sent event of a streamed answer; after the last comes `data: [DONE]`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[UsageBody | None]


class TextChoice(TypedDict):
    """One continuation, or a piece of it when streamed."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class TextCompletion(TypedDict):
    """The body of a completion; streamed, every event has this shape too."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[UsageBody | None]


class Health(TypedDict):
    """ "ok" with status 200, or "draining" with 503."""

    status: str
    models: list[str]


@dataclass
class Choice:
    """One choice, gathered from its deltas."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.content += delta.content
        self.reasoning += delta.reasoning
        self.logprobs += delta.logprobs
        if delta.usage is not None:
            self.usage = delta.usage
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason


def model_card(name: str, lm: LanguageModel, created: int) -> ModelCard:
    """The entry of /v1/models."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "qwq",
        "context_length": lm.context_length,
        "parameters": lm.config.num_parameters(),
        "chat": lm.tokenizer.chat_template is not None,
        "default_sampling": lm.default_sampling,
    }


def usage_of(choices: Sequence[Choice], n: int) -> UsageBody:
    """Token counts of all choices; a prompt that `n` choices share counts once."""
    prompt = sum(choice.usage.prompt_tokens for choice in choices[::n])
    completion = sum(choice.usage.completion_tokens for choice in choices)
    layers = sum((choice.usage.mean_depth or 0) * choice.usage.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": sum(choice.usage.reasoning_tokens for choice in choices)},
        "flops": sum(choice.usage.flops or 0 for choice in choices),
        "mean_depth": round(layers / max(1, completion), 3),
    }


def chat_choice(index: int, choice: Choice, logprobs: bool) -> ChatChoice:
    """A whole choice of a chat."""
    thought = choice.reasoning if choice.reasoning else None
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": choice.content,
            "reasoning_content": thought,
            "reasoning": thought,
        },
        "logprobs": _chat_logprobs(choice.logprobs) if logprobs else None,
        "finish_reason": choice.finish_reason,
    }


def chat_delta(index: int, delta: Delta, logprobs: bool) -> ChatChunkChoice:
    """A piece of a choice of a chat."""
    message: MessageDelta = {}
    if delta.content:
        message["content"] = delta.content
    if delta.reasoning:
        message["reasoning_content"] = message["reasoning"] = delta.reasoning
    return {
        "index": index,
        "delta": message,
        "logprobs": _chat_logprobs(delta.logprobs) if logprobs else None,
        "finish_reason": delta.finish_reason,
    }


def text_choice(index: int, choice: Choice | Delta, logprobs: bool) -> TextChoice:
    """A whole choice of a completion, or a piece of one."""
    return {
        "index": index,
        "text": choice.content,
        "logprobs": _text_logprobs(choice.logprobs) if logprobs else None,
        "finish_reason": choice.finish_reason,
    }


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    def entry(token: str, logprob: float) -> dict[str, Any]:
        whole = None if "\ufffd" in token else list(token.encode())  # of half a character only the engine has the bytes
        return {"token": token, "logprob": _finite(logprob), "bytes": whole}

    content = [{**entry(t.token, t.logprob), "top_logprobs": [entry(*top) for top in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def _text_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "tokens": [t.token for t in tokens],
        "token_logprobs": [_finite(t.logprob) for t in tokens],
        "top_logprobs": [{name: _finite(value) for name, value in t.top} for t in tokens],
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity; -9999 is what OpenAI writes for a token that cannot come."""
    return max(logprob, -9999.0)
