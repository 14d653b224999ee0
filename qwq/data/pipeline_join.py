"""The part of a build that compares documents with each other: duplicates, and what is held out of training.

First over the sketches of all pieces, in their order, in one process: it decides, and writes `KEY.verdicts`. Then over
the pieces again, on all cores: each becomes a file of the corpus, without what was decided against and without what is
too close to a held-out document.
"""

import gc
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from qwq.checkpoint.files import new_folder
from qwq.data.decontaminate import NgramIndex
from qwq.data.dedup import ExactDedup, NearDedup, ParagraphDedup, Sketch, without_lines
from qwq.data.documents import Document, DocumentWriter, read_jsonl
from qwq.data.pipeline_parts import Funnel, Stage, new_count, tallied
from qwq.data.report import Kept, write_report
from qwq.data.sources import SetAside
from qwq.errors import QwqError

HELDOUT_BYTES = 300_000  # at most, a language; half of it from one source, a fifth in one document
HELDOUT_AFTER = 20  # documents that are kept first, so that a tiny corpus trains on all it has
HELDOUT_SHARED = 0.05  # a training document with this share of its n-grams, or with
HELDOUT_RUN = 60  # this many of them, in the held-out documents is dropped


class Verdict(NamedTuple):
    """What becomes of a document: the stage that drops it and why, and the lines that it loses."""

    stage: str = ""
    reason: str | None = None
    lines: tuple[int, ...] = ()


_HELD_OUT, _KEPT = Verdict("heldout"), Verdict()


def join(
    pieces: Path, keys: list[str], out: Path, report: dict, set_aside: SetAside, workers: int | None = None
) -> None:
    """The corpus `out` from the pieces with these keys. `QwqError` when nothing is left."""
    with new_folder(out) as folder:
        first, decided, count = Funnel({}), Funnel({}), Kept()
        gc.disable()  # it would look through millions of hashes again and again, and there are no cycles to find
        try:
            index, more = _decide(pieces, keys, folder, report, first, set_aside)
        finally:
            gc.enable()
        made = [key for key in keys if (pieces / f"{key}.verdicts").is_file()]
        work = [(pieces / key, folder / "documents" / f"{n:05}.jsonl.zst") for n, key in enumerate(made)]
        for part in _finish_all(work, index, workers):
            decided.add(part["stages"])
            count.add(part["kept"])
            for name, numbers in part["sources"].items():
                source = report["sources"].setdefault(name, new_count(numbers["license"]))
                source["kept"] += numbers["kept"]
                source["bytes"] += numbers["bytes"]
        for stage, numbers in more.items():
            decided.counts.setdefault(stage, {"in": 0, "out": 0, "dropped": {}, "examples": {}}).update(numbers)
        report["stages"] = first.counts | decided.counts
        report["documents"], report["bytes"] = count.documents, count.bytes
        if not report["documents"]:
            shutil.rmtree(pieces)
            raise QwqError(_empty(report, report["stages"]))
        report["decontamination"]["dropped"] = dict(tallied(first.counts, "decontamination"))
        report |= {"languages": count.languages, "licenses": count.licenses, "examples": count.examples}
        write_report(folder / "report.html", report)
        (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _decide(
    pieces: Path, keys: list[str], folder: Path, report: dict, first: Funnel, set_aside: SetAside
) -> tuple[NgramIndex, dict[str, dict]]:
    """Read all summaries and sketches in order; write verdicts, duplicates.jsonl and the held-out documents.

    Returns the n-grams of the latter, and what the report says of stages beside what they drop.
    """
    with ExitStack() as stack:
        duplicates = stack.enter_context(open(folder / "duplicates.jsonl", "w", encoding="utf-8"))

        def matched(document: Sketch, kept: str, similarity: float = 1.0) -> None:
            record = {"dropped": f"{document.name:016x}", "kept": kept, "source": document.source}
            duplicates.write(json.dumps(record | {"similarity": similarity}) + "\n")

        exact, near, paragraphs = ExactDedup(matched), NearDedup(matched), ParagraphDedup()
        heldout, kept = HeldOut(folder / "heldout"), 0
        stack.callback(heldout.close)

        def judge(document: Sketch) -> Verdict:
            if reason := exact(document):
                return Verdict("exact_dedup", reason)
            if reason := near(document):
                return Verdict("near_dedup", reason)
            reason, lines = paragraphs(document)
            if reason:
                return Verdict("paragraph_dedup", reason)
            if kept >= HELDOUT_AFTER and heldout.takes(document, lines):
                return _HELD_OUT
            return Verdict(lines=tuple(lines)) if lines else _KEPT

        for key in keys:
            summary = json.loads((pieces / f"{key}.json").read_text(encoding="utf-8"))
            first.add(summary["stages"])
            for file, reason in summary["set_aside"]:
                set_aside(file, reason)
            for name, count in summary["sources"].items():
                total = report["sources"].setdefault(name, new_count(count["license"]))
                for number in ("read", "bytes_read"):
                    total[number] += count[number]
            if summary["documents"]:
                verdicts = []
                for document in pickle.loads((pieces / f"{key}.sketches").read_bytes()):
                    verdicts.append(judge(document))
                    kept += not verdicts[-1].stage
                (pieces / f"{key}.verdicts").write_bytes(pickle.dumps(verdicts))
    removed = {"removed_paragraphs": paragraphs.removed_paragraphs, "removed_bytes": paragraphs.removed_bytes}
    pairs = [{"dropped": a, "kept": b, "documents": n} for (a, b), n in sorted(near.pairs.items())]
    report["heldout"] = heldout.counts()
    heldout.index.freeze()
    return heldout.index, {"near_dedup": {"pairs": pairs}, "paragraph_dedup": removed}


def _finish_all(work: list[tuple[Path, Path]], index: NgramIndex, workers: int | None) -> Iterator[dict]:
    """`_finish` of every piece, in order."""
    workers = max(1, min(len(work), workers if workers is not None else len(os.sched_getaffinity(0))))
    if workers == 1:
        yield from (_finish(piece, target, index) for piece, target in work)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (index,)) as pool:
            yield from pool.map(_finish_in_worker, *zip(*work, strict=True))
    except BrokenProcessPool:
        raise QwqError("a worker died, perhaps for want of memory; with fewer --workers the build needs less") from None


_index = NgramIndex()  # in a worker: of the held-out documents


def _start_worker(index: NgramIndex) -> None:
    global _index
    _index = index


def _finish_in_worker(piece: Path, target: Path) -> dict:
    return _finish(piece, target, _index)


def _finish(piece: Path, target: Path, index: NgramIndex) -> dict:
    """Write what is left of a piece; its counts."""
    verdicts = pickle.loads(piece.with_name(f"{piece.name}.verdicts").read_bytes())
    verdict = _KEPT

    def decided(stage: str) -> Stage:
        return lambda document: verdict.reason if verdict.stage == stage else None

    def overlap(document: Document) -> str | None:
        hits, total, _ = index.overlap(document.text)
        return "in_heldout" if hits and (hits >= HELDOUT_RUN or hits > HELDOUT_SHARED * total) else None

    dedup = Funnel({stage: decided(stage) for stage in ("exact_dedup", "near_dedup", "paragraph_dedup")})
    apart, count, sources = Funnel({"heldout_overlap": overlap}), Kept(), dict[str, dict]()
    with DocumentWriter(target) as writer:
        documents = read_jsonl(piece.with_name(f"{piece.name}.jsonl.zst"))
        for verdict, document in zip(verdicts, documents, strict=True):
            if not dedup(document) or verdict == _HELD_OUT:
                continue
            if verdict.lines:
                document.text = without_lines(document.text, verdict.lines)
            if apart(document):
                before = writer.bytes
                writer.write(document)
                count(document, writer.bytes - before)
                source = sources.setdefault(document.source, new_count(document.license))
                source["kept"] += 1
                source["bytes"] += writer.bytes - before
    return {"stages": dedup.counts | apart.counts, "kept": count, "sources": sources}


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
    """Documents kept out of training, by language, to measure bits per byte on; and the n-grams in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, DocumentWriter] = {}
        self._bytes: Counter[tuple[str, str]] = Counter()  # by language and source
        self.index = NgramIndex()
        folder.mkdir()

    def takes(self, sketch: Sketch, lines: list[int]) -> bool:
        """Whether this document is held out (and then it is written, without these lines)."""
        document, language, size = sketch.document, sketch.language, sketch.size
        if document is None:
            return False
        if language not in self._writers:
            self._writers[language] = DocumentWriter(self._folder / f"{language}.jsonl.zst")
        writer = self._writers[language]
        of_source = self._bytes[language, document.source] + size
        if size > HELDOUT_BYTES / 5 or of_source > HELDOUT_BYTES / 2 or writer.bytes + size > HELDOUT_BYTES:
            return False
        self._bytes[language, document.source] = of_source
        if lines:
            document.text = without_lines(document.text, lines)
        writer.write(document)
        self.index.add(language, document.text)
        return True

    def counts(self) -> dict:
        """{language: {documents, bytes}}."""
        return {name: {"documents": w.count, "bytes": w.bytes} for name, w in sorted(self._writers.items()) if w.count}

    def close(self) -> None:
        """End the files."""
        for writer in self._writers.values():
            writer.close()
