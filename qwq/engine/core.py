"""The scheduler and the decode loop. It knows token ids; characters are `engine/text.py`'s.

Requests that run share one batch: every step prefills one chunk of the oldest waiting prompt and decodes every running
request, by one token, or by as many as a draft got right (speculate.py). Rows that follow each other under one policy
are one call of the model. Row i of the cache belongs to `rows[i]`; the row that is being prefilled is always the last.
"""

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from qwq.engine.policy import ComputePolicy
from qwq.engine.sampler import Sampler, SamplingParams
from qwq.engine.speculate import Decode, TorchDecode
from qwq.errors import QwqError, UsageError
from qwq.kernels.decode import fast_decode
from qwq.kernels.quantised import Quantised
from qwq.model import Decoder, KVCache
from qwq.model.depth import filling_flops, flops_of_token, leave_early

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
    compute: ComputePolicy = field(default_factory=ComputePolicy)
    prefilled: int = 0
    generated: list[int] = field(default_factory=list)
    layers: int = 0  # that tokens went through to make the reply, guesses included
    flops: int = 0  # so far, the prompt's included
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
        self.decode: Decode = TorchDecode(model) if fast is None else fast
        depths = range(model.config.num_hidden_layers + 1)
        at = [[flops_of_token(model.config, n, context, heads=0) for n in depths] for context in (0, 1)]
        self._flops = list(zip(at[0], [b - a for a, b in zip(*at, strict=True)], strict=True))
        self._head_flops = flops_of_token(model.config, 0, 0)
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
        forced: Sequence[int] = (),
    ) -> Request:
        """Queue a prompt. Raises `PromptTooLong`, `QueueFull`, or `UsageError` for an empty prompt, at once.

        `UsageError`, too, for a `compute` that the model is not made for. The reply begins with the `forced` ids.
        """
        if not prompt_ids:
            raise UsageError("the prompt is empty")
        room = self.context_length - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(len(prompt_ids), self.context_length)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        sampler = Sampler(params, prompt_ids, self.device)
        sampler.forced.extend(forced)
        compute = params.compute.of_model(self.model.config)
        request = Request(prompt_ids, params, frozenset(stop_ids), on_token, limit, sampler, compute, wake=self._notify)
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
        """One chunk of prefill, one token or more for every running request."""
        self._drop_cancelled()
        decoding = range(len(self.rows) - self.prefilling)
        groups = [list(rows) for _, rows in groupby(decoding, lambda row: self.rows[row].compute)]
        for rows in reversed(groups):  # from the back: a row that ends gives its place to the last
            self._decode(rows[0], rows[-1] + 1)
        self._prefill()

    def _decode(self, start: int, stop: int) -> None:
        """Let rows of one policy go on."""
        batch, rows = self.rows[start:stop], self.cache.rows(start, stop)
        before, policy = self.cache.lengths[start:stop], batch[0].compute
        ids = torch.tensor([[r.generated[-1]] for r in batch], device=self.device)
        guesses = min(policy.draft_tokens, max(r.max_tokens - len(r.generated) - 1 for r in batch))
        if policy.mode == "speculative" and guesses > 0:
            assert policy.draft_layers is not None
            luck = torch.stack([r.sampler.ahead(guesses, self.model.config.vocab_size) for r in batch])
            ids, states = self.decode.draft(ids, rows, luck, policy.draft_layers)
            logits = self.decode.finish(ids, states, rows, policy.draft_layers)
        elif policy.mode == "early-exit":
            self._leave_early(ids, start, policy.confidence)
            return
        else:
            logits = self.decode(ids, rows)
        for row in reversed(range(start, stop)):
            request, tokens = batch[row - start], ids[row - start].tolist()
            self._spend(request, len(self._flops) - 1, before[row - start], len(tokens), 2 * len(tokens) - 1)
            for position, token in enumerate(tokens):
                if position and token != request.generated[-1]:
                    break
                self.cache.lengths[row] = before[row - start] + position + 1
                if not self._accept(row, logits[row - start, position]):
                    break

    def _leave_early(self, ids: Tensor, start: int, confidence: float) -> None:
        """One token of each row, each to its own depth."""
        for row in reversed(range(start, start + len(ids))):
            request, before = self.rows[row], self.cache.lengths[row]
            rows = self.cache.rows(row, row + 1)
            logits, depth = leave_early(self.model, ids[row - start, None], rows, confidence)
            tried = {*(e + 1 for e in self.model.config.exit_layers if e < depth), depth}
            self._spend(request, depth, before, 1, len(tried))
            request.flops += filling_flops(self.model.config, depth)
            self._accept(row, logits[0, -1])

    def _spend(self, request: Request, layers: int, before: int, tokens: int, heads: int) -> None:
        """Note what `tokens` tokens after `before` others cost that went through `layers` layers."""
        fixed, each = self._flops[layers]
        seen = before * tokens + tokens * (tokens + 1) // 2
        request.flops += tokens * fixed + seen * each + heads * self._head_flops
        request.layers += layers * tokens

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
        self._spend(request, len(self._flops) - 1, request.prefilled, len(chunk), 1)
        request.prefilled += len(chunk)
        if request.prefilled == len(request.prompt_ids):
            request.layers = len(self._flops) - 1  # of the token that the prompt's last one gives
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

    def _accept(self, row: int, logits: Tensor) -> bool:
        """Take the row's next token; returns whether the row goes on."""
        request = self.rows[row]
        if request.cancelled:
            return False  # dropped at the next step
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
        return reason is None

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
