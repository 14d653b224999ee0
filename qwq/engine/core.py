"""The scheduler and the decode loop. It knows token ids; characters are `engine/text.py`'s.

Requests that run share one batch: every step prefills one chunk of the oldest waiting prompt and decodes one token of
every running request. Row i of the cache belongs to `rows[i]`; the row that is being prefilled is always the last.
"""

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qwq.engine.sampler import Sampler, SamplingParams
from qwq.errors import QwqError, UsageError
from qwq.kernels.decode import fast_decode
from qwq.kernels.quantised import Quantised
from qwq.model import Decoder, KVCache
from qwq.model.attention import CacheRows

log = logging.getLogger("qwq.engine")
_WORTH_SHARING = 16  # tokens of a prompt's beginning; fewer are as quickly computed as copied


class PromptTooLong(QwqError):
    """The prompt leaves no room for a reply."""

    def __init__(self, prompt_tokens: int, context_length: int):
        self.prompt_tokens, self.context_length = prompt_tokens, context_length
        super().__init__(f"the prompt has {prompt_tokens:,} tokens, and the model's context holds {context_length:,}")


class QueueFull(QwqError):
    """Too many requests wait already; `retry_after` is in seconds."""

    def __init__(self, waiting: int, retry_after: int = 5):
        self.retry_after = retry_after
        super().__init__(f"{waiting} requests wait already; try again in {retry_after} seconds")


@dataclass(eq=False)
class Request:
    """A prompt on its way.

    `on_token(request, token, reason)` is called on the engine's thread for every token but the stop token, and once at
    the end with token None and the reason: "stop", "length", "cancelled" or "error". A true result ends it with "stop".
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    on_token: "OnToken"
    max_tokens: int
    sampler: Sampler
    prefilled: int = 0
    generated: list[int] = field(default_factory=list)
    logprobs: tuple[float, list[tuple[int, float]]] | None = None  # of the newest token, where params ask for it
    error: str | None = None
    cancelled: bool = False
    wake: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Give up the request; its row is free before the next token. Harmless when it has ended."""
        self.cancelled = True
        self.wake()


OnToken = Callable[[Request, int | None, str | None], bool | None]


class Engine:
    """Continuous batching over one model, on one thread of its own.

    `quantised` holds weights as their file has them, for the decode kernel (`qwq/kernels/decode.py`).
    """

    def __init__(
        self,
        model: Decoder,
        *,
        max_batch_size: int = 8,
        max_queue: int = 64,
        context_length: int | None = None,
        prefill_chunk: int = 512,
        quantised: Mapping[str, Quantised] | None = None,
    ):
        self.model, self.max_batch_size, self.max_queue = model, max_batch_size, max_queue
        self.prefill_chunk = prefill_chunk
        self.context_length = model.config.max_position_embeddings if context_length is None else context_length
        weight = model.model.norm.weight
        self.device = weight.device
        fast = fast_decode(model, quantised)
        self.decode: Callable[[Tensor, CacheRows], Tensor] = self._decode if fast is None else fast
        self.cache = KVCache(model.config, max_batch_size, weight.dtype, weight.device)
        self.waiting: deque[Request] = deque()
        self.rows: list[Request] = []
        self.prefilling = False  # whether the last of `rows` is not yet through its prompt
        self.prompt_tokens = self.generated_tokens = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_token: "OnToken",
        stop_ids: Sequence[int] = (),
    ) -> Request:
        """Queue a prompt. Raises `PromptTooLong`, `QueueFull`, or `UsageError` for an empty prompt, at once."""
        if not prompt_ids:
            raise UsageError("the prompt is empty")
        room = self.context_length - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(len(prompt_ids), self.context_length)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        sampler = Sampler(params, prompt_ids, self.device)
        request = Request(prompt_ids, params, frozenset(stop_ids), on_token, limit, sampler, wake=self._notify)
        with self._changed:
            if self._closed:
                raise QwqError("the engine is closed")
            if len(self.waiting) >= self.max_queue:
                raise QueueFull(len(self.waiting))
            self.waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qwq-engine", daemon=True)
                self._thread.start()
                atexit.register(_close, weakref.ref(self))
            self._changed.notify()
        return request

    def close(self) -> None:
        """End the thread after its current step; what still runs ends as cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self.waiting or self.rows):
                    self._changed.wait()
                closed = self._closed
            if closed:
                for request in [*self.rows, *self.waiting]:
                    request.on_token(request, None, "cancelled")
                return
            try:
                self.step()
            except Exception as error:  # one bad step must not take the server down: its requests fail, and say so
                log.exception("the engine failed in a step")
                failed, self.rows, self.prefilling = self.rows, [], False
                self.cache.lengths = [0] * self.max_batch_size
                for request in failed:
                    request.error = f"{type(error).__name__}: {error}"
                    request.on_token(request, None, "error")

    @torch.inference_mode()
    def step(self) -> None:
        """One chunk of prefill, one token for every running request."""
        self._drop_cancelled()
        decoding = len(self.rows) - self.prefilling
        if decoding:
            batch = self.rows[:decoding]
            ids = torch.tensor([[r.generated[-1]] for r in batch], device=self.device)
            logits = self.decode(ids, self.cache.rows(0, decoding))[:, -1]
            for row in reversed(range(decoding)):  # from the back: a row that ends gives its place to the last
                self._accept(row, logits[row])
        self._prefill()

    def _decode(self, ids: Tensor, rows: CacheRows) -> Tensor:
        """ids [B, 1] -> logits [B, 1, V], where there is no kernel for it."""
        return self.model(ids, cache=rows)

    def _prefill(self) -> None:
        if not self.prefilling:
            with self._changed:
                if not self.waiting or len(self.rows) == self.max_batch_size:
                    return
                self.rows.append(self.waiting.popleft())
            self.prefilling = True
        row, request = len(self.rows) - 1, self.rows[-1]
        if request.prefilled == 0:
            request.prefilled = self.cache.lengths[row] = self._share_prefix(row, request.prompt_ids)
        chunk = request.prompt_ids[request.prefilled : request.prefilled + self.prefill_chunk]
        ids = torch.tensor([list(chunk)], device=self.device)
        logits = self.model(ids, cache=self.cache.rows(row, row + 1), logits_to_keep=1)[0, -1]
        request.prefilled += len(chunk)
        if request.prefilled == len(request.prompt_ids):
            self.prompt_tokens += len(request.prompt_ids)
            self.prefilling = False
            self._accept(row, logits)

    def _share_prefix(self, row: int, prompt_ids: Sequence[int]) -> int:
        """Copy to the row what a running request has of the same prompt's beginning; returns how many tokens."""
        shared = [common_prefix(prompt_ids[:-1], other.prompt_ids) for other in self.rows[:row]]
        longest = max(shared, default=0)
        if longest < _WORTH_SHARING:
            return 0
        self.cache.move(shared.index(longest), row)
        return longest

    def _accept(self, row: int, logits: Tensor) -> None:
        request = self.rows[row]
        if request.cancelled:
            return  # dropped at the next step
        token = request.sampler(logits)
        request.generated.append(token)
        self.generated_tokens += 1
        if request.params.logprobs is not None:
            scores = logits.float().log_softmax(-1)
            top = scores.topk(request.params.logprobs)
            request.logprobs = (float(scores[token]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
        reason = None
        if token in request.stop_ids or request.on_token(request, token, None):
            reason = "stop"
        elif len(request.generated) >= request.max_tokens:
            reason = "length"
        if reason is not None:
            self._release(row)
            request.on_token(request, None, reason)

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [r for r in self.waiting if r.cancelled]
            if dropped:
                self.waiting = deque(r for r in self.waiting if not r.cancelled)
        for row in reversed(range(len(self.rows))):
            if self.rows[row].cancelled:
                dropped.append(self.rows[row])
                self._release(row)
        for request in dropped:
            request.on_token(request, None, "cancelled")

    def _release(self, row: int) -> None:
        """Free a row: the last decoding row takes its place, and the one being prefilled stays last."""
        last = len(self.rows) - 1
        if self.prefilling and row == last:
            self.prefilling = False
        elif self.prefilling:
            self._move(last - 1, row)
            self._move(last, last - 1)
        else:
            self._move(last, row)
        self.rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self.cache.move(source, target)
            self.rows[target] = self.rows[source]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids at the start of both are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _close(reference: "weakref.ref[Engine]") -> None:
    engine = reference()
    if engine is not None:
        engine.close()
