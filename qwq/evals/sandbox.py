"""Runs programs that nobody has read, in a process of their own that can compute and nothing else.

The process drops to an unprivileged user (where it is started as root), moves to namespaces without a network, and lets
seccomp refuse every system call but a computation's: no socket, no fork, no signal to others, no file opened for
writing. Time, memory and files have limits. It starts in an empty folder, without environment.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from qwq.errors import QwqError

LAYERS = ("user", "namespace", "seccomp")
_CHILD = Path(__file__).with_name("sandbox_child.py")


def run(program: str, *, seconds: int = 5, memory: int = 1 << 30, unsafe: bool = False) -> bool:
    """Whether a Python program ran to its end: no exception, no exit of its own, no limit reached.

    `seconds` of computing, three times that of waiting; `memory` in bytes. `QwqError` where this machine offers no
    containment and `unsafe` is not set. Harm is contained, not cheating: a program that looks for the secret in the
    frames above its own can claim to have ended well.
    """
    secret = secrets.token_hex(16)
    job = {"program": program, "seconds": seconds, "memory": memory, "secret": secret, "unsafe": unsafe}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        read, write = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)
        try:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(json.dumps(job | {"result": write, "layers": LAYERS}).encode(), timeout=3 * seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = os.read(read, 64) if select.select([read], [], [], 0)[0] else b""
        os.close(read)
    if said == b"refused":
        raise QwqError(
            "generated code cannot be contained on this machine (neither seccomp nor another user without a network), "
            "and is not run; --unsafe runs it with your own rights"
        )
    return said == secret.encode()
