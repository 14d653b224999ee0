"""What stands before every route, as plain ASGI so that streams pass untouched: Host, Origin, key, type and size of the
body, draining; and after it: security headers, the access log and the request metrics."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwq.serve.errors import ApiError
from qwq.serve.metrics import Metrics

log = logging.getLogger("qwq.serve")

MAX_BODY_BYTES = 10 * 2**20
BODY_SECONDS = 60.0
"""A client that takes longer to send its body is refused: it would hold up the end of the server."""
STALL_SECONDS = 60.0
"""A client that takes nothing of its answer for so long is given up."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARD = frozenset({"", "0.0.0.0", "::"})

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class _Stalled(Exception):
    """The client does not take what is sent to it."""


@dataclass
class Lifecycle:
    """What the server and its guard tell each other.

    Attributes:
        draining: SIGTERM or Ctrl-C came: what runs finishes, nothing new begins.
        active: POST requests that have been let in and are not answered to the end.
    """

    draining: bool = False
    active: int = 0


class Guard:
    """ASGI middleware; see the top of this file.

    Args:
        app: what is guarded.
        lifecycle: shared with the server.
        metrics: where requests are counted.
        api_key: demanded of /v1 and /metrics; None asks nobody.
        allowed_hosts: host names a Host header may hold, without port; None allows any. A page of an attacker's domain
            that is then pointed at this machine (DNS rebinding) carries that domain in Host, and is refused here.
        max_body_bytes: most bytes of a request body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifecycle: Lifecycle,
        metrics: Metrics,
        api_key: str | None,
        allowed_hosts: frozenset[str] | None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.api_key = None if api_key is None else api_key.encode()
        self.allowed_hosts = allowed_hosts
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        received, complete, deadline = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS
        request_id = f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["started"] = started

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # the client's leaving, whenever that is
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"The body did not come within {BODY_SECONDS:g} seconds.") from None
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        async def secured_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers["x-request-id"] = request_id
                headers.setdefault("cache-control", "no-store" if _is_api(scope) else "no-cache")
                if self.lifecycle.draining:
                    headers["connection"] = "close"
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await send(message)
            except TimeoutError:
                raise _Stalled from None

        working = False
        try:
            self._admit(scope)
            working = scope["method"] == "POST"
            self.lifecycle.active += working
            await self.app(scope, limited_receive, secured_send)
        except ApiError as error:
            await error.response()(scope, receive, secured_send)
        except _Stalled:
            log.info("%s: the client stopped reading", request_id)
        except Exception:
            log.exception("%s failed", request_id)
            if status == 0:
                broken = ApiError(500, f"Something broke on the server; its log has the details under {request_id}.")
                await broken.response()(scope, receive, secured_send)
        finally:
            self.lifecycle.active -= working
            self._record(scope, status, time.monotonic() - started)

    def _admit(self, scope: Scope) -> None:
        """Raises the ApiError that refuses this request, or returns."""
        headers = Headers(scope=scope)
        host, origin, method = headers.get("host", ""), headers.get("origin"), scope["method"]
        if self.allowed_hosts is not None and _hostname(host) not in self.allowed_hosts:
            raise ApiError(
                421,
                f"This server does not answer to the host name {host[:80]!r}. Use the address it printed, or name the "
                "host in QWQ_ALLOWED_HOSTS.",
            )
        if method not in ("GET", "HEAD", "OPTIONS") and origin is not None and not _same_origin(origin, host):
            raise ApiError(403, "A page of another site may not send requests here.", code="cross_origin")
        if self.api_key is not None and _is_api(scope):
            self._check_key(headers.get("authorization"))
        if method != "POST":
            return
        if self.lifecycle.draining:
            raise ApiError(503, "The server is shutting down and takes no new requests.", headers={"retry-after": "10"})
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The body must be JSON: send the header Content-Type: application/json.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            raise self._too_large()

    def _check_key(self, authorization: str | None) -> None:
        assert self.api_key is not None
        scheme, _, key = (authorization or "").partition(" ")
        if not authorization or scheme.lower() != "bearer":
            message = "This server needs its API key: send the header Authorization: Bearer KEY."
        elif secrets.compare_digest(key.strip().encode("latin-1"), self.api_key):
            return
        else:
            message = "The API key is wrong."
        raise ApiError(401, message, headers={"www-authenticate": "Bearer"})

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self.max_body_bytes:,} bytes.")

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        if route is None:
            route = "page" if 0 < status < 400 else "unmatched"
        self.metrics.requests.labels(scope["method"] if scope["method"] in _METHODS else "other", route, status).inc()
        self.metrics.duration.labels(route).observe(seconds)
        if status == 0 or status >= 400 or _is_api(scope):
            path = scope.get("raw_path", scope["path"].encode()).decode("ascii", "backslashreplace")
            log.info("%s %s %s %.2f s", scope["method"], path[:200], status if status else "gone", seconds)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def hosts_for(host: str, extra: Iterable[str] = ()) -> frozenset[str] | None:
    """The names a Host header may hold for a server bound to `host`; None (any name) where it is bound to all."""
    if host in WILDCARD:
        return None
    return LOOPBACK | {host.lower()} | {name.strip().lower() for name in extra if name.strip()}


def _is_api(scope: Scope) -> bool:
    return scope["path"] == "/metrics" or scope["path"].startswith("/v1")


def _hostname(host: str) -> str | None:
    """ "[::1]:8000" -> "::1", "Example:80" -> "example"; None where it is no host."""
    try:
        return urlsplit(f"//{host}").hostname if "@" not in host else None
    except ValueError:
        return None


def _same_origin(origin: str, host: str) -> bool:
    """Whether a browser's Origin names the host the request went to (the scheme may differ behind a proxy)."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False
