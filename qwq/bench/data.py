"""`qwq bench data`: clean + dedup + filter of a corpus, here and by datatrove; and how well each finds near-duplicates.

The corpus is the demo one with what Debian packages have more of help, books and manuals in English and Chinese; those
that are not installed are left out, and the JSON says what was there. What is done is kept in the folder, so that an
interrupted run goes on.
"""

import contextlib
import gzip
import itertools
import json
import os
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qwq.bench import common
from qwq.data import build, read_documents
from qwq.data.characters import HAN, shape
from qwq.data.dedup import NearDedup, normal_key
from qwq.data.documents import Document
from qwq.data.language import language_of
from qwq.data.sources import open_sources
from qwq.kernels import minhash

SHARE = Path("/usr/share")
DEBIAN = [
    f"{where}/{name}" for where in ("doc/debian-handbook/html", "libreoffice/help") for name in ("en-US", "zh-CN")
] + ["debian-reference"]
FILES = 16  # a language
LANGUAGES = {"en": "eng", "zh": "zho", "code": "eng"}  # here and in datatrove
SETTINGS = ((1, "fork"), (2, "fork"), (4, "fork"), (2, "forkserver"))  # workers, start method
PAIRS, RANDOM_PAIRS = 20_000, 4_000
THRESHOLD = 0.75
BYTES = 20


def run(json_path: common.JsonPath = None, *, rounds: int = 3, folder: Path = Path("bench-data")) -> dict:
    """A sweep of datatrove's workers, `rounds` of both on the same files, and the pairs that each calls duplicates."""
    megabytes = prepare(folder)
    done = _Kept(folder / "rounds.jsonl")
    cores = len(os.sched_getaffinity(0))

    def peer(language: str, files: str, setting: Sequence, number: int) -> dict:
        key = {"who": "datatrove", "language": language, "files": files, "setting": setting, "round": number}
        return done(key, lambda: datatrove(folder, language, f"{language}-{files}.jsonl", *setting))

    sweep = [peer("en", "0[0-3]", setting, 0) for setting in SETTINGS]
    best = min(sweep, key=lambda result: result["seconds"])["setting"]
    ours, theirs = [], []
    done({"who": "warm-up"}, lambda: here(folder, folder / "raw" / "code-00.jsonl", cores))
    for number in range(rounds):
        ours.append(done({"who": "qwq", "round": number}, lambda: here(folder, folder / "raw", cores)))
        theirs.append([peer(language, "*", best, number) for language in LANGUAGES])
    rates = [megabytes / result["seconds"] for result in ours]
    their_rates = [megabytes / sum(part["seconds"] for part in parts) for parts in theirs]
    setting = f"Gopher, C4 and FineWeb filters, MinHash 14 x 8; {best[0]} workers ({best[1]}); ours: {cores} workers"
    case = f"build-{megabytes:.0f}-mb"
    rows = [common.compare(case, rates, their_rates, peer="datatrove", peer_setting=setting, unit="MB/s")]
    found = done({"who": "pairs"}, lambda: pairs(folder))
    for name, (values, spread) in found["scores"].items():
        ratio = values[0] / max(values[1], 1e-9)
        ours_share, their_share = values
        rows.append(
            common.Row(
                f"pairs-{name}", "datatrove", setting, ours_share, their_share, "share", ratio, tuple(spread), None
            )
        )
    more = {"sweep": sweep, "rounds": {"qwq": ours, "datatrove": theirs}, "pairs": found}
    more["sources"] = json.loads((folder / "sources.json").read_text())
    return common.report("data", rows, common.limits(), common.versions("datatrove", "spacy"), json_path, **more)


class _Kept:
    """Results by what they are of, a JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.found = {json.dumps(key): value for key, value in map(json.loads, lines)}

    def __call__(self, key: dict, make: Callable[[], dict]) -> dict:
        if (name := json.dumps(key)) not in self.found:
            self.found[name] = key | make()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self.found[name]]) + "\n")
        return json.loads(json.dumps(self.found[name]))


def prepare(folder: Path, sources: tuple[str, ...] = ("demo", "chinese-poetry"), share: Path = SHARE) -> float:
    """The texts as the sources have them, a JSON line each, FILES files a language; once. Returns their megabytes."""
    summary = folder / "sources.json"
    if not summary.is_file():
        shutil.rmtree(folder / "raw", ignore_errors=True)
        (folder / "raw").mkdir(parents=True)
        sizes, counts = Counter[str](), Counter[str]()
        with contextlib.ExitStack() as stack:
            names = [f"{language}-{i:02}.jsonl" for language in LANGUAGES for i in range(FILES)]
            files = {name: stack.enter_context(open(folder / "raw" / name, "w", encoding="utf-8")) for name in names}
            for document in _raw(sources, share):
                language = "code" if document.kind == "code" else language_of(document.text)
                language = language if language in LANGUAGES else "en"
                row = {"text": document.text, "source": document.source, "license": document.license}
                row |= {"language": "code", "kind": "code"} if language == "code" else {}
                line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode()
                files[f"{language}-{counts[language] % FILES:02}.jsonl"].write(line + "\n")
                counts[language] += 1
                sizes[document.source] += len(document.text.encode("utf-8", "replace"))
        summary.write_text(json.dumps({"documents": counts, "bytes": sizes}, indent=1) + "\n")
    return sum(json.loads(summary.read_text())["bytes"].values()) / 1e6


def _raw(sources: tuple[str, ...], share: Path) -> Iterator[Document]:
    folders = [share / name for name in DEBIAN if (share / name).is_dir()]
    for source in open_sources([*sources, *map(str, folders)]):
        for document in source.documents(lambda file, reason: None):
            if document.messages:
                document.text = "\n".join(message["content"] for message in document.messages)
            if document.text.strip():
                yield document
    for path in sorted((share / "man").glob("zh_*/*/*.gz")):  # with the formatter's marks: what a filter is for
        yield Document(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"), "manpages-zh")


def here(folder: Path, source: Path, workers: int) -> dict:
    """`qwq data build` on the files, from reading to the written corpus."""
    (folder / "no-evaluation-sets").mkdir(exist_ok=True)
    shutil.rmtree(folder / "ours", ignore_errors=True)
    start = time.perf_counter()
    report = build(
        [str(source)], folder / "ours", evaluation_dir=folder / "no-evaluation-sets", workers=workers, progress=False
    )
    result = {"seconds": round(time.perf_counter() - start, 2), "documents": report["documents"]}
    stages = {name: stage["in"] - stage["out"] for name, stage in report["stages"].items()}
    return result | {"bytes": report["bytes"], "dropped": stages}


def datatrove(folder: Path, language: str, pattern: str, workers: int, start_method: str) -> dict:
    """The filters of FineWeb and MinHash in four steps, with datatrove's executor, from reading to the written corpus.

    Filters as they come; for Chinese, as FineWeb 2 (arXiv 2506.20920) has them, without those of C4; for code none.
    """
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import filters
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.logging import logger

    logger.remove()
    steps: list[Any]
    work, name, config = folder / "datatrove", LANGUAGES[language], MinhashConfig()
    shutil.rmtree(work, ignore_errors=True)
    if language == "en":
        steps = [filters.GopherRepetitionFilter(), filters.GopherQualityFilter()]
        steps += [filters.C4QualityFilter(filter_no_terminal_punct=False), filters.FineWebQualityFilter()]
    elif language == "zh":
        steps = [filters.GopherRepetitionFilter(language=name)]
        steps += [filters.GopherQualityFilter(language=name, min_avg_word_length=1, min_stop_words=0, min_doc_words=20)]
        steps += [filters.FineWebQualityFilter(language=name, short_line_thr=1.0, char_duplicates_ratio=0.1)]
    else:
        steps = []
    at = {step: str(work / step) for step in ("filtered", "signatures", "buckets", "remove", "out")}
    tasks = min(FILES, 2 * workers)

    def execute(tasks: int, *pipeline: Any) -> None:
        logs = str(work / "logs" / str(time.time_ns()))
        with contextlib.redirect_stderr(open(os.devnull, "w")):
            LocalPipelineExecutor(
                list(pipeline), tasks, min(workers, tasks), logging_dir=logs, start_method=start_method
            ).run()

    def written() -> JsonlReader:
        return JsonlReader(at["filtered"])

    start = time.perf_counter()
    given = JsonlReader(str(folder / "raw"), glob_pattern=pattern)
    execute(tasks, given, *steps, JsonlWriter(at["filtered"], compression=None))
    execute(tasks, written(), MinhashDedupSignature(at["signatures"], config, language=name))
    execute(config.num_buckets, MinhashDedupBuckets(at["signatures"], at["buckets"], config=config))
    execute(1, MinhashDedupCluster(at["buckets"], at["remove"], config=config))
    execute(tasks, written(), MinhashDedupFilter(at["remove"]), JsonlWriter(at["out"], compression=None))
    seconds = round(time.perf_counter() - start, 2)
    left = [
        sum(len(file.read_bytes().splitlines()) for file in Path(at[s]).glob("*.jsonl")) for s in ("filtered", "out")
    ]
    return {"seconds": seconds, "filtered": left[0], "documents": left[1]}


def _signed(text: str, language: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple], np.ndarray]:
    """(shingles, signature) here, (shingles, buckets) in datatrove, and windows of bytes, which neither looks at."""
    from datatrove.pipeline.dedup import MinhashDedupSignature

    if language not in _SIGNERS:
        _SIGNERS[language] = MinhashDedupSignature(os.devnull, language=LANGUAGES[language])
    shingles = _SIGNERS[language].get_shingles(text)
    buckets = list(map(tuple, _SIGNERS[language].get_signature(shingles))) if shingles.size else []
    own = minhash.shingles(text), np.frombuffer(minhash.signature(text), np.uint16)
    return *own, np.unique(shingles), buckets, _byte_windows(text)


def _byte_windows(text: str) -> np.ndarray:
    """Hashes of every BYTES bytes of UTF-8 in a row, of letters and digits in lower case: knows no words, no script."""
    data = np.frombuffer("".join(filter(str.isalnum, text.lower())).encode("utf-8", "replace"), np.uint8)
    sums = np.zeros(max(0, len(data) - BYTES + 1), np.uint64)
    for j in range(BYTES):
        sums = sums * np.uint64(0x9E3779B97F4A7C15) + data[j : j + len(sums)]
    return np.unique(sums)


_SIGNERS: dict[str, Any] = {}


def pairs(folder: Path, workers: int | None = None) -> dict:
    """Precision and recall of both on sampled pairs, against exact Jaccard: over windows of bytes, and over the
    shingles of each.

    Sampled are pairs that either takes for candidates, and random ones; of documents that are not simply equal.
    """
    documents: dict[int, tuple[str, str]] = {}
    for path in sorted((folder / "raw").glob("*.jsonl")):
        for document in read_documents(path):
            documents.setdefault(normal_key(document), (document.text, path.name.split("-")[0]))
    with ProcessPoolExecutor(workers if workers is not None else len(os.sched_getaffinity(0))) as pool:
        signed = list(pool.map(_signed, *zip(*documents.values(), strict=True), chunksize=200))
    both = [len(one[0]) and len(one[2]) and len(one[4]) for one in signed]
    signed = list(itertools.compress(signed, both))
    chinese = [shape(text).counts[HAN] for text, _ in itertools.compress(documents.values(), both)]
    language = [language for _, language in itertools.compress(documents.values(), both)]
    signatures = np.array([one[1] for one in signed])
    near = NearDedup(lambda *match: None, THRESHOLD)
    bands = signatures[:, : near.bands * near.ROWS].reshape(len(signed), near.bands, near.ROWS)
    draw = random.Random(0)
    ours = _sharing([[band.tobytes() for band in row] for row in bands], draw)
    theirs = _sharing([one[3] for one in signed], draw)
    either = sorted(ours | theirs)
    candidates = draw.sample(either, min(len(either), PAIRS - RANDOM_PAIRS))
    chance = {tuple(sorted(draw.sample(range(len(signed)), 2))) for _ in range(PAIRS - len(candidates))}
    sample = [*candidates, *sorted(chance - set(candidates))]
    first, second = (np.array(column) for column in zip(*sample, strict=True))
    alike = (signatures[first] == signatures[second]).mean(1) >= THRESHOLD
    said = [np.array([pair in found for pair in sample]) for found in (ours, theirs)]
    said[0] &= alike
    scores, duplicates = {}, {}
    truths: dict[str, np.ndarray] = {}
    for name, part in (("bytes", 4), ("our-shingles", 0), ("datatrove-shingles", 2)):
        shingles: list[Any] = [one[part] for one in signed]
        truths[name] = truth = np.array([_jaccard(shingles[a], shingles[b]) for a, b in sample]) >= THRESHOLD
        duplicates[name] = int(truth.sum())
        for score, whole in (("precision", said), ("recall", [truth, truth])):
            right = [(one & truth, every) for one, every in zip(said, whole, strict=True)]
            values = [float(hit.sum() / max(1, every.sum())) for hit, every in right]
            places = np.random.default_rng(0).integers(0, len(truth), (200, len(truth)))
            shares = [hit[places].sum(1) / np.maximum(every[places].sum(1), 1) for hit, every in right]
            ratios = shares[0] / np.maximum(shares[1], 1e-9)
            scores[f"{score}-{name}"] = values, [float(np.quantile(ratios, q)) for q in (0.05, 0.95)]
    agreement = {
        "of all": float((said[0] == said[1]).mean()),
        "of either's": float((said[0] & said[1]).sum() / max(1, (said[0] | said[1]).sum())),
    }
    alone = truths["datatrove-shingles"] & ~truths["bytes"]
    mixed = [all(language[i] == "en" and chinese[i] for i in pair) for pair in itertools.compress(sample, alone)]
    agreement["alike by datatrove's shingles alone"] = int(alone.sum())
    agreement["of those, Chinese in a file taken for English"] = float(np.mean(mixed)) if mixed else 0.0
    counts = {"documents": len(signed), "sampled": len(sample), "candidates": [len(ours), len(theirs)]}
    return {"scores": scores, "agreement": agreement, "duplicates": duplicates, **counts}


def _sharing(rows: list[list], draw: random.Random, most: int = 40) -> set[tuple[int, int]]:
    """Pairs of rows that have the same entry at the same place; of large groups, those among some of its members."""
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        for place, entry in enumerate(row):
            groups[place, entry].append(number)
    few = (sorted(draw.sample(group, most)) if len(group) > most else group for group in groups.values())
    return {pair for group in few for pair in itertools.combinations(group, 2)}


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
