"""The whole path on one machine: public text, documents, tokenizer, token shards, a model, a report, a chat page.

Every stage leaves a folder; one whose folder is whole is not done again, so an interrupted run goes on where it was.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import qwq
from qwq.checkpoint import load
from qwq.data import pipeline, shards
from qwq.data.documents import read_documents
from qwq.engine import LanguageModel
from qwq.errors import QwqError
from qwq.recipes import RECIPES
from qwq.report import write_report
from qwq.serve import serve
from qwq.tokenizer import load_tokenizer, train_sentencepiece
from qwq.train.evaluate import HeldOut
from qwq.train.exits import exits_by_domain
from qwq.train.loop import Interrupted, train
from qwq.train.specialisation import expert_load_by_domain

CONFIDENCE = 0.5  # of an exit's best guess, for the mean depth in the report
REPORT_TOKENS = 8192  # held-out tokens of a domain, for the loads of experts and the mean depth
PROMPTS = {
    "en": "The history of the city begins",
    "zh": "中国的春天",
    "code": "def read_lines(path):\n",
}


def quickstart(minutes: float, out: Path, *, port: int | None) -> None:
    """Run every stage into `out`, training for `minutes`, then serve the page on `port` (None: stop before it)."""
    started = time.monotonic()
    recipe = RECIPES["qwq-nano"]()

    corpus, vocabulary, tokens, run = (out / name for name in ("corpus", "tokenizer", "tokens", "run"))
    if stage("corpus: text from public packages, cleaned and deduplicated", corpus / "report.json"):
        pipeline.build(["demo"], corpus)
    if stage("tokenizer: SentencePiece, byte-pair", vocabulary / "tokenizer.json"):
        train_sentencepiece((d.text for d in read_documents(corpus)), recipe.model.vocab_size, vocabulary)
    tokenizer = load_tokenizer(vocabulary)
    if stage("token shards", tokens / "manifest.json"):
        shards.tokenize(corpus, tokenizer, tokens)
    stage(f"training {recipe.name} for {minutes:g} minutes", run / "none")
    try:
        result = train(recipe, tokens, tokenizer, run, resume=(run / "recipe.json").is_file(), minutes=minutes)
    except Interrupted as stopped:
        raise Interrupted(f"{str(stopped).split(';')[0]}; the same command goes on from it") from None

    lm = LanguageModel(load(result.checkpoint), name=recipe.name)
    held_out = HeldOut(tokens, tokenizer, recipe.data.seq_len, REPORT_TOKENS)
    batches = {name: [inputs for inputs, _ in held_out.batches(ids)] for name, ids in held_out.domains.items()}
    experts = expert_load_by_domain(lm.model, batches)
    exits = exits_by_domain(lm.model, batches, CONFIDENCE)
    report = {
        "recipe": result.recipe.to_dict(),
        "parameters": lm.config.num_parameters(),
        "active_parameters": lm.config.num_parameters(active=True),
        "experts": {**dataclasses.asdict(experts), "load": experts.load.tolist()},
        "exits": {"confidence": CONFIDENCE, **{name: dataclasses.asdict(found) for name, found in exits.items()}},
        "tokens_per_second": result.tokens_per_second,
        "mfu": result.mfu,
        "scores": {domain: dataclasses.asdict(score) for domain, score in result.scores.items()},
        "corpus": json.loads((corpus / "report.json").read_text(encoding="utf-8")),
        "samples": dict(samples(lm)),
        "minutes": (time.monotonic() - started) / 60,
    }
    path = write_report(out / "report.html", report, run / "metrics.jsonl")
    bits = ", ".join(f"{domain} {score.bits_per_byte:.3f}" for domain, score in result.scores.items())
    say(f"held-out bits per byte: {bits}")
    say(f"report: {path.resolve().as_uri()}")
    if port is None:
        return

    models = {lm.name: lm}
    try:
        models["smollm2"] = qwq.load("smollm2")
    except QwqError as error:  # the page works with one model too
        say(f"left out: {error}")
    say(f"from the command to the page: {(time.monotonic() - started) / 60:.1f} minutes")
    serve(dict(reversed(models.items())), port=port)


def stage(what: str, done: Path) -> bool:
    """Announce a stage; whether it is still to do."""
    say(f"{what}{' (done before)' if done.is_file() else ''}")
    return not done.is_file()


def say(line: str) -> None:
    """One line for the person, on standard error."""
    print(f"== {line}", file=sys.stderr, flush=True)


def samples(lm: LanguageModel) -> Iterator[tuple[str, dict[str, str]]]:
    """What the model makes of a few prompts, by domain."""
    for domain, prompt in PROMPTS.items():
        text = lm.generate(prompt, max_tokens=80, temperature=0.7, top_p=0.9, seed=0)
        yield domain, {"prompt": prompt, "text": text}
