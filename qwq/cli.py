"""The command line: each verb calls one function of one room. Exit codes: 0 done, 1 failed, 2 wrong use."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction

from qwq.errors import QwqError, UsageError

app = tyro.extras.SubcommandApp()
data = tyro.extras.SubcommandApp()
tokenizer = tyro.extras.SubcommandApp()
app.command(data, name="data", help="Documents and token shards: build, tokenize.")
app.command(tokenizer, name="tokenizer", help="Tokenizers: train.")
Json = Annotated[bool, tyro.conf.FlagCreatePairsOff]
BENCHES = "ablation attention corpus data decode depth moe nano objectives tokenizer train".split()


@app.command
def quickstart(minutes: float = 5.0, out: Path = Path("quickstart"), port: int = 8000, no_serve: Json = False) -> None:
    """The whole path on this machine: corpus, tokenizer, training, report, chat page.

    Args:
        minutes: how long to train.
        out: where everything goes; run again, it goes on where it was.
        port: of the page.
        no_serve: stop after the report.
    """
    from qwq.quickstart import quickstart as run

    run(minutes, out, port=None if no_serve else port)


@data.command(name="build")
def data_build(
    sources: Positional[tuple[str, ...]] = ("demo",),
    /,
    *,
    out: Path,
    workers: int | None = None,
    executor: str = "process",
    quality: float | None = None,
) -> None:
    """Read, clean, deduplicate and decontaminate sources into documents, report.json and report.html.

    Args:
        sources: files, folders, "hf:org/name", or "demo" for the corpus from public packages.
        out: the folder to write; an interrupted build goes on where it was.
        workers: processes; left out, one a core.
        executor: process, datatrove, ray or slurm:PARTITION. The result is the same.
        quality: drop documents below this score of the quality classifier, 0 to 1; left out, none.
    """
    from qwq.data.pipeline import build

    report = build(list(sources), out, workers=workers, executor=executor, quality=quality)
    print(json.dumps({k: report[k] for k in ("languages", "set_aside")}, ensure_ascii=False))


@data.command(name="tokenize")
def data_tokenize(docs: Positional[Path], /, *, tokenizer: str, out: Path) -> None:
    """Turn documents into memory-mapped token shards with a manifest.

    Args:
        docs: a folder that `qwq data build` wrote, or one documents file.
        tokenizer: a folder with a tokenizer, or a .gguf file.
        out: the folder to write.
    """
    from qwq.data.shards import tokenize
    from qwq.tokenizer import load_tokenizer

    manifest = tokenize(docs, load_tokenizer(tokenizer), out)
    print(json.dumps({k: v for k, v in manifest.items() if k != "shards"}, ensure_ascii=False))


@tokenizer.command(name="train")
def tokenizer_train(docs: Positional[Path], /, *, vocab_size: int, out: Path) -> None:
    """Train a SentencePiece tokenizer (BPE with byte fallback) on documents.

    Args:
        docs: a folder that `qwq data build` wrote, or one documents file.
        vocab_size: pieces in all, control tokens included.
        out: the folder to write.
    """
    from qwq.data.documents import read_documents
    from qwq.tokenizer import train_sentencepiece

    trained = train_sentencepiece((d.text for d in read_documents(docs)), vocab_size, out)
    print(f"{trained.vocab_size} pieces in {out}")


@app.command
def train(*recipe_and_flags: Positional[str]) -> None:
    """Train a recipe (qwq-nano, qwq-small or a JSON file); `qwq train RECIPE --help` lists every field as a flag."""
    from qwq.recipes.command import main as run

    run(list(recipe_and_flags))


@app.command
def plan(
    recipe: Positional[str], /, *, gpus: int, gpu: str = "h100", tokens: int | None = None, json: Json = False
) -> None:
    """What a training run would take that is not started: layout, memory, traffic, time and energy.

    Args:
        recipe: a recipe's name (qwq-32b-sparse) or a JSON file.
        gpus: how many.
        gpu: which kind: h100, h200, a100, ...
        tokens: to train on; left out, the recipe's.
        json: print one JSON object.
    """
    from qwq.recipes import find
    from qwq.train.plan_cluster import plan as run
    from qwq.train.plan_cluster import print_plan

    found = run(find(recipe), gpus, gpu, tokens)
    if json:
        _print_json(**found)
    else:
        print_plan(found)


@app.command(name="eval")
def evaluate(
    *,
    model: str,
    tasks: str | None = None,
    suite: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    unsafe: Json = False,
    json: Json = False,
) -> None:
    """Measure a model on benchmarks, from local files in their official formats.

    Args:
        model: a folder, a .gguf file, a hub id or a built-in name (smollm2).
        tasks: names with commas between them; a wrong one lists them all.
        suite: "scorecard" measures every row of the evaluation and writes scorecard.html.
        data_dir: the folder of data sets; left out, QWQ_DATA_DIR.
        limit: examples of each task at most.
        fewshot: examples in front of each question; left out, the task's own number.
        seed: of the examples that are drawn.
        out: the report, JSON; finished answers are kept beside it, so that an interrupted run goes on.
        unsafe: run generated code even where nothing contains it.
        json: print one JSON object.
    """
    from qwq.evals import run

    names = None if tasks is None else [name.strip() for name in tasks.split(",")]
    run(model, names, suite, data_dir, limit, out, json, unsafe, fewshot=fewshot, seed=seed)


@app.command
def generate(
    *,
    model: str,
    prompt: str,
    max_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    json: Json = False,
) -> None:
    """Continue a prompt; "-" reads it from standard input.

    Args:
        model: a folder, a .gguf file, a hub id or a built-in name (smollm2).
        prompt: the text to continue.
        max_tokens: tokens to write at most.
        temperature: 0 is greedy; left out, the model's own default.
        top_p: keep the smallest set of tokens that reaches this probability.
        top_k: keep the most likely k tokens.
        min_p: keep tokens at least this likely, relative to the most likely one.
        seed: makes sampling reproducible.
        json: print one JSON object with text, usage and finish_reason.
    """
    import qwq

    sampling = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
    lm = qwq.load(model)
    text, last = "", None
    for last in lm.stream(sys.stdin.read() if prompt == "-" else prompt, **sampling):
        text += last.content
        if not json:
            print(last.content, end="", flush=True)
    if not json:
        print()
        return
    assert last is not None
    assert last.usage is not None
    _print_json(model=model, text=text, finish_reason=last.finish_reason, usage=dataclasses.asdict(last.usage))


@app.command
def chat(*, model: str, system: str | None = None, temperature: float | None = None, seed: int | None = None) -> None:
    """Talk to a model in the terminal. Ctrl-C stops an answer, Ctrl-D ends.

    Args:
        model: a folder, a .gguf file, a hub id or a built-in name (smollm2).
        system: the system prompt.
        temperature: 0 is greedy; left out, the model's own default.
        seed: makes sampling reproducible.
    """
    import qwq

    lm = qwq.load(model)
    sampling = _given(temperature=temperature, seed=seed)
    messages: list[dict] = [] if system is None else [{"role": "system", "content": system}]
    while True:
        try:
            question = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question:
            continue
        messages.append({"role": "user", "content": question})
        answer = ""
        try:
            for delta in lm.chat_stream(messages, **sampling):
                answer += delta.content
                print(f"\033[2m{delta.reasoning}\033[0m" if delta.reasoning else delta.content, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        print()
        messages.append({"role": "assistant", "content": answer})


@app.command
def serve(
    *,
    model: Annotated[list[str], UseAppendAction],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    max_batch_size: int = 8,
) -> None:
    """Serve models: an OpenAI-compatible API and a chat page.

    Args:
        model: what to serve; give the flag again for each further model.
        host: the address to listen on; any but a loopback address demands an API key.
        port: the port.
        api_key: what clients must send as "Authorization: Bearer ..."; or set QWQ_API_KEY.
        max_batch_size: requests that run at one time; more wait.
    """
    import qwq
    from qwq.engine import LanguageModel
    from qwq.serve import serve as run

    if not model:
        raise UsageError("nothing to serve: give --model, for example --model smollm2")
    models: dict[str, LanguageModel] = {}
    for given in model:
        lm = qwq.load(given, max_batch_size=max_batch_size)
        models[given if lm.name in models else lm.name] = lm  # of two with one name, the second is called as given
    run(models, host, port, api_key)


@app.command
def convert(model: Positional[str], /, *, to: Literal["qwq", "hf", "gguf"], out: Path) -> None:
    """Write a model in another format; what has no slot in it is refused by name.

    Args:
        model: a folder, a .gguf file, a hub id or a built-in name.
        to: qwq (this project's own) or hf (a folder that transformers reads).
        out: the folder to write.
    """
    from qwq.checkpoint import convert as run

    source = run(model, to, out)
    print(f"{source.name} ({source.format}, {source.config.num_parameters():,} parameters) -> {out} ({to})")


@app.command
def info(model: Positional[str], /, *, json: Json = False) -> None:
    """What a model is: its shape, parameters, memory, context and tokenizer.

    Args:
        model: a folder, a .gguf file, a hub id, a built-in name, or a preset (qwq-nano, qwq-small, qwq-32b).
        json: print one JSON object.
    """
    from qwq.model import PRESETS

    extra: dict[str, Any]
    if model in PRESETS:
        config, extra = PRESETS[model], {"format": "preset"}
    else:
        from qwq.checkpoint import load

        checkpoint = load(model)
        config = checkpoint.config
        extra = {
            "format": checkpoint.format,
            "path": str(checkpoint.path),
            "tokenizer": {
                "vocab_size": checkpoint.tokenizer.vocab_size,
                "eos": list(checkpoint.tokenizer.eos_token_ids),
            },
            "generation": checkpoint.generation,
        }
    facts = {
        "model": model,
        **extra,
        "parameters": config.num_parameters(),
        "bytes_float32": 4 * config.num_parameters(),
        "kv_bytes_per_token_float32": config.kv_bytes_per_token(),
        "gflops_per_token": round(config.flops_per_token(0) / 1e9, 3),
        "config": dataclasses.asdict(config),
    }
    if json:
        _print_json(**facts)
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{key}:", *(f"\n  {k:28} {v}" for k, v in value.items()))
        else:
            print(f"{key:30} {value:,}" if isinstance(value, int) else f"{key:30} {value}")


@app.command
def bench(*name_and_flags: Positional[str]) -> None:
    """Measure against peers, interleaved in one run; `qwq bench NAME --help` lists the flags."""
    import importlib

    name, *flags = name_and_flags or ("",)
    if name not in BENCHES:
        raise UsageError(f"no benchmark {name!r}; there are {', '.join(BENCHES)}")
    if flags[-1:] == ["--json"]:
        flags.append("-")  # the path may be left out
    tyro.cli(importlib.import_module(f"qwq.bench.{name}").run, prog=f"qwq bench {name}", args=flags)


def _given(**values: Any) -> dict[str, Any]:
    """What was given on the command line; the rest is the model's own default."""
    return {name: value for name, value in values.items() if value is not None}


def _print_json(**fields: object) -> None:
    print(json.dumps(fields, ensure_ascii=False))


def main() -> None:
    """The entry point of `qwq`. Whatever a person did wrong ends as one line on standard error."""
    os.environ.setdefault("OMP_NUM_THREADS", str(min(os.cpu_count() or 1, 16)))
    # Threads that wait for each other sleep: spinning, they take the core from the thread they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's tensors in large pages: 7 % of a step (docs/log.md)
    arguments = sys.argv[1:]
    try:
        if arguments[:1] in (["train"], ["bench"]):  # which flags there are, the recipe or the benchmark decides
            {"train": train, "bench": bench}[arguments[0]](*arguments[1:])
        else:
            app.cli(prog="qwq", args=arguments, description="From raw text to a safe chat page.")
        sys.stdout.flush()
    except UsageError as error:
        _fail(error, 2)
    except QwqError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted", 1)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: object, code: int) -> None:
    print(f"qwq: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
