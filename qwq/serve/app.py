"""The HTTP API: OpenAI's routes over one or more language models, and the chat page.

How a request goes: `guard` lets it in, `schema` reads its body, here it becomes prompt ids and sampling parameters,
`stream` runs it on the engine's thread, `answer` gives the result OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import mimetypes
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Scope

from qwq.engine import Delta, LanguageModel, PromptTooLong, QueueFull, SamplingParams
from qwq.errors import QwqError, UsageError
from qwq.serve import answer, docs_page
from qwq.serve.errors import ApiError, from_validation, nearest
from qwq.serve.guard import Guard, Lifecycle, hosts_for
from qwq.serve.metrics import Metrics
from qwq.serve.schema import MAX_CHOICES, ChatRequest, CompletionRequest, field_names
from qwq.serve.stream import EventStream, Generation, failure, unless_disconnected

STATIC = Path(__file__).parent / "static"

# Not every system's table has these, and browsers refuse a script of another type.
for kind, suffix in (("text/javascript", ".js"), ("text/javascript", ".mjs"), ("font/woff2", ".woff2")):
    mimetypes.add_type(kind, suffix)

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": answer.ErrorBody, "description": "The request was refused; the body says why."},
    "5XX": {"model": answer.ErrorBody, "description": "The server failed or is shutting down."},
}

_HEALTH: dict[int | str, str] = {200: "It takes requests.", 503: "It finishes what runs and takes nothing new."}


def create_app(
    models: Mapping[str, LanguageModel],
    *,
    api_key: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        models: what is served, by the names that requests use.
        api_key: demanded of every /v1 request as `Authorization: Bearer KEY`; None asks nobody.
        host: the address it will be bound to, which decides the Host headers that are answered.
        port: the port it will be bound to, for openapi.json.
        allowed_hosts: further host names to answer to, such as a reverse proxy's.

    `app.state.lifecycle` is the `Lifecycle` that a server sets to drain.
    """
    metrics, lifecycle, created = Metrics(models), Lifecycle(), int(time.time())
    app = FastAPI(
        title="QwQ",
        version="1",
        description="An OpenAI-compatible API. Point an OpenAI client's base_url at /v1.",
        servers=[{"url": f"http://{f'[{host}]' if ':' in host else host}:{port}"}],
        docs_url=None,
        redoc_url=None,
    )
    app.state.lifecycle = lifecycle
    app.add_middleware(
        Guard,
        lifecycle=lifecycle,
        metrics=metrics,
        api_key=api_key,
        allowed_hosts=hosts_for(host, allowed_hosts),
    )
    _answer_errors(app)
    app.router.redirect_slashes = False
    app.router.default = _Page(directory=STATIC, html=True)
    keyed = [Depends(HTTPBearer(auto_error=False, description="Only where the server was started with a key."))]

    def find(name: str) -> LanguageModel:
        if name not in models:
            message = f"There is no model {name[:80]!r} here.{nearest(name, models)} /v1/models lists them."
            raise ApiError(404, message, param="model", code="model_not_found")
        return models[name]

    @app.get(
        "/v1/models",
        responses={200: {"model": answer.ModelList, "description": "Every model."}, **_ERRORS},
        dependencies=keyed,
    )
    async def list_models() -> JSONResponse:
        """The models of this server."""
        cards = [answer.model_card(name, lm, created) for name, lm in models.items()]
        return JSONResponse(answer.ModelList(object="list", data=cards))

    @app.get(
        "/v1/models/{model_id:path}",
        responses={200: {"model": answer.ModelCard, "description": "The model."}, **_ERRORS},
        dependencies=keyed,
    )
    async def retrieve_model(model_id: str) -> JSONResponse:
        """One model."""
        return JSONResponse(answer.model_card(model_id, find(model_id), created))

    async def run(
        request: Request,
        body: ChatRequest | CompletionRequest,
        encode: Callable[[LanguageModel], list[list[int]]],
        kind: tuple[str, str, str],
        whole: Callable[[int, answer.Choice], Any],
        piece: Callable[[int, Delta], Any],
        opening: Callable[[int], Any] | None = None,
    ) -> Response:
        """Both routes: prompts to choices, streamed or whole. `kind` is the id's prefix and the two object names."""
        lm = find(body.model)
        n = 1 if body.n is None else body.n
        given = body.given()
        seed = given.get("seed")

        def prepare() -> list[tuple[list[int], SamplingParams]]:
            prompts = encode(lm)
            if len(prompts) * n > MAX_CHOICES:
                raise ApiError(400, f"n times prompts is {len(prompts) * n}; at most {MAX_CHOICES}.", param="n")
            seeds = [{} if seed is None else {"seed": seed + i} for i in range(n)]
            return [(ids, lm.sampling(**{**given, **own})) for ids in prompts for own in seeds]

        jobs = await asyncio.to_thread(prepare)
        split, started = isinstance(body, ChatRequest), request.state.started
        generation = Generation(lm, body.model, jobs, split=split, metrics=metrics, started=started)
        choices = [answer.Choice() for _ in jobs]
        head = {"id": f"{kind[0]}-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}

        if body.stream:
            extra = {"usage": None} if body.include_usage else {}

            def chunk(choice: Any) -> dict[str, Any]:
                return {**head, "object": kind[1], "choices": [choice], **extra}

            def on_delta(index: int, delta: Delta) -> dict[str, Any]:
                choices[index].add(delta)
                return chunk(piece(index, delta))

            def tail() -> list[dict[str, Any]]:
                last = {**head, "object": kind[1], "choices": [], "usage": answer.usage_of(choices, n)}
                return [last] if body.include_usage else []

            first = [chunk(opening(i)) for i in range(len(jobs))] if opening is not None else []
            return EventStream(generation, on_delta, head=first, tail=tail)

        async def gather() -> bool:
            async for index, delta in generation:
                error = failure(delta)
                if error is not None:
                    raise error
                choices[index].add(delta)
            return True

        try:
            if await unless_disconnected(request, gather()) is None:
                return Response(status_code=499)  # nobody reads it; the log and the metrics do
        finally:
            generation.cancel()
        made = [whole(index, choice) for index, choice in enumerate(choices)]
        return JSONResponse({**head, "object": kind[2], "choices": made, "usage": answer.usage_of(choices, n)})

    @app.post(
        "/v1/chat/completions",
        responses={200: {"model": answer.ChatCompletion, **_events("ChatChunk")}, **_ERRORS},
        dependencies=keyed,
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a chat. Thinking comes in `reasoning_content` (and `reasoning`), the answer in `content`."""
        want = bool(body.logprobs)

        def encode(lm: LanguageModel) -> list[list[int]]:
            messages = [message.for_template() for message in body.messages]
            try:
                return [lm.chat_ids(messages, **body.template_vars())]
            except QwqError as error:
                raise ApiError(400, f"messages: {error}", param="messages") from error

        return await run(
            request,
            body,
            encode,
            ("chatcmpl", "chat.completion.chunk", "chat.completion"),
            whole=lambda index, choice: answer.chat_choice(index, choice, want),
            piece=lambda index, delta: answer.chat_delta(index, delta, want),
            opening=lambda index: {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            },
        )

    @app.post(
        "/v1/completions",
        responses={200: {"model": answer.TextCompletion, **_events("TextCompletion")}, **_ERRORS},
        dependencies=keyed,
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a raw text; no chat template, thinking not told apart."""
        want = body.logprobs is not None

        def encode(lm: LanguageModel) -> list[list[int]]:
            prompts = [lm.prompt_ids(p) if isinstance(p, str) else p for p in body.prompts()]
            size = lm.config.vocab_size
            if any(token >= size for ids in prompts for token in ids):
                raise ApiError(400, f"prompt: a token id is not below the vocabulary's {size:,}.", param="prompt")
            return prompts

        return await run(
            request,
            body,
            encode,
            ("cmpl", "text_completion", "text_completion"),
            whole=lambda index, choice: answer.text_choice(index, choice, want),
            piece=lambda index, delta: answer.text_choice(index, delta, want),
        )

    @app.get(
        "/health", responses={status: {"model": answer.Health, "description": text} for status, text in _HEALTH.items()}
    )
    async def health() -> JSONResponse:
        """Whether the server takes requests."""
        status = "draining" if lifecycle.draining else "ok"
        return JSONResponse(answer.Health(status=status, models=list(models)), 503 if lifecycle.draining else 200)

    @app.get(
        "/metrics", responses={200: {"content": {"text/plain": {}}, "description": "The metrics."}}, dependencies=keyed
    )
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        base = f"{request.url.scheme}://{request.headers['host']}/v1"
        return HTMLResponse(docs_page.render(app.openapi(), base, next(iter(models), "MODEL")))

    @app.get("/docs.css", include_in_schema=False)
    async def docs_css() -> Response:
        return Response(docs_page.CSS, media_type="text/css")

    return app


def _events(schema: str) -> dict[str, Any]:
    """OpenAPI's note that an answer may also be a stream of events."""
    return {
        "description": "The answer; with `stream`, events.",
        "content": {"text/event-stream": {"schema": {"type": "string", "description": f"Events of {schema}."}}},
    }


def _answer_errors(app: FastAPI) -> None:
    """Turns every exception that means something to a client into an ApiError's response."""
    fields = field_names()

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        if isinstance(error, ApiError):
            return error.response()
        path, allow = request.url.path[:100], (error.headers or {}).get("allow", (error.headers or {}).get("Allow", ""))
        message = {
            400: "The body could not be read as JSON in UTF-8.",
            404: f"There is nothing at {request.method} {path!r}; /docs lists the routes.",
            405: f"{path!r} does not take {request.method}, only {allow}.",
        }.get(error.status_code, str(error.detail))
        code = "invalid_json" if error.status_code == 400 else None
        return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})).response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors(), fields).response()

    @app.exception_handler(QwqError)
    async def on_refused(request: Request, error: QwqError) -> Response:
        text = f"{error}."
        param = "messages" if request.url.path.startswith("/v1/chat") else "prompt"
        if isinstance(error, PromptTooLong):
            return ApiError(400, text, param=param, code="context_length_exceeded").response()
        if isinstance(error, QueueFull):
            return ApiError(429, text, headers={"retry-after": str(error.retry_after)}).response()
        if isinstance(error, UsageError):
            name = str(error).split(" ", 1)[0]
            return ApiError(400, text, param=name if name in fields else param, code="invalid_value").response()
        return ApiError(503, text).response()


class _Page(StaticFiles):
    """The chat page, for every path that no route has."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        return await super().get_response(path, scope)
