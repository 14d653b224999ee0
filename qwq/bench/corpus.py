"""`qwq bench corpus`: what a corpus teaches `qwq-nano`: filtered and deduplicated, or as it came; augmented, or not.

One recipe, as many tokens, one tokenizer and one held-out set for all: only the training text differs. From the raw
corpus nothing is gone but what overlaps with the held-out text. Augmentation is for those who have little text: its
arms read a small part of the filtered corpus several times over. Noisy input: half a text with words and letters
changed, of which the untouched continuation is scored.
"""

import random
import shutil
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from qwq.bench import common, nano, runs
from qwq.bench.data import prepare
from qwq.data import build, read_documents, tokenize
from qwq.data.augment import Reword, SameCategory, WordNet, WordNoise, both, by_words, reworded, split_words
from qwq.data.decontaminate import NgramIndex
from qwq.data.documents import Document, DocumentWriter
from qwq.data.pipeline import heldout_documents
from qwq.data.pipeline_join import HELDOUT_RUN, HELDOUT_SHARED
from qwq.data.translate import Apertium, back_translation
from qwq.recipe import Recipe
from qwq.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from qwq.train.evaluate import HeldOut, score

ARMS = ("raw", "filtered", "small", "small-words", "small-back-translation")
COMPARED = (("filtered", "raw"), ("small-words", "small"), ("small-back-translation", "small"))
SMALL = 150_000  # bytes a language, English and Chinese
RATE = 0.1  # of words replaced, of words inserted, and of words left out
VOCAB_SIZE = 8192
CONTEXT = 256  # tokens of noisy text in front, and of clean text behind
ROWS = 40  # noisy rows a language
BEGIN, END = "<!-- written by qwq bench corpus -->", "<!-- end of what is written -->"


def run(
    json_path: common.JsonPath = None,
    *,
    steps: int = 200,
    seeds: int = 3,
    folder: Path = Path("bench-corpus"),
    raw: Path = Path("bench-data"),
    page: Path = Path("docs/data.md"),
) -> dict:
    """Train every arm with every seed for `steps` of 1,024 tokens on one core each, and write the tables into `page`.

    Finished runs are kept in `folder`/runs.jsonl, so an interrupted comparison goes on where it was.
    """
    prepare(raw)
    make(folder, raw / "raw")
    recipe = nano.dense().to_dict()
    jobs = [{"arm": arm, "seed": seed, "steps": steps, "recipe": recipe} for seed in range(seeds) for arm in ARMS]
    results = runs.train_all(jobs, folder, fit)
    bits: dict[str, dict[str, list[float]]] = {arm: {} for arm in ARMS}
    for result in results:
        for domain, value in result["bits_per_byte"].items():
            bits[result["job"]["arm"]].setdefault(domain, []).append(value)
    rows = []
    for better, base in COMPARED:
        for domain, ours in bits[better].items():
            theirs = bits[base][domain]
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            means, spread = (statistics.mean(ours), statistics.mean(theirs)), (min(ratios), max(ratios))
            setting = f"{steps} steps, {seeds} seeds"
            case, ratio = f"{better}-{domain}", statistics.median(ratios)
            rows.append(common.Row(case, base, setting, *means, "bits/byte", ratio, spread, None))
    if page.is_file():
        write(page, bits, results[0]["tokens"])
    return common.report("corpus", rows, common.limits(), common.versions(), json_path, bits=bits, runs=results)


def make(folder: Path, raw: Path) -> None:
    """Corpus, tokenizer and token shards of every arm, each made once."""
    filtered = folder / "filtered" / "corpus"
    (folder / "no-evaluation-sets").mkdir(parents=True, exist_ok=True)
    if not (filtered / "report.json").is_file():
        build([str(raw)], filtered, evaluation_dir=folder / "no-evaluation-sets")
    if not (folder / "tokenizer" / "tokenizer.json").is_file():
        train_sentencepiece((d.text for d in read_documents(filtered)), VOCAB_SIZE, folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    for arm in ARMS:
        place = folder / arm
        if (place / "tokens" / "manifest.json").is_file():
            continue
        if arm != "filtered":
            shutil.rmtree(place, ignore_errors=True)
            with DocumentWriter(place / "corpus" / "documents") as writer:
                for document in documents_of(arm, filtered, raw):
                    writer.write(document)
            shutil.copytree(filtered / "heldout", place / "corpus" / "heldout")
        shutil.copytree(folder / "tokenizer", place / "tokenizer", dirs_exist_ok=True)
        tokenize(place / "corpus", tokenizer, place / "tokens", progress=False)


def documents_of(arm: str, filtered: Path, raw: Path) -> Iterator[Document]:
    """What an arm trains on."""
    if arm == "raw":
        index = NgramIndex()
        for language, texts in heldout_documents(filtered).items():
            for text in texts:
                index.add(language, text)
        for document in read_documents(raw):
            hits, total, _ = index.overlap(document.text)
            if hits < HELDOUT_RUN and hits <= HELDOUT_SHARED * total:
                yield document
        return
    few = list(small(read_documents(filtered)))
    yield from few
    ways: dict[str, Reword] = {}
    if arm == "small-words":
        lexicon = both(WordNet(), SameCategory(document.text for document in few))
        ways = dict.fromkeys(("en", "zh"), by_words(WordNoise(lexicon, RATE)))
    elif arm == "small-back-translation":
        ways = {"en": back_translation(Apertium("eng-spa"), Apertium("spa-eng"))}
    for language, reword in ways.items():
        yield from reworded((d for d in few if d.language == language), reword, arm)


def small(documents: Iterable[Document]) -> Iterator[Document]:
    """English and Chinese prose of SMALL bytes each, in the order of the hashes."""
    room = {"en": SMALL, "zh": SMALL}
    for document in sorted(documents, key=lambda d: d.hash):
        size = len(document.text.encode())
        if size <= min(room.get(document.language, 0), SMALL // 5):
            room[document.language] -= size
            yield document


def noisy(text: str, draw: random.Random) -> str:
    """Of ten words one with two letters exchanged, one missing, one twice: the mistakes of fast typing."""
    pieces, places = split_words(text)
    for place in places:
        word, kind = pieces[place], draw.randrange(10)
        if kind == 0 and len(word) > 1:
            at = draw.randrange(len(word) - 1)
            pieces[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind < 3:
            pieces[place] = "" if kind == 1 else word * 2
    return "".join(pieces)


def noisy_rows(texts: list[str], tokenizer: Tokenizer) -> list[tuple[Tensor, Tensor]]:
    """(input_ids, labels) [1, <= 2 CONTEXT]: noisy text, whose labels are left out, and how it goes on, untouched."""
    rows: list[tuple[Tensor, Tensor]] = []
    draw = random.Random(0)
    for text in texts:
        half = len(text) // 2
        context = tokenizer.encode(noisy(text[max(0, half - 8 * CONTEXT) : half], draw))[-CONTEXT:]
        ids = torch.tensor([context + tokenizer.encode(text[half : half + 8 * CONTEXT])[:CONTEXT]])
        if len(context) > 1 and ids.shape[1] > len(context) and len(rows) < ROWS:
            labels = ids[:, 1:].clone()
            labels[:, : len(context) - 1] = -100
            rows.append((ids[:, :-1], labels))
    return rows


def fit(job: dict, folder: str) -> dict:
    """Train one arm for the job's steps on one thread; bits per byte of held-out text, clean and after noise."""
    torch.set_num_threads(1)
    place, recipe = Path(folder) / job["arm"], Recipe.from_dict(job["recipe"])
    arm = runs.ours(recipe, job["seed"])
    result = runs.fit(arm, job, place)
    tokenizer = load_tokenizer(place / "tokenizer")
    held = HeldOut(place / "tokens", tokenizer, recipe.data.seq_len, 1)
    texts = heldout_documents(place / "corpus")
    for language in ("en", "zh"):
        found = score(arm.scored, noisy_rows(texts.get(language, []), tokenizer), held.token_bytes)
        result["bits_per_byte"][f"{language}-after-noise"] = round(found.bits_per_byte, 5)
    return result


def write(page: Path, bits: dict[str, dict[str, list[float]]], tokens: int) -> None:
    """Put the tables between the two marks of `page`, if it has them."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text:
        return
    domains = list(bits[ARMS[0]])
    lines = [f"Bits per byte after {tokens:,} tokens: mean of the seeds and, in brackets, lowest and highest.", ""]
    lines += ["| held-out text | " + " | ".join(ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for domain in domains:
        cells = (bits[arm][domain] for arm in ARMS)
        shown = (f"{statistics.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in cells)
        lines.append(f"| {domain} | " + " | ".join(shown) + " |")
    lines.append("")
    for better, base in COMPARED:
        gains = {d: [100 * (1 - a / b) for a, b in zip(bits[better][d], bits[base][d], strict=True)] for d in domains}
        words = ", ".join(f"{d} {statistics.mean(g):+.1f} % ({min(g):+.1f} to {max(g):+.1f})" for d, g in gains.items())
        lines.append(f"- **{better}** against {base}, fewer bits paired by seed: {words}.")
    before, rest = text.split(BEGIN)
    body = "\n".join(lines)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
