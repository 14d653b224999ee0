"""Every error in OpenAI's shape, {"error": {"message", "type", "param", "code"}}: one line, never a traceback."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    421: "misdirected_request",
    429: "queue_full",
    500: "internal_error",
    503: "shutting_down",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An answer with an error status.

    It derives from HTTPException because FastAPI lets only those pass unchanged while it reads a body.

    Args:
        status: the HTTP status.
        message: one line that says what was wrong and what to do.
        param: the request parameter at fault, such as "messages[0].content".
        code: a stable slug; the usual one of the status where None.
        headers: extra response headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, " ".join(message.split()), headers)
        self.param = param
        self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON object that the client gets."""
        status = self.status_code
        return {
            "error": {
                "message": self.detail,
                "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
                "param": self.param,
                "code": self.code if self.code is not None else _CODES.get(status, "error"),
            }
        }

    def response(self) -> Response:
        """The HTTP response. ASCII-only JSON, since a message may quote a lone surrogate that UTF-8 has no form for."""
        return Response(json.dumps(self.body()), self.status_code, self.headers, "application/json")


def nearest(name: str, known: Iterable[str]) -> str:
    """The closest known name as a hint (" Did you mean ...?"), or nothing where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def from_validation(errors: Sequence[Any], fields: set[str]) -> ApiError:
    """pydantic's list of errors as one ApiError about the first parameter at fault.

    A union reports each of its branches; the deepest location says most, and the messages of one location are joined.

    Args:
        errors: what `RequestValidationError.errors()` returns.
        fields: the names of all request fields; other parts of a location are union tags.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        where = f"at character {first['loc'][-1]}: {first['ctx']['error']}"
        return ApiError(400, f"The body is not valid JSON ({where}).", code="invalid_json")
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        return ApiError(
            400, f"Unknown parameter {name!r}.{nearest(name, fields)}", param=name, code="unknown_parameter"
        )
    named = [(_param(error["loc"], fields), error) for error in errors]
    same = [(param, error) for param, error in named if error["loc"][1:2] == first["loc"][1:2]]
    param, error = max(same, key=lambda item: len(item[0]))
    if not param:
        return ApiError(400, "The body must be a JSON object; see /docs.", code="invalid_json")
    if error["type"] == "missing":
        return ApiError(400, f"{param}: this parameter is required.", param=param, code="missing_required_parameter")
    messages = dict.fromkeys(item["msg"].removeprefix("Value error, ") for name, item in same if name == param)
    message = f"{param}: {', or '.join(messages)} (got {_short(error['input'])})."
    code = "invalid_type" if error["type"].endswith("_type") else "invalid_value"
    return ApiError(400, message, param=param, code=code)


def _param(loc: Sequence[str | int], fields: set[str]) -> str:
    """("body", "messages", 0, "content", "list[TextPart]") -> "messages[0].content"."""
    text = ""
    for part in loc[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in fields:
            text += f".{part}" if text else part
    return text


def _short(value: object) -> str:
    """A value quoted on one line, at most 60 characters."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
