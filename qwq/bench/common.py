"""What every benchmark shares: the machine, interleaved timing, ratios with their spread, JSON and a table."""

import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from qwq.kernels.limits import gemm_gflop_s, read_gb_s

JsonPath = Annotated[Path | None, tyro.conf.arg(name="json", help="write the result here; - prints it")]


@dataclass
class Row:
    """One comparison. `ratio` is above 1 where ours is better; `spread` is the range over the rounds."""

    case: str  # a stable slug that names the size
    peer: str
    peer_setting: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    spread: tuple[float, float]
    limit_fraction: float | None  # ours as a share of the machine's limit in this run


def interleave(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every entry once a round, `rounds` times, so that a slow minute of the machine hits all of them.

    A call returns the rate it reached (larger is better). The order turns by one each round.
    """
    names = list(calls)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()
            rates[name].append(calls[name]())
    return rates


def rate(call: Callable[[], object], amount: float, repeats: int = 1) -> float:
    """`amount` units a call -> units a second, over `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return amount * repeats / (time.perf_counter() - start)


def compare(
    case: str,
    ours: list[float],
    theirs: list[float],
    *,
    peer: str,
    peer_setting: str,
    unit: str,
    limit_fraction: float | None = None,
) -> Row:
    """A row from the rates of interleaved rounds: medians, and the median of the ratios round by round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(
        case,
        peer,
        peer_setting,
        statistics.median(ours),
        statistics.median(theirs),
        unit,
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        limit_fraction,
    )


def machine() -> dict:
    """Processor, threads, memory and system of this machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 1e9, 1),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, torch and the named peers, as installed."""
    found = {"python": platform.python_version(), "qwq": importlib.metadata.version("qwq"), "torch": torch.__version__}
    return found | {package: importlib.metadata.version(package) for package in packages}


def limits() -> dict[str, float]:
    """The machine's measured limits, in this run."""
    return {"read_gb_s": round(read_gb_s(), 2), "gemm_gflop_s": round(gemm_gflop_s(), 1)}


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def report(bench: str, rows: list[Row], measured: dict, found: dict, json_path: Path | None, **more: object) -> dict:
    """Print the table on standard error; write the JSON to `json_path` ("-" is standard output). Returns it."""
    result: dict = {"bench": bench, "machine": machine(), "versions": found, "limits": measured}
    result |= {"rows": [asdict(row) for row in rows], **more}
    table = Table(title=f"qwq bench {bench}")
    for column in ("case", "peer", "ours", "theirs", "unit", "ratio", "spread", "of limit"):
        table.add_column(column, justify="left" if column in ("case", "peer", "unit") else "right")
    for row in rows:
        fraction = "" if row.limit_fraction is None else f"{row.limit_fraction:.0%}"
        spread = f"{row.spread[0]:.2f} to {row.spread[1]:.2f}"
        table.add_row(
            row.case, row.peer, _short(row.ours), _short(row.theirs), row.unit, f"{row.ratio:.2f}", spread, fraction
        )
    console = Console(stderr=True)
    console.print(table)
    for peer, setting in dict.fromkeys((row.peer, row.peer_setting) for row in rows if row.peer_setting):
        console.print(f"{peer}: {setting}", highlight=False, markup=False)
    if json_path is not None:
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        if str(json_path) == "-":
            print(text, end="")
        else:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(text, encoding="utf-8")
    return result
