"""From the engine's thread to asyncio: the choices of one HTTP request, iterated or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qwq.engine import Delta, LanguageModel, SamplingParams
from qwq.engine import Request as EngineRequest
from qwq.serve.errors import ApiError
from qwq.serve.metrics import Metrics

KEEP_ALIVE_SECONDS = 15.0
"""A comment is sent after so long without a token, so that no proxy takes a long prompt for a dead connection."""

T = TypeVar("T")


class Generation:
    """All choices of one HTTP request. Iterate for (index, Delta) until every choice is finished; cancel at any time.

    Args:
        lm: the model, and `name`, which it has in the metrics.
        jobs: one (prompt ids, sampling parameters) a choice.
        split: separate thinking from the answer.
        metrics: where latencies go.
        started: time.monotonic() when the HTTP request was taken up.

    Attributes:
        open: how many choices are not finished.
    """

    def __init__(
        self,
        lm: LanguageModel,
        name: str,
        jobs: Sequence[tuple[list[int], SamplingParams]],
        *,
        split: bool,
        metrics: Metrics,
        started: float,
    ) -> None:
        self.name = name
        self.metrics = metrics
        self._started = started
        self._first: list[float | None] = [None] * len(jobs)
        self.open = len(jobs)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        self._requests: list[EngineRequest] = []
        try:
            for index, (ids, params) in enumerate(jobs):
                self._requests.append(lm.submit(ids, params, partial(self._push, index), split=split))
        except BaseException:
            self.cancel()
            raise

    def _push(self, index: int, delta: Delta) -> None:
        """Called from the engine's thread."""
        self._measure(index, delta)
        # A server that was stopped at once has closed its loop while the engine's last step was on its way.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, delta))

    def _measure(self, index: int, delta: Delta) -> None:
        now, name = time.monotonic(), self.name
        first = self._first[index]
        if first is None:
            first = self._first[index] = now
            self.metrics.first_token.labels(name).observe(now - self._started)
        if delta.finish_reason is not None:
            self.metrics.finished.labels(name, delta.finish_reason).inc()
            if delta.usage is not None and delta.usage.completion_tokens > 1:
                self.metrics.per_token.labels(name).observe((now - first) / (delta.usage.completion_tokens - 1))

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        if self.open == 0:
            raise StopAsyncIteration
        index, delta = await self._queue.get()
        if delta.finish_reason is not None:
            self.open -= 1
        return index, delta

    def cancel(self) -> None:
        """Frees every slot at once; does nothing to choices that are finished."""
        for request in self._requests:
            request.cancel()


def failure(delta: Delta) -> ApiError | None:
    """The error that a last delta stands for, or None where the choice ended well."""
    if delta.finish_reason == "error":
        return ApiError(500, "The model failed while it generated; the server's log says why.", code="engine_error")
    if delta.finish_reason == "cancelled":
        return ApiError(503, "The server stopped this request.")
    return None


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
    """Waits for `work`, or gives it up and returns None as soon as the client is gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    worker, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        worker.cancel()
        watcher.cancel()


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """Server-sent events of a generation; however the response ends, its slots are freed before it is left.

    Args:
        generation: what is streamed.
        chunk: makes the JSON object of one delta, or None where there is nothing to send.
        head: objects to send before the first token.
        tail: called after the last token for the objects to send then.
    """

    def __init__(
        self,
        generation: Generation,
        chunk: Callable[[int, Delta], dict[str, Any] | None],
        *,
        head: Sequence[dict[str, Any]] = (),
        tail: Callable[[], Sequence[dict[str, Any]]] = tuple,
    ) -> None:
        self.generation = generation
        super().__init__(self._events(chunk, head, tail), media_type="text/event-stream")
        self.headers["x-accel-buffering"] = "no"

    async def _events(
        self,
        chunk: Callable[[int, Delta], dict[str, Any] | None],
        head: Sequence[dict[str, Any]],
        tail: Callable[[], Sequence[dict[str, Any]]],
    ) -> AsyncIterator[bytes]:
        for data in head:
            yield event(data)
        while self.generation.open:
            try:
                index, delta = await asyncio.wait_for(anext(self.generation), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield b": still working\n\n"
                continue
            error = failure(delta)
            if error is not None:
                yield event(error.body())
                break
            made = chunk(index, delta)
            if made is not None:
                yield event(made)
        else:
            for data in tail():
                yield event(data)
        yield b"data: [DONE]\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.cancel()
