"""What a client may send: the request bodies of the OpenAI API, checked strictly, with this project's own additions.

A parameter that would change the answer and is not built is refused by name; one that cannot change it is ignored.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qwq.engine import SamplingParams
from qwq.serve.errors import ApiError

MAX_CHOICES = 8
"""Most choices (`n` times prompts) of one request."""

IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction", "moderation"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "parallel_tool_calls"),
    }
)
"""OpenAI parameters that cannot change what the model says here."""

# Parameters that would change the answer and do not exist here, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logit_bias": ({},),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}

RESERVED_TEMPLATE_NAMES = frozenset({"messages", "self", "tokenizer", "add_generation_prompt", "tools"})


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _stop(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        if len(items) > 16:
            raise ValueError("at most 16 stop strings")
        if "" in items:
            raise ValueError("a stop string is empty")
    return value


def _content(value: Any) -> Any:
    """Names the part that is no text before the union of types would report all its branches."""
    if isinstance(value, list):
        for index, part in enumerate(value):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise ValueError(f"part {index} is of type {kind[:40]!r}, and this server reads only 'text'")
    return value


def _prompt(value: Any) -> Any:
    def ids(item: Any) -> bool:
        return isinstance(item, list) and bool(item) and all(type(i) is int and i >= 0 for i in item)

    texts = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
    if isinstance(value, str) or texts or ids(value):
        return value
    if isinstance(value, list) and value and all(ids(item) for item in value):
        return value
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists, not empty")


def _template_kwargs(value: Any) -> Any:
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str) or not name.isidentifier() or name in RESERVED_TEMPLATE_NAMES:
                raise ValueError(f"{str(name)[:40]!r} is not a variable that a request may set")
    return value


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat. Fields that an answer carried (refusal, annotations ...) may come back and are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart] | None, BeforeValidator(_content)] = Field(
        None, description="A string or a list of text parts; only an assistant's may be null."
    )
    reasoning_content: str | None = Field(None, description="Earlier thinking; the chat template drops it.")

    @model_validator(mode="before")
    @classmethod
    def _text_and_no_tools(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in ("tool_calls", "function_call"):
                if data.get(name):
                    raise ValueError(f"{name} is not supported")
            if data.get("content") is None and data.get("role") in ("system", "developer", "user"):
                raise ValueError(f"a {data['role']} message needs content")
        return data

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it: role and text (OpenAI's "developer" is their "system")."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or [])
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        return message


class StreamOptions(_Strict):
    """`stream_options` of a streamed request."""

    include_usage: bool = Field(False, description="Send one more chunk, without choices, that holds the usage.")
    include_obfuscation: bool = Field(False, description="Accepted for compatibility; nothing is padded.")


class _Sampling(_Strict):
    """What chat and completion requests share. A sampling parameter that is left out takes the model's own default."""

    model: str = Field(description="An id of /v1/models.")
    stream: bool | None = Field(None, description="Send server-sent events as the tokens come.")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Choices; with a seed, choice i uses seed + i.")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens to generate, thinking included.")
    stop: Annotated[str | list[str] | None, BeforeValidator(_stop)] = Field(
        None, description="Up to 16 strings that end the answer; they are not part of it."
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 8, description="The same seed gives the same text.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31, description="0 keeps all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="1 changes nothing.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    max_thinking_tokens: int | None = Field(None, ge=0, description="Longer thinking is closed, and the answer begins.")
    compute: Literal["full", "speculative", "early-exit"] | None = Field(
        None, description="How the layers are spent; all but full need a model that was trained with exits."
    )

    @model_validator(mode="before")
    @classmethod
    def _known_to_openai(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, neutral in UNSUPPORTED.items():
            if data.get(name) is not None and data[name] not in neutral:
                raise ApiError(
                    400, f"{name}: this parameter is not supported here.", param=name, code="unsupported_parameter"
                )
        return {name: value for name, value in data.items() if name not in IGNORED and name not in UNSUPPORTED}

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> _Sampling:
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options: only allowed with stream: true.", param="stream_options")
        return self

    def given(self) -> dict[str, Any]:
        """The sampling parameters of this request, under SamplingParams' names; those left out are absent."""
        names = {field.name for field in dataclasses.fields(SamplingParams)} - {"stop", "logprobs"}
        values = {name: value for name in sorted(names) if (value := getattr(self, name)) is not None}
        if self.stop is not None:
            values["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        return values

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Sampling):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens; it wins.")
    logprobs: bool | None = Field(None, description="Return the log probability of every token of the answer.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Also the most likely tokens at each place.")
    enable_thinking: bool | None = Field(None, description="Short for chat_template_kwargs.enable_thinking.")
    chat_template_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(_template_kwargs)] = Field(
        None, description="Variables for the model's chat template."
    )

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs: only allowed with logprobs: true.", param="top_logprobs")
        return self

    def given(self) -> dict[str, Any]:
        values = super().given()
        if self.max_completion_tokens is not None:
            values["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            values["logprobs"] = self.top_logprobs if self.top_logprobs is not None else 0
        return values

    def template_vars(self) -> dict[str, Any]:
        """Variables for the chat template."""
        values = dict(self.chat_template_kwargs) if self.chat_template_kwargs is not None else {}
        if self.enable_thinking is not None:
            values["enable_thinking"] = self.enable_thinking
        return values


class CompletionRequest(_Sampling):
    """The body of POST /v1/completions."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], BeforeValidator(_prompt)] = Field(
        description="Text, token ids, or a list of either; every prompt gives its own choices."
    )
    max_tokens: int | None = Field(16, ge=1, description="Most tokens to generate.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Return log probabilities, and this many alternatives.")

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, each a text or a list of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    def given(self) -> dict[str, Any]:
        values = super().given()
        if self.logprobs is not None:
            values["logprobs"] = self.logprobs
        return values


def field_names() -> set[str]:
    """Every name that a request may contain, to tell fields from union tags and to name the nearest one."""
    return {
        name
        for model in (ChatRequest, CompletionRequest, Message, TextPart, StreamOptions)
        for name in model.model_fields
    }
