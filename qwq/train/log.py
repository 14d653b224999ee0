"""What a person and a program see of a run: a progress bar on standard error, metrics.jsonl on disk; and Ctrl-C."""

import json
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor


class Log:
    """Steps and evaluations of one run. A resumed run keeps the lines up to its step, so no step is there twice."""

    def __init__(self, out: Path, steps: int, first: int):
        path = out / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= first]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self.console = Console(stderr=True)
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        ]
        times = [TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(elapsed_when_finished=False)]
        self._progress = Progress(*columns, *times, console=self.console, disable=not sys.stderr.isatty())
        self._task = self._progress.add_task("loss", total=steps, completed=first, rate="")

    def __enter__(self) -> "Log":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()
        self._file.close()

    def step(self, step: int, loads: Mapping[str, Tensor], **values: Any) -> None:
        """One line of metrics.jsonl, and the bar. `loads`: by block, the share of the tokens that each expert had."""
        shares = {block: [round(share, 4) for share in load.tolist()] for block, load in loads.items()}
        self._write(step, values | ({"load": shares} if shares else {}))
        rate = f"{values['tokens_per_second']:,.0f} tok/s, {values['mfu']:.0%} of GEMM"
        self._progress.update(self._task, completed=step, description=f"loss {values['loss']:.3f}", rate=rate)

    def evaluation(self, step: int, loss: float, scores: dict[str, dict], unit: str = "byte") -> None:
        """A line for the person that stays, and one of metrics.jsonl."""
        domains = ", ".join(f"{name} {score['bits_per_byte']:.3f}" for name, score in scores.items())
        self.console.print(f"step {step}: loss {loss:.3f}, held-out bits per {unit}: {domains}", highlight=False)
        self._write(step, {"eval": scores})

    def _write(self, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()


def _lines(path: Path) -> list[dict]:
    """The whole lines of an earlier metrics.jsonl; a kill can leave half a line at its end."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


class Interrupt:
    """Open, it has Ctrl-C and SIGTERM only set `requested`: the loop ends after its step. A second one is at once."""

    requested = False

    def __enter__(self) -> "Interrupt":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
