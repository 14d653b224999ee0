"""`qwq bench decode`: tokens a second of one reply by SmolLM2-135M, here, in `transformers` and in llama.cpp.

All continue the same prompt greedily and are timed from the first new token to the last, so that reading the prompt is
not in it. Here and in llama.cpp the weights are the file's (Q4_1, embedding Q8_0); `transformers` has the same weights
dequantised. llama.cpp also quantises activations, to 8 bits; here they are float32.

Each contender is a process of its own: the threads of one do not wait beside those of another, and the way in which
idle OpenMP threads wait, which can only be chosen when a process starts, is part of what is tried for each.
"""

import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from qwq.bench import common
from qwq.checkpoint import builtin, convert, gguf
from qwq.errors import QwqError, UsageError
from qwq.kernels.limits import read_gb_s
from qwq.tokenizer import load_tokenizer

NEW_TOKENS = 128
TEXT = "The library of a small town keeps books, maps and letters that people have left there over the years. "
CASES = [("context-16", 2, 16), ("context-16", 1, 16), ("context-1024", 2, 1024)]  # name, threads, tokens of the prompt
WAITING = ("PASSIVE", "")  # OMP_WAIT_POLICY: asleep at once; the library's default, which spins for some milliseconds

Call = Callable[[list[int]], float]  # prompt -> tokens a second


@dataclass(frozen=True)
class Contender:
    """Who runs, and how: `options` are the arguments of the function below that makes it."""

    peer: str
    threads: int
    options: tuple[Any, ...] = ()
    waiting: str = ""

    def __str__(self) -> str:
        return ", ".join([f"{self.threads} threads", *self.options, f"OMP_WAIT_POLICY={self.waiting or 'unset'}"])


class Runner:
    """A contender at work in its process. `weights` and `cache` are the bytes that a token must read at least: of all
    weights, and of one earlier token's keys and values."""

    def __init__(self, contender: Contender):
        context = multiprocessing.get_context("spawn")
        self.contender = contender
        self.pipe, there = context.Pipe()
        changed = {"OMP_NUM_THREADS": str(contender.threads), "OMP_WAIT_POLICY": contender.waiting}
        before = {key: os.environ.get(key) for key in changed}
        for key, value in changed.items():
            _set(key, value or None)
        self.process = context.Process(target=_serve, args=(there, contender), daemon=True)
        self.process.start()
        there.close()
        for key, old in before.items():
            _set(key, old)
        self.weights, self.cache = self._receive()

    def rate(self, prompt: list[int]) -> float:
        """Tokens a second of one reply."""
        self.pipe.send(prompt)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = QwqError("its process ended")
        if isinstance(answer, Exception):
            raise QwqError(f"{self.contender.peer} ({self.contender}) failed: {answer}")
        return answer

    def close(self) -> None:
        self.pipe.close()
        self.process.join(20)
        self.process.kill()


def run(json_path: common.JsonPath = None, *, rounds: int = 7) -> dict:
    """Find the fastest setting of each peer, then measure all contenders round by round."""
    try:
        found = common.versions("transformers", "xllamacpp")
    except ImportError as error:
        raise UsageError(f"{error}: the peers come with `pip install qwq[bench]`") from None
    all_threads = torch.get_num_threads()
    tokenizer, measured = load_tokenizer(builtin.fetch("smollm2")), common.limits()
    rows: list[common.Row] = []
    reads: dict[str, float] = {}
    achieved: dict[str, dict[str, float]] = {}
    sweep: dict[str, float] = {}
    ways: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        convert("smollm2", "hf", Path(folder) / "hf")
        for name, threads, length in CASES:
            if threads > all_threads:
                continue
            prompt = tokenizer.encode(TEXT * (length // 16 + 1))[:length]
            case = f"smollm2-q4_1-{name}-{threads}-thread{'s' * (threads > 1)}"
            torch.set_num_threads(threads)
            reads[case] = round(read_gb_s(), 2)
            if not ways:
                ways = _sweep(prompt, threads, str(Path(folder) / "hf"), sweep)
            runners = [Runner(Contender(peer, threads, *way)) for peer, *way in ways]
            try:
                for runner in runners:  # what only the first call pays
                    runner.rate(prompt)
                calls = {r.contender.peer: (lambda r=r, prompt=prompt: r.rate(prompt)) for r in runners}
                rates = common.interleave(calls, rounds)
            finally:
                for runner in runners:
                    runner.close()
            seen = length + NEW_TOKENS / 2
            achieved[case] = {
                r.contender.peer: round(
                    statistics.median(rates[r.contender.peer]) * (r.weights + seen * r.cache) / 1e9, 2
                )
                for r in runners
            }
            for other in (r.contender for r in runners[1:]):
                row = common.compare(
                    case, rates["qwq"], rates[other.peer], peer=other.peer, peer_setting=_shown(other), unit="tokens/s",
                    limit_fraction=achieved[case]["qwq"] / reads[case],
                )  # fmt: skip
                rows.append(row)
    torch.set_num_threads(all_threads)
    more = {"read_gb_s": reads, "achieved_gb_s": achieved, "sweep": sweep}
    return common.report("decode", rows, measured, found, json_path, **more)


def _sweep(prompt: list[int], threads: int, folder: str, rates: dict[str, float]) -> list[tuple[Any, ...]]:
    """(peer, options, waiting) of ours and of every peer's fastest setting; `rates` receives all that were tried."""

    def fastest(contenders: list[Contender]) -> Contender:
        for contender in contenders:
            if (name := f"{contender.peer}: {_shown(contender)}") not in rates:
                runner = Runner(contender)
                try:
                    runner.rate(prompt)
                    rates[name] = round(statistics.median(runner.rate(prompt) for _ in range(3)), 1)
                    print(f"{name}: {rates[name]} tokens/s", file=sys.stderr)
                finally:
                    runner.close()
        return max(contenders, key=lambda c: rates[f"{c.peer}: {_shown(c)}"])

    kinds = {"transformers-eager": ("dynamic cache", "static cache"), "transformers-compiled": ("static cache",)}
    best = [fastest([Contender("qwq", threads, (), waiting) for waiting in WAITING])]
    for peer, caches in kinds.items():
        options = itertools.product(("float32", "bfloat16"), ("sdpa", "eager"), caches)
        winner = fastest([Contender(peer, threads, (*way, folder)) for way in options])
        best.append(fastest([replace(winner, waiting=waiting) for waiting in WAITING]))
    ways = itertools.product(("flash attention on", "flash attention off"), ("poll 50", "poll 100"))
    best.append(fastest([Contender("llama.cpp", threads, way) for way in ways]))
    return [(c.peer, c.options, c.waiting) for c in best]


def _shown(contender: Contender) -> str:
    """The setting without the temporary folder."""
    return str(replace(contender, options=tuple(o for o in contender.options if os.sep not in o)))


def _set(key: str, value: str | None) -> None:
    os.environ.pop(key, None)
    if value is not None:
        os.environ[key] = value


# In the contender's process -------------------------------------------------------------------------------------------


def _serve(pipe: Connection, contender: Contender) -> None:
    """Answer prompts with rates until the other end closes."""
    try:
        torch.set_num_threads(contender.threads)
        make = {"qwq": _qwq, "llama.cpp": _llama_cpp}.get(contender.peer, _transformers)
        call, weights, cache = make(contender)
        pipe.send((weights, cache))
        while True:
            pipe.send(call(pipe.recv()))
    except EOFError:
        return
    except Exception as error:  # shown at the other end
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _rate(times: list[float]) -> float:
    """Tokens a second, from the moments when each of `NEW_TOKENS` tokens came."""
    assert len(times) == NEW_TOKENS
    return (NEW_TOKENS - 1) / (times[-1] - times[0])


def _qwq(contender: Contender) -> tuple[Call, float, float]:
    """The engine with its sampler, as a request sees it."""
    import qwq
    from qwq.engine import SamplingParams
    from qwq.kernels.decode import FastDecode

    lm = qwq.load("smollm2")

    def call(prompt: list[int]) -> float:
        times: list[float] = []
        ended = threading.Event()

        def on_token(request: object, token: int | None, reason: str | None) -> None:
            if token is None:
                ended.set()
            else:
                times.append(time.perf_counter())

        lm.engine.submit(prompt, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), on_token)
        ended.wait()
        return _rate(times)

    decode = lm.engine.decode
    weights = decode.weight_bytes if isinstance(decode, FastDecode) else 4 * lm.config.num_parameters()
    return call, weights, lm.config.kv_bytes_per_token()


class _Clock:
    """A streamer of `transformers`: when each new token came. It is first given the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _transformers(contender: Contender) -> tuple[Call, float, float]:
    """`generate` with the cache and attention that are named; compiled as its documentation has it."""
    import transformers

    dtype, attention, cache, folder = contender.options
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    ).eval()
    if contender.peer == "transformers-compiled":
        model.forward = torch.compile(model.forward)
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0}
    options |= {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    if cache == "static cache":
        options["cache_implementation"] = "static"

    def call(prompt: list[int]) -> float:
        clock, ids = _Clock(), torch.tensor([prompt])
        model.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **options)
        return _rate(clock.times[1:])

    size, c = 4 if dtype == "float32" else 2, model.config
    cached = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    return call, size * model.num_parameters(), size * cached


def _llama_cpp(contender: Contender) -> tuple[Call, float, float]:
    """llama.cpp's server on the same file, with its own timings."""
    import xllamacpp

    path = builtin.fetch("smollm2")
    flash, poll = contender.options
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity = 2048, 1, -1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(int(flash.endswith("on")))
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads, cpu.poll = contender.threads, int(poll.removeprefix("poll "))
    server = xllamacpp.Server(params)

    def call(prompt: list[int]) -> float:
        request = {"prompt": prompt, "n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        timings = server.handle_completions(request)["timings"]
        assert timings["predicted_n"] == NEW_TOKENS
        return timings["predicted_per_second"]

    reader = gguf.open_gguf(path)
    cached = gguf.read_config(reader, path).kv_bytes_per_token(2)  # its cache is float16
    return call, sum(int(tensor.n_bytes) for tensor in reader.tensors), cached
