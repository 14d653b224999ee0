"""`qwq data build`: sources through the stages, in order and counted, to documents, held-out ones and report.json.

Two passes. What looks at one document at a time runs on pieces of the input, on any number of cores or machines
(`pipeline_parts`). What compares documents with each other then runs over the pieces in their order. Documents stream:
beside one document, memory holds hashes (of documents, paragraphs and the n-grams of what must not be trained on).
A stage is a callable that changes the document or returns the reason why it goes.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qwq.checkpoint.files import new_folder
from qwq.data.decontaminate import NgramIndex, index_folder, index_wheel
from qwq.data.dedup import ExactDedup, NearDedup, ParagraphDedup
from qwq.data.demo import OTHER_BENCHMARKS, PackageSource, WritingBench
from qwq.data.documents import Document, DocumentWriter, read_documents, read_jsonl
from qwq.data.filters_learned import LearnedQuality, quality_model
from qwq.data.harm import Harm, harm_model
from qwq.data.language import lid_model
from qwq.data.pipeline_parts import Funnel, Settings, Stage, key_of, make_pieces, new_count, tallied
from qwq.data.report import Kept, write_report
from qwq.data.sources import SetAside, Source, open_sources
from qwq.errors import QwqError, UsageError

SHOWN = 20  # files set aside that are named on the screen; report.json has all
HELDOUT_FRACTION = 0.03  # of the documents, chosen by their hash
HELDOUT_BYTES = 300_000  # at most, a language; half of it from one source, a fifth in one document
HELDOUT_AFTER = 20  # documents that are kept first, so that a tiny corpus trains on all it has
HELDOUT_SHARED = 0.05  # a training document with this share of its n-grams, or with
HELDOUT_RUN = 60  # this many of them, in the held-out documents is dropped


def build(
    sources: list[str],
    out: Path | str,
    *,
    evaluation_dir: Path | str | None = None,
    quality: float | None = None,
    workers: int | None = None,
    executor: str = "process",
    progress: bool = True,
) -> dict:
    """Build a corpus and return its report.

    sources: names (`demo`, `chinese-poetry`, `hf:org/name`) or paths; none means `demo`. out: a new folder, or one that
    an earlier build wrote, which is replaced as a whole at the end. evaluation_dir: evaluation sets to stay clear of
    (default QWQ_DATA_DIR). quality: drop prose that the classifier of clean prose gives less, 0 to 1. workers:
    processes (default: one a core). executor: see `make_pieces`; the result is the same to the byte. Writes
    documents/*.jsonl.zst, heldout/{en,zh,code}.jsonl.zst, duplicates.jsonl, report.json and report.html. A build that
    was stopped leaves its pieces in .OUT.pieces, and the same call goes on from them. `QwqError` when nothing is left;
    `UsageError` for a source that is not known or a folder with other things in it.
    """
    out = Path(out)
    if out.exists() and not (out / "report.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not a folder that `qwq data build` wrote; give another --out")
    opened = open_sources(sources or ["demo"])
    report: dict = {"sources": {}, "languages": {}, "stages": {}, "decontamination": {}, "heldout": {}, "set_aside": []}
    console = Console(stderr=True)

    def set_aside(file: str, reason: str) -> None:
        report["set_aside"].append({"file": file, "reason": reason})
        if progress and len(report["set_aside"]) <= SHOWN:
            console.print(f"set aside {file}: {reason}", markup=False, highlight=False, soft_wrap=True)

    available = _prepared(opened, set_aside)
    evaluation = Path(found) if (found := evaluation_dir or os.environ.get("QWQ_DATA_DIR")) else None
    index = _evaluation_index(available, evaluation, report["decontamination"], set_aside)
    lid, report["language_note"] = lid_model()
    learned: dict[str, Stage] = {"harm": Harm(harm_model(evaluation))}
    if quality is not None:
        learned = {"learned_quality": LearnedQuality(str(quality_model()), quality)} | learned
    settings = Settings(index, lid, learned)
    folder = out.with_name(f".{out.name}.pieces")
    try:
        pieces = _pieces(available, settings, folder, executor, workers, console if progress else None)
        _join(folder, list(pieces), out, report, set_aside)
    except KeyboardInterrupt:
        raise QwqError(f"stopped; what is done is kept in {folder}, and the same command goes on from it") from None
    shutil.rmtree(folder)
    return report


def _pieces(
    sources: list[Source], settings: Settings, folder: Path, executor: str, workers: int | None, console: Console | None
) -> dict[str, Source]:
    """The pieces of all sources by key, in order, each of them made; behind a progress bar with rate and time left."""
    fingerprint = settings.fingerprint()
    pieces = {key_of(piece, fingerprint): piece for source in sources for piece in source.pieces()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QwqError(f"cannot write {folder}: {error.strerror or error}") from None
    columns = [TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=console is None) as bar:
        task = bar.add_task("", total=sum(p.size for k, p in pieces.items() if not (folder / f"{k}.json").is_file()))
        make_pieces(pieces, settings, folder, executor, workers, lambda size: bar.advance(task, size))
    return pieces


def _documents(pieces: Path, keys: list[str], report: dict, funnel: Funnel, set_aside: SetAside) -> Iterator[Document]:
    """The documents of all pieces; on the way, the counts of their first stages."""
    for key in keys:
        summary = json.loads((pieces / f"{key}.json").read_text(encoding="utf-8"))
        funnel.add(summary["stages"])
        for file, reason in summary["set_aside"]:
            set_aside(file, reason)
        for name, count in summary["sources"].items():
            total = report["sources"].setdefault(name, new_count(count["license"]))
            for number in ("read", "bytes_read"):
                total[number] += count[number]
        if summary["documents"]:
            yield from read_jsonl(pieces / f"{key}.jsonl.zst")


def _join(pieces: Path, keys: list[str], out: Path, report: dict, set_aside: SetAside) -> None:
    """The stages that compare documents with each other, over all pieces in order, into the folder `out`."""
    with new_folder(out) as folder, ExitStack() as stack:
        duplicates = stack.enter_context(open(folder / "duplicates.jsonl", "w", encoding="utf-8"))

        def matched(document: Document, kept: str, similarity: float = 1.0) -> None:
            record = {"dropped": document.hash, "kept": kept, "source": document.source, "similarity": similarity}
            duplicates.write(json.dumps(record) + "\n")

        first, paragraphs, near = Funnel({}), ParagraphDedup(), NearDedup(matched)
        stages: dict[str, Stage] = {
            "exact_dedup": ExactDedup(matched),
            "near_dedup": near,
            "paragraph_dedup": paragraphs,
        }
        funnel = Funnel(stages)
        heldout = HeldOut(folder / "heldout")
        with DocumentWriter(folder / "first-pass.jsonl.zst", level=1) as kept:
            for document in _documents(pieces, keys, report, first, set_aside):
                if funnel(document) and (kept.count < HELDOUT_AFTER or not heldout.takes(document)):
                    kept.write(document)
        heldout.close()
        second, count = Funnel({"heldout_overlap": heldout.overlap}), Kept()
        with DocumentWriter(folder / "documents") as writer:
            for document in read_documents(folder / "first-pass.jsonl.zst") if kept.count else ():
                if second(document):
                    before = writer.bytes
                    writer.write(document)
                    count(document, writer.bytes - before)
                    source = report["sources"].setdefault(document.source, new_count(document.license))
                    source["kept"] += 1
                    source["bytes"] += writer.bytes - before
        report["stages"] = first.counts | funnel.counts | second.counts
        if not writer.count:
            shutil.rmtree(pieces)
            raise QwqError(_empty(report, report["stages"]))
        (folder / "first-pass.jsonl.zst").unlink()
        removed = {"removed_paragraphs": paragraphs.removed_paragraphs, "removed_bytes": paragraphs.removed_bytes}
        report["stages"]["paragraph_dedup"] |= removed
        pairs = [{"dropped": a, "kept": b, "documents": n} for (a, b), n in sorted(near.pairs.items())]
        report["stages"]["near_dedup"]["pairs"] = pairs
        report["decontamination"]["dropped"] = dict(tallied(first.counts, "decontamination"))
        report["heldout"] = heldout.counts()
        report["documents"], report["bytes"] = writer.count, writer.bytes
        report |= {"languages": count.languages, "licenses": count.licenses, "examples": count.examples}
        write_report(folder / "report.html", report)
        (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _prepared(sources: list[Source], set_aside: SetAside) -> list[Source]:
    """The sources that can be had; packages are fetched side by side."""

    def prepare(source: Source) -> str:
        try:
            if isinstance(source, PackageSource):
                source.prepare()
        except QwqError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(3) as pool:
        problems = list(pool.map(prepare, sources))
    for source, problem in zip(sources, problems, strict=True):
        if problem:
            set_aside(source.name, f"left out: {problem}")
    available = [source for source, problem in zip(sources, problems, strict=True) if not problem]
    if not available:
        raise QwqError(f"no source can be had: {problems[0]}")
    return available


def _evaluation_index(sources: list[Source], folder: Path | None, report: dict, set_aside: SetAside) -> NgramIndex:
    """The n-grams of every evaluation set at hand, and in the report which those are."""
    index = NgramIndex()
    if folder is not None and folder.is_dir():
        index_folder(index, folder, set_aside)
    elif folder is not None:
        raise UsageError(f"{folder}, the folder of evaluation sets, does not exist; unset QWQ_DATA_DIR or correct it")
    else:
        report["note"] = "QWQ_DATA_DIR is not set: no evaluation set of your own was checked"
    for source in sources:
        if isinstance(source, WritingBench):  # its package holds other benchmarks besides
            index_wheel(index, source.prepare(), OTHER_BENCHMARKS, set_aside)
    report["ngrams"] = len(index)
    report["sets"] = {n: {"texts": index.texts[n], "too_short_to_check": index.too_short[n]} for n in index.names}
    return index


def _empty(report: dict, stages: dict[str, dict]) -> str:
    """One line that says why nothing is left."""
    read = sum(source["read"] for source in report["sources"].values())
    reasons = ", ".join(f"{n} {reason}" for stage in stages.values() for reason, n in stage["dropped"].items())
    if reasons:
        return f"empty corpus: all {read} documents were dropped ({reasons}); docs/data.md explains the rules"
    if report["set_aside"]:
        first = report["set_aside"][0]
        return f"empty corpus: nothing could be read; the first file set aside is {first['file']}: {first['reason']}"
    return "empty corpus: the sources hold no file that a reader knows (.txt, .md, .jsonl, .py ...)"


class HeldOut:
    """Documents kept out of training, by language, to measure bits per byte on; and what is too close to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, DocumentWriter] = {}
        self._bytes: Counter[tuple[str, str]] = Counter()  # by language and source
        self._index = NgramIndex()
        folder.mkdir()

    def takes(self, document: Document) -> bool:
        """Whether this document is held out (and then it is written): some 3 %, by hash, and no dialogue."""
        if document.kind == "dialogue" or int(document.hash, 16) >= HELDOUT_FRACTION * 2**64:
            return False
        language, size = document.language, len(document.text.encode())
        if language not in self._writers:
            self._writers[language] = DocumentWriter(self._folder / f"{language}.jsonl.zst")
        writer = self._writers[language]
        of_source = self._bytes[language, document.source] + size
        if size > HELDOUT_BYTES / 5 or of_source > HELDOUT_BYTES / 2 or writer.bytes + size > HELDOUT_BYTES:
            return False
        self._bytes[language, document.source] = of_source
        writer.write(document)
        self._index.add(language, document.text)
        return True

    def overlap(self, document: Document) -> str | None:
        """Drops what shares more than chance and idiom with a held-out document."""
        hits, total, _ = self._index.overlap(document.text)
        return "in_heldout" if hits and (hits >= HELDOUT_RUN or hits > HELDOUT_SHARED * total) else None

    def counts(self) -> dict:
        """{language: {documents, bytes}}."""
        return {name: {"documents": w.count, "bytes": w.bytes} for name, w in sorted(self._writers.items()) if w.count}

    def close(self) -> None:
        """End the files."""
        for writer in self._writers.values():
            writer.close()


def heldout_documents(folder: Path | str) -> dict[str, list[str]]:
    """Held-out texts by language ("en", "zh", "code") of a folder that `build` wrote."""
    files = sorted((Path(folder) / "heldout").glob("*.jsonl.zst"))
    if not files:
        raise QwqError(
            f"{folder} has no held-out documents: its corpus is too small, or `qwq data build` did not write it"
        )
    return {file.name.split(".")[0]: [document.text for document in read_documents(file)] for file in files}
