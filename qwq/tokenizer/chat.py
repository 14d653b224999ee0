"""Chats to ids: Jinja2 templates in a sandbox, in which what people write never becomes a control token."""

import datetime
import json
import re
import secrets
from functools import lru_cache
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwq.errors import QwqError, UsageError
from qwq.tokenizer.base import Tokenizer
from qwq.tokenizer.thinking import CLOSE, thinking_span

# ChatML, for tokenizers that come without a template. Earlier thinking is left out, as Qwen's templates do.
CHATML = """\
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>', 1)[1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_MAX_RENDERED = 16_000_000  # characters; a template that writes more is broken or hostile
_MAX_BITS = 4096  # of a number raised to a power


def encode_chat(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **template_vars: Any,
) -> list[int]:
    """Ids of a chat, written by the tokenizer's template (ChatML where it has none).

    messages: [{"role", "content", ...}, ...]; `content` is text, or a list of {"type": "text", "text"} parts.
    template_vars: what the template may ask for besides (`tools`, `enable_thinking`, ...).

    Only the template itself writes control tokens. Where a message (or a tool's description) contains the text of one,
    digits that nobody can guess stand in its place while the template runs, and it is encoded as plain text.

    Raises UsageError for messages that are none, QwqError when the template fails or refuses.
    """
    shield = _Shield(tokenizer)
    messages = [shield.message(message) for message in check_messages(messages)]
    rendered = _render(tokenizer, messages, add_generation_prompt, shield.value(template_vars))
    return tokenizer.encode_special(rendered, shield.restore)


def render_chat(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **template_vars: Any,
) -> str:
    """The text that `encode_chat` encodes, to look at: here a control token and its quotation look alike."""
    return _render(tokenizer, check_messages(messages), add_generation_prompt, template_vars)


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages with text parts joined; UsageError that names the message where they are not messages."""
    if not isinstance(messages, list) or not messages:
        raise UsageError("messages must be a list of at least one {'role', 'content'}")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UsageError(f"messages[{i}] needs a 'role', such as 'user'")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(_text_part(part, i) for part in content)
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise UsageError(f"messages[{i}] needs a 'content' of text")
        checked.append(message | {"content": content})
    return checked


def _text_part(part: Any, i: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise UsageError(f"messages[{i}] has a content part of type {kind!r}; this model reads text only")


class _Shield:
    """Puts digits nobody can guess in the place of control tokens that messages quote.

    Digits, because templates trim, change case or write JSON. The tags around an assistant's own thinking stay: the
    template has to find them to drop the thinking.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        self._stand_ins: dict[str, str] = {}

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        shielded = {key: self.value(value) for key, value in message.items()}
        content = message["content"]
        if message["role"] == "assistant" and content is not None and (span := thinking_span(content)) is not None:
            start, end = span
            after = end + len(CLOSE)
            thinking, answer = self.value(content[start:end]), self.value(content[after:])
            shielded["content"] = content[:start] + thinking + CLOSE + answer
        return shielded

    def value(self, value: Any) -> Any:
        """`value` (text, or lists and dicts that hold some) without control tokens."""
        if isinstance(value, str):
            return self._pattern.sub(self._stand_in, value) if self._pattern is not None else value
        if isinstance(value, dict):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def restore(self, text: str) -> str:
        for token, digits in self._stand_ins.items():
            text = text.replace(digits, token)
        return text

    def _stand_in(self, match: re.Match[str]) -> str:
        return self._stand_ins.setdefault(match.group(), f"{secrets.randbelow(10**32):032d}")


def _render(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], add_generation_prompt: bool, template_vars: dict[str, Any]
) -> str:
    source = tokenizer.chat_template if tokenizer.chat_template is not None else CHATML
    values = {"tools": None, "documents": None, **tokenizer.named_tokens, **template_vars}
    values |= {"messages": messages, "add_generation_prompt": add_generation_prompt, "range": _Range()}
    rendered: list[str] = []
    length = 0
    try:
        for piece in _compile(source).generate(**values):
            rendered.append(piece)
            length += len(piece)
            if length > _MAX_RENDERED:
                raise QwqError(f"the chat template writes more than {_MAX_RENDERED} characters")
    except QwqError:
        raise
    except Exception as error:  # a template is a program of someone else's: anything can come out of it
        reason = " ".join(str(error).split())
        raise QwqError(f"the chat template failed ({type(error).__name__}): {reason}") from error
    return "".join(rendered)


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _refuse(message: str) -> None:
    raise UsageError(f"the chat template refuses these messages: {' '.join(str(message).split())}")


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False, **options: Any) -> str:
    """JSON as `transformers`' templates expect it: characters as they are, nothing escaped for HTML."""
    return json.dumps(value, **({"ensure_ascii": False} | options), indent=indent, sort_keys=sort_keys)


class _Range:
    """`range` for one rendering: all calls together may count to the sandbox's limit, nested loops included."""

    def __init__(self) -> None:
        self._left = 100_000

    def __call__(self, *args: int) -> range:
        numbers = range(*args)
        self._left -= len(numbers)
        if self._left < 0:
            raise OverflowError("its loops run too long")
        return numbers


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox (no attributes of Python's machinery, nothing changed in place), without huge products."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and left.bit_length() * right > _MAX_BITS:
            raise OverflowError("its powers are too large")
        if operator == "*" and not all(isinstance(side, int | float) for side in (left, right)):
            count, item = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(count, int) and count * len(item) > _MAX_RENDERED:
                raise OverflowError("its repetitions are too long")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what to train on, in some templates; here it is only its body."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
