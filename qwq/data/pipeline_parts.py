"""The part of a build that needs no memory of other documents, done a piece of input at a time, anywhere.

A piece (some files, a package) becomes `KEY.jsonl.zst`, `KEY.sketches` (what deduplication compares) and, when those
are whole, `KEY.json` with its counts, in a folder beside the corpus. The key says what was read and with what, so a
build that was stopped goes on where it was; and since the pieces are joined in their own order, it does not matter who
made them: this process, all cores, or a cluster.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwq.data import clean, filters
from qwq.data.decontaminate import Decontaminate, NgramIndex
from qwq.data.dedup import sketch
from qwq.data.documents import Document, DocumentWriter
from qwq.data.language import Identify
from qwq.data.personal import Personal
from qwq.data.sources import Source
from qwq.errors import QwqError, UsageError

EXAMPLES = 3  # kept in the report for each reason
EXECUTORS = ("process", "datatrove", "ray", "slurm:PARTITION")
HELDOUT_FRACTION = 0.03  # of the documents, chosen by their hash, that may be held out
SLURM_TIME = "24:00:00"
Stage = Callable[[Document], str | None]
Tick = Callable[[int], None]  # told the bytes of text of each document read


class Funnel:
    """Runs documents through stages and counts what each took in, let out and dropped, with a few examples."""

    def __init__(self, stages: dict[str, Stage]) -> None:
        self.stages = stages
        self.counts: dict[str, dict] = {name: {"in": 0, "out": 0, "dropped": {}, "examples": {}} for name in stages}

    def __call__(self, document: Document) -> bool:
        """Whether the document came through."""
        for name, stage in self.stages.items():
            count = self.counts[name]
            count["in"] += 1
            if (reason := stage(document)) is not None:
                count["dropped"][reason] = count["dropped"].get(reason, 0) + 1
                examples = count["examples"].setdefault(reason, [])
                if len(examples) < EXAMPLES:
                    examples.append({"source": document.source, "meta": document.meta, "text": document.text[:160]})
                return False
            count["out"] += 1
        return True

    def add(self, counts: dict[str, dict]) -> None:
        """Counts of another funnel with some of the same stages; examples only until there are enough."""
        for name, other in counts.items():
            count = self.counts.setdefault(name, {"in": 0, "out": 0, "dropped": {}, "examples": {}})
            count["in"] += other["in"]
            count["out"] += other["out"]
            for reason, number in other["dropped"].items():
                count["dropped"][reason] = count["dropped"].get(reason, 0) + number
                examples = count["examples"].setdefault(reason, [])
                examples += other["examples"][reason][: EXAMPLES - len(examples)]
            for key, number in other.get("tally", {}).items():
                tally = count.setdefault("tally", {})
                tally[key] = tally.get(key, 0) + number


@dataclass
class Settings:
    """What the stages need beside the document; pickled once for all who work on the pieces."""

    index: NgramIndex
    lid: str = ""  # path of lid.176.ftz
    learned: dict[str, Stage] = field(default_factory=dict)  # classifiers, by the name of their stage

    def stages(self) -> dict[str, Stage]:
        """Fresh stages, in order."""
        stages: dict[str, Stage] = {"clean": clean.clean, "language": Identify(self.lid), "quality": filters.quality}
        stages |= {name: pickle.loads(pickle.dumps(stage)) for name, stage in self.learned.items()}
        return stages | {"personal": Personal(), "decontamination": Decontaminate(self.index)}

    def fingerprint(self) -> str:
        """Changes with the settings and with the code that reads and filters."""
        digest = hashlib.sha256(pickle.dumps((self.lid, self.learned, self.index.texts, len(self.index))))
        for file in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(file.read_bytes())
        return digest.hexdigest()


def new_count(license: str) -> dict:
    """The numbers of one source in the report."""
    return {"license": license, "read": 0, "kept": 0, "bytes_read": 0, "bytes": 0}


def make_piece(piece: Source, key: str, folder: Path, tick: Tick) -> None:
    """Read a piece through the stages and write it under its key, unless that was done."""
    if (folder / f"{key}.json").is_file():
        return
    funnel = Funnel(_settings(folder).stages())
    summary: dict = {"sources": {}, "set_aside": [], "documents": 0}
    partial, sketches = folder / f"{key}-{os.getpid()}.part.zst", []
    with DocumentWriter(partial, level=1) as writer:
        try:
            for document in piece.documents(lambda file, reason: summary["set_aside"].append([file, reason])):
                size = len(document.text.encode("utf-8", "replace"))
                size = size or sum(len(m["content"]) for m in document.messages or ())
                count = summary["sources"].setdefault(document.source, new_count(document.license))
                count["read"] += 1
                count["bytes_read"] += size
                tick(size)
                if funnel(document):
                    writer.write(document)
                    sketches.append(sketch(document))
                    if document.kind != "dialogue" and sketches[-1].name < HELDOUT_FRACTION * 2**64:
                        sketches[-1].document = document
        except QwqError as error:
            summary["set_aside"].append([piece.name, str(error)])
    for name, stage in funnel.stages.items():
        tally = getattr(stage, "tally", None) or (stage.hits if isinstance(stage, Decontaminate) else None)
        if tally:
            funnel.counts[name]["tally"] = dict(sorted(tally.items()))
    summary |= {"documents": writer.count, "stages": funnel.counts}
    if writer.count:
        partial.replace(folder / f"{key}.jsonl.zst")
        (folder / f"{key}.sketches").write_bytes(pickle.dumps(sketches))
    whole = partial.with_suffix(".json")
    whole.write_text(json.dumps(summary, ensure_ascii=False), encoding="utf-8")
    whole.replace(folder / f"{key}.json")


@functools.lru_cache(maxsize=1)
def _settings(folder: Path) -> Settings:
    return pickle.loads((folder / "settings.pickle").read_bytes())


def key_of(piece: Source, fingerprint: str) -> str:
    """The name of a piece: what is read, and with what."""
    return hashlib.sha256(f"{piece.fingerprint()}\n{fingerprint}".encode()).hexdigest()[:20]


def make_pieces(
    pieces: dict[str, Source], settings: Settings, folder: Path, executor: str, workers: int | None, tick: Tick
) -> None:
    """Make every piece (by key) that is not there yet. `QwqError` when some could not be; those that are there stay.

    executor: "process" (this one, or a process for each of `workers`; all cores if None), "datatrove", "ray" or
    "slurm:PARTITION". tick: called from this process with the bytes of text that were read.
    """
    missing = {key: piece for key, piece in pieces.items() if not (folder / f"{key}.json").is_file()}
    if not missing:
        return
    temporary = folder / f"settings-{os.getpid()}"
    temporary.write_bytes(pickle.dumps(settings))
    temporary.replace(folder / "settings.pickle")
    _settings.cache_clear()
    workers = max(1, min(len(missing), workers if workers is not None else len(os.sched_getaffinity(0))))
    # The largest first: a long one that starts last keeps the others waiting.
    order = sorted(missing.items(), key=lambda item: -item[1].size)
    kind, _, partition = executor.partition(":")
    if kind == "process" and workers == 1:
        for key, piece in order:
            make_piece(piece, key, folder, tick)
    elif kind == "process":
        _on_all_cores(order, folder, workers, tick)
    elif kind in ("datatrove", "ray", "slurm"):
        _under_datatrove(kind, partition, order, folder, workers)
    else:
        raise UsageError(f"no such executor: {executor}; known are {', '.join(EXECUTORS)}")
    if left := sum(not (folder / f"{key}.json").is_file() for key in pieces):
        raise QwqError(f"{left} of {len(pieces)} pieces were not made; {folder}/logs says why. The others are kept")


def _on_all_cores(order: list[tuple[str, Source]], folder: Path, workers: int, tick: Tick) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    done = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (done,))
    try:
        waiting: list[Future] = [pool.submit(_make_in_worker, piece, key, folder) for key, piece in order]
        told = 0
        while not all(future.done() for future in waiting):
            time.sleep(0.05)
            now = done.value
            tick(now - told)
            told = now
        for future in as_completed(waiting):
            future.result()
    except BrokenProcessPool:
        raise QwqError(
            "a worker died, perhaps for want of memory; what is done is kept: the same command goes on from it, "
            "and with fewer --workers it needs less"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_done: Any = None  # in a worker: the bytes of text that all workers have read


def _start_worker(done: Any) -> None:
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback


def _make_in_worker(piece: Source, key: str, folder: Path) -> None:
    def tick(size: int) -> None:
        with _done.get_lock():
            _done.value += size

    make_piece(piece, key, folder, tick)


class _Step:
    """Every world-size-th piece, as a step of a datatrove pipeline."""

    def __init__(self, order: list[tuple[str, Source]], folder: Path, stats) -> None:
        self.order, self.folder, self.stats = order, folder, stats

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for key, piece in self.order[rank::world_size]:
            make_piece(piece, key, self.folder, lambda size: None)
        return iter(())


def _under_datatrove(kind: str, partition: str, order: list[tuple[str, Source]], folder: Path, workers: int) -> None:
    """datatrove's own executors, with a task for each worker."""
    try:
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
        from datatrove.utils.stats import Stats
    except ImportError:
        raise QwqError(f"--executor {kind} needs datatrove: pip install 'qwq[data]'") from None
    folder = folder.resolve()
    pipeline = [_Step(order, folder, Stats("qwq"))]
    common: dict[str, Any] = {
        "tasks": workers,
        "logging_dir": str(folder / "logs" / str(time.time_ns())),
        "skip_completed": False,
    }
    if kind == "datatrove":
        LocalPipelineExecutor(pipeline, workers=workers, **common).run()
    elif kind == "ray":
        try:
            import ray
        except ImportError:
            raise QwqError("--executor ray needs Ray: pip install 'qwq[data]'") from None
        started = not ray.is_initialized()
        if started:  # RAY_ADDRESS names a cluster; without it, this machine is one
            cores = None if os.environ.get("RAY_ADDRESS") else workers
            ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
        try:
            RayPipelineExecutor(pipeline, workers=workers, mem_per_cpu_gb=1, **common).run()
        finally:
            if started:
                ray.shutdown()
    else:
        path = f"export PATH={Path(sys.executable).parent}:$PATH"
        job = SlurmPipelineExecutor(
            pipeline, time=SLURM_TIME, partition=partition, env_command=path, job_name="qwq-data", **common
        )
        job.run()
        _wait_for_slurm(str(job.job_id), [folder / f"{key}.json" for key, _ in order])


def _wait_for_slurm(job: str, files: list[Path]) -> None:
    """Until the pieces are there, or Slurm knows the job no more; a build stopped and started again waits on."""
    pause = 0.5
    while not all(file.is_file() for file in files):
        listed = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True)
        if listed.returncode or not listed.stdout.strip():
            return
        time.sleep(pause)
        pause = min(2 * pause, 30)


def tallied(counts: dict[str, dict], stage: str) -> Counter[str]:
    """What a stage counted beside its drops."""
    return Counter(counts.get(stage, {}).get("tally", {}))
