"""C++ kernels are compiled once, at first use, and kept in the cache folder. Without a compiler there are none."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

log = logging.getLogger("qwq.kernels")

# What the machine can execute (torch's name for it) -> flags of GCC and Clang.
INSTRUCTIONS = {
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c",
    "avx2": "-mavx2 -mfma -mf16c",
    "generic": "",
}
_FLAGS = "-std=c++20 -O3 -fPIC -shared -fopenmp"


def cache_dir() -> Path:
    """Where fetched and compiled files are kept: QWQ_CACHE_DIR, or qwq/ in the user's cache folder."""
    if "QWQ_CACHE_DIR" in os.environ:
        return Path(os.environ["QWQ_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwq"


def instructions() -> str:
    """The widest of `INSTRUCTIONS` that this machine has. QWQ_INSTRUCTIONS names a narrower one (for tests)."""
    asked = os.environ.get("QWQ_INSTRUCTIONS")
    if asked is not None:
        return asked
    found = torch.backends.cpu.get_cpu_capability().lower()
    return found if found in INSTRUCTIONS else "generic"


@functools.cache
def library(source: Path, isa: str) -> ctypes.CDLL | None:
    """The compiled form of a C++ file for an instruction set; None, with one line in the log, where that fails.

    The file's name in the cache holds a hash of the source, the flags and the compiler, so nothing stale is ever used,
    and machines that share a folder do not mix their kernels.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not compiler:
        log.warning("no C++ compiler (g++ or clang++) found: the slower PyTorch path is taken")
        return None
    command = [*shlex.split(compiler), *_FLAGS.split(), *INSTRUCTIONS[isa].split()]
    try:
        version = subprocess.run([command[0], "--version"], capture_output=True, check=True, timeout=60).stdout
        sources = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
        key = hashlib.sha256(b"\0".join([*sources, " ".join(command).encode(), version]))
        key.update(platform.machine().encode())
        target = cache_dir() / "kernels" / f"{source.stem}-{isa}-{key.hexdigest()[:16]}.so"
        if not target.is_file():
            _compile([*command, str(source)], target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error).encode()
        lines = output.decode("utf-8", "replace").strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "error" in line), lines[0])
        log.warning("%s was not compiled, the slower PyTorch path is taken: %s", source.name, reason)
        return None


def _compile(command: list[str], target: Path) -> None:
    """Under a temporary name, then renamed: another process sees the whole library or none."""
    log.info("compiling %s for this machine, once ...", target.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / target.name
        subprocess.run([*command, "-o", str(partial)], capture_output=True, check=True, timeout=300)
        partial.rename(target)
