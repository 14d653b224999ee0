"""Folders that are either wholly there or not there: written under a temporary name, synced, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from qwq.errors import QwqError

MANIFEST = "manifest.json"


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name when the block ends well, and is gone when it does not.

    An older `target` stays whole until the new one has the name. A full disk is a `QwqError`; nothing is lost.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                sync(path)
        sync(temporary)
        replaced = target.with_name(f".{target.name}.old-{os.getpid()}")
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        sync(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise QwqError(f"cannot write {target}: {reason}; what was there before is untouched") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **fields: object) -> None:
    """manifest.json: sizes and checksums of every other file in the folder, and `fields`."""
    files = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({**fields, "files": files}, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path, *, checksums: bool = True) -> dict:
    """manifest.json, after every file it names was checked. `QwqError` says which file and what was expected."""
    manifest = read_json(folder / MANIFEST)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise QwqError(f"{path} is missing; the checkpoint's manifest names it with {expected['bytes']:,} bytes")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise QwqError(f"{path} has {size:,} bytes where {expected['bytes']:,} were expected; copy it again")
        if checksums and sha256(path) != expected["sha256"]:
            raise QwqError(f"{path} was altered: its SHA-256 is not the manifest's {expected['sha256'][:12]}...")
    return manifest


def read_json(path: Path) -> dict:
    """A JSON object from a file, or a `QwqError` that says which file and what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QwqError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise QwqError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise QwqError(f"{path} holds a {type(value).__name__} where a JSON object was expected")
    return value
