"""`qwq data build`: sources through the stages, in order and counted, to documents, held-out ones and report.json.

What looks at one document at a time runs on pieces of the input, on any number of cores or machines
(`pipeline_parts`). What compares documents with each other then runs over the sketches of all pieces in their order,
and once more over the pieces with what that decided (`pipeline_join`). Documents stream: beside one document, memory
holds hashes (of documents, paragraphs and the n-grams of what must not be trained on). A stage is a callable that
changes the document or returns the reason why it goes.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qwq.data.decontaminate import NgramIndex, index_folder, index_wheel
from qwq.data.demo import OTHER_BENCHMARKS, PackageSource, WritingBench
from qwq.data.documents import read_documents
from qwq.data.filters_learned import LearnedQuality, quality_model
from qwq.data.harm import Harm, harm_model
from qwq.data.language import lid_model
from qwq.data.pipeline_join import join
from qwq.data.pipeline_parts import Settings, Stage, key_of, make_pieces
from qwq.data.sources import SetAside, Source, open_sources
from qwq.errors import QwqError, UsageError

SHOWN = 20  # files set aside that are named on the screen; report.json has all


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
        join(folder, list(pieces), out, report, set_aside, workers)
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


def heldout_documents(folder: Path | str) -> dict[str, list[str]]:
    """Held-out texts by language ("en", "zh", "code") of a folder that `build` wrote."""
    files = sorted((Path(folder) / "heldout").glob("*.jsonl.zst"))
    if not files:
        raise QwqError(
            f"{folder} has no held-out documents: its corpus is too small, or `qwq data build` did not write it"
        )
    return {file.name.split(".")[0]: [document.text for document in read_documents(file)] for file in files}
