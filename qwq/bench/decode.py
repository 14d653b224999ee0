"""`qwq bench decode`: tokens a second of one reply by SmolLM2-135M, here, in `transformers` and in llama.cpp.

All continue the same prompt greedily and are timed from the first new token to the last, so that reading the prompt is
not in it. Here and in llama.cpp the weights are the file's (Q4_1, embedding Q8_0); `transformers` has the same weights
dequantised. llama.cpp also quantises activations, to 8 bits; here they are float32.
"""

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import qwq
from qwq.bench import common
from qwq.checkpoint import builtin, convert
from qwq.engine import LanguageModel, SamplingParams
from qwq.errors import UsageError
from qwq.kernels.decode import FastDecode
from qwq.kernels.limits import read_gb_s

NEW_TOKENS = 128
TEXT = "The library of a small town keeps books, maps and letters that people have left there over the years. "
CASES = [("context-16", 2, 16), ("context-16", 1, 16), ("context-1024", 2, 1024)]  # name, threads, tokens of the prompt


@dataclass
class Contender:
    """`call(prompt)` gives tokens a second; `weights` and `cache` are the bytes that a token must read at least: of all
    weights, and of one earlier token's keys and values."""

    peer: str
    setting: str
    call: Callable[[list[int]], float]
    weights: float
    cache: float


def run(json_path: Path | None = None, *, rounds: int = 7) -> dict:
    """Find the fastest setting of each peer, then measure all contenders round by round."""
    try:
        found = common.versions("transformers", "xllamacpp")
        import transformers  # noqa: F401
        import xllamacpp  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{error}: the benchmark needs its peers, install them with `pip install qwq[bench]`"
        ) from None
    all_threads = torch.get_num_threads()
    measured = common.limits()
    rows: list[common.Row] = []
    reads, achieved = {}, {}
    lm = qwq.load("smollm2")
    try:
        ours, peers, sweep = _ours(lm), *_transformers(lm)
        for name, threads, length in CASES:
            if threads > all_threads:
                continue
            torch.set_num_threads(threads)
            case = f"smollm2-q4_1-{name}-{threads}-thread{'s' * (threads > 1)}"
            prompt, reads[case] = _prompt(lm, length), round(read_gb_s(), 2)
            llama_cpp, sweep[f"llama.cpp, {case}"] = _llama_cpp(lm, ours, prompt, threads)
            contenders = [ours, *peers, llama_cpp]
            for contender in contenders:  # what only the first call pays
                contender.call(prompt)
            calls = {c.peer: (lambda c=c, prompt=prompt: c.call(prompt)) for c in contenders}
            rates = common.interleave(calls, rounds)
            seen = length + NEW_TOKENS / 2
            achieved[case] = {
                c.peer: round(statistics.median(rates[c.peer]) * (c.weights + seen * c.cache) / 1e9, 2)
                for c in contenders
            }
            fraction = achieved[case]["qwq"] / reads[case]
            for c in contenders[1:]:
                row = common.compare(
                    case, rates["qwq"], rates[c.peer],
                    peer=c.peer, peer_setting=c.setting, unit="tokens/s", limit_fraction=fraction,
                )  # fmt: skip
                rows.append(row)
    finally:
        lm.close()
        torch.set_num_threads(all_threads)
    more = {"ours": ours.setting, "read_gb_s": reads, "achieved_gb_s": achieved, "sweep": sweep}
    return common.report("decode", rows, measured, found, json_path, **more)


def _prompt(lm: LanguageModel, length: int) -> list[int]:
    ids = lm.tokenizer.encode(TEXT * (length // 16 + 1))[:length]
    assert len(ids) == length
    return ids


def _rate(times: list[float]) -> float:
    """Tokens a second, from the moments when each of `NEW_TOKENS` tokens came."""
    assert len(times) == NEW_TOKENS
    return (NEW_TOKENS - 1) / (times[-1] - times[0])


def _ours(lm: LanguageModel) -> Contender:
    """The engine with its sampler, as a request sees it."""

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

    decode, cache = lm.engine.decode, lm.config.kv_bytes_per_token()
    if isinstance(decode, FastDecode):
        return Contender("qwq", "C++ kernel, quantised weights, float32 activations", call, decode.weight_bytes, cache)
    return Contender("qwq", "torch, float32 (no C++ compiler)", call, 4 * lm.config.num_parameters(), cache)


class _Clock:
    """A streamer of `transformers`: when each new token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.prompt_seen = False

    def put(self, ids: Any) -> None:
        if self.prompt_seen:
            self.times.append(time.perf_counter())
        self.prompt_seen = True

    def end(self) -> None:
        pass


def _transformers(lm: LanguageModel) -> tuple[list[Contender], dict[str, dict[str, float]]]:
    """The fastest way to run `transformers` without and with torch.compile, and the rates of all that were tried."""
    prompt, rates = _prompt(lm, CASES[0][2]), {}
    best: dict[str, tuple[float, Contender]] = {}
    with tempfile.TemporaryDirectory() as folder:
        convert("smollm2", "hf", Path(folder) / "hf")
        for dtype, attention, cache in itertools.product(
            ("float32", "bfloat16"), ("sdpa", "eager"), ("dynamic", "static", "static, compiled")
        ):
            contender = _transformers_setting(lm, Path(folder) / "hf", dtype, attention, cache)
            contender.call(prompt)
            rate = statistics.median(contender.call(prompt) for _ in range(3))
            rates[contender.setting] = round(rate, 1)
            if contender.peer not in best or rate > best[contender.peer][0]:
                best[contender.peer] = (rate, contender)
    return [contender for _, contender in best.values()], {"transformers": rates}


def _transformers_setting(lm: LanguageModel, folder: Path, dtype: str, attention: str, cache: str) -> Contender:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    ).eval()
    compiled = cache.endswith("compiled")
    if compiled:
        model.forward = torch.compile(model.forward)
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "pad_token_id": 0,
    }
    if cache != "dynamic":
        options["cache_implementation"] = "static"

    def call(prompt: list[int]) -> float:
        clock, ids = _Clock(), torch.tensor([prompt])
        model.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **options)
        return _rate(clock.times)

    size = 4 if dtype == "float32" else 2
    weights, seen = size * lm.config.num_parameters(), lm.config.kv_bytes_per_token(size)
    peer = f"transformers-{'compiled' if compiled else 'eager'}"
    return Contender(peer, f"{dtype}, attention {attention}, cache {cache}", call, weights, seen)


def _llama_cpp(
    lm: LanguageModel, ours: Contender, prompt: list[int], threads: int
) -> tuple[Contender, dict[str, float]]:
    """llama.cpp's server on the same file; flash attention and the waiting of its threads by trying."""
    best: tuple[float, Contender] | None = None
    rates: dict[str, float] = {}
    for flash, poll in itertools.product((0, 1), (50, 100)):
        contender = _llama_cpp_setting(lm, ours, threads, flash, poll)
        contender.call(prompt)
        rate = statistics.median(contender.call(prompt) for _ in range(3))
        rates[contender.setting] = round(rate, 1)
        if best is None or rate > best[0]:
            best = (rate, contender)
    assert best is not None
    return best[1], rates


def _llama_cpp_setting(lm: LanguageModel, ours: Contender, threads: int, flash: int, poll: int) -> Contender:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(builtin.fetch("smollm2"))
    params.n_ctx, params.n_parallel, params.verbosity = 2048, 1, -1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(flash)
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads, cpu.poll = threads, poll
    server = xllamacpp.Server(params)

    def call(prompt: list[int]) -> float:
        request = {"prompt": prompt, "n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        timings = server.handle_completions(request)["timings"]
        assert timings["predicted_n"] == NEW_TOKENS
        return timings["predicted_per_second"]

    seen = lm.config.kv_bytes_per_token(2)  # its cache is float16
    setting = f"{threads} threads, flash attention {'on' if flash else 'off'}, poll {poll}"
    return Contender("llama.cpp", setting, call, ours.weights, seen)
