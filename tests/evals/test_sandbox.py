"""Generated code can compute; whatever else it tries is contained, and scored as a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwq.errors import QwqError
from qwq.evals import sandbox

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="generated code is contained on Linux")


@linux
def test_a_program_that_ends_well_passes():
    assert sandbox.run("import math, re, collections, json, csv\nassert math.comb(5, 2) == 10")


ATTACKS = {
    "wrong result": "assert 1 + 1 == 3",
    "syntax error": "def f(:",
    "exits early": "import os; os._exit(0)",
    "says it is done": "import sys; sys.exit(0)",
    "endless loop": "while True: pass",
    "sleeps": "import time; time.sleep(60)",
    "endless recursion": "def f(): return f()\nf()",
    "memory at once": "x = bytearray(1 << 34)",
    "memory bit by bit": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "fork bomb": "import os\nwhile True: os.fork()",
    "forks quietly": "import os\nos.fork()",
    "threads": "import _thread\n_thread.start_new_thread(print, ())",
    "starts a program": "import os; os.execv('/bin/true', ['true'])",
    "shell": "import os\nassert os.system('true') == 0",
    "socket": "import socket; socket.socket()",
    "kills its parent": "import os; os.kill(os.getppid(), 9)",
    "kills everything": "import os; os.kill(-1, 9)",
    "stops its parent": "import os; os.kill(os.getppid(), 19)",
    "writes a file": "open('x', 'w')",
    "makes a folder": "import os; os.mkdir('x')",
    "another user": "import os; os.setuid(0)",
    "traces its parent": "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "its parent's environment": "import os; open(f'/proc/{os.getppid()}/environ').read()",
}


@linux
@pytest.mark.parametrize("attack", ATTACKS)
def test_harm_is_contained_and_is_a_failure(attack):
    assert not sandbox.run(ATTACKS[attack], seconds=1, memory=1 << 29)


@linux
def test_files_of_others_stay(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("still here")
    for path in (tmp_path, tmp_path.parent, victim):
        os.chmod(path, 0o777)
    for attack in ("os.remove(p)", "os.truncate(p, 0)", "os.rename(p, p + 'x')", "os.chmod(p, 0)", "open(p, 'a')"):
        assert not sandbox.run(f"import os\np = {str(victim)!r}\n{attack}")
    assert victim.read_text() == "still here"


@linux
def test_nothing_of_our_environment_is_seen(monkeypatch):
    monkeypatch.setenv("QWQ_TEST_SECRET", "tell nobody")
    assert sandbox.run("import os\nassert not [k for k in os.environ if 'QWQ' in k or k in ('HOME', 'PATH')]")


@linux
def test_it_starts_in_an_empty_folder():
    assert sandbox.run("import os\nassert os.listdir('.') == []")


@linux
def test_nothing_is_left_running():
    sandbox.run("import os, time\npid = os.fork()\ntime.sleep(50)", seconds=1)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sandbox_child.py" not in running


def test_without_containment_it_refuses_and_says_how_to_insist(monkeypatch):
    monkeypatch.setattr(sandbox, "LAYERS", ())
    with pytest.raises(QwqError, match="--unsafe"):
        sandbox.run("pass")
    assert sandbox.run("pass", unsafe=True)
    assert not sandbox.run("raise SystemExit", unsafe=True)


LAYER_ATTACKS = ("socket", "fork bomb", "kills its parent", "its parent's environment")


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("attack", LAYER_ATTACKS)
def test_another_user_without_a_network_is_enough_without_seccomp(attack, monkeypatch):
    monkeypatch.setattr(sandbox, "LAYERS", ("user", "namespace"))
    code = ATTACKS[attack].replace("socket.socket()", "socket.create_connection(('127.0.0.1', 22), 1)")
    assert sandbox.run("pass")
    assert not sandbox.run(code, seconds=1)


@linux
@pytest.mark.parametrize("attack", LAYER_ATTACKS)
def test_seccomp_alone_is_enough(attack, monkeypatch):
    monkeypatch.setattr(sandbox, "LAYERS", ("seccomp",))
    assert sandbox.run("import math, heapq, typing")
    assert not sandbox.run(ATTACKS[attack], seconds=1)


def test_the_child_imports_nothing_of_this_project():
    source = (Path(sandbox.__file__).parent / "sandbox_child.py").read_text()
    assert "qwq" not in source.replace("sandbox.py", "")
