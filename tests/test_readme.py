"""What README.md and README.zh.md tell a person to type is run here, or, where it takes minutes or a terminal, parsed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qwq.model import Decoder
from qwq.recipes import RECIPES

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
# Verbs that run here, in seconds; the others are parsed by asking for their help.
RUN = ("plan", "generate", "info", "convert")


def blocks(language: str) -> list[tuple[str, str]]:
    return [(r.name, b) for r in READMES for b in re.findall(rf"```{language}\n(.*?)```", r.read_text("utf-8"), re.S)]


def commands() -> list[list[str]]:
    """Every `qwq ...` line of both files, once."""
    lines = {line.split("#")[0].strip() for _, block in blocks("bash") for line in block.splitlines()}
    return sorted(shlex.split(line) for line in lines if line.startswith("qwq "))


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {m for _, block in blocks("bash") for m in re.findall(r"^make (\w+)", block, re.M)}
    assert named
    assert named <= targets


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_works(command, tmp_path, request):
    arguments = command[1:]
    if "smollm2" in arguments and arguments[0] in RUN:
        request.getfixturevalue("smollm2_path")
    if arguments[0] not in RUN and "--dry-run" not in arguments:
        flags = [a for a in arguments if a.startswith("--")]
        verb = [a for a in arguments[:2] if a in ("data", "build", "tokenize", "tokenizer", "train", "qwq-nano")]
        done = qwq(*(verb or arguments[:1]), "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [f for f in flags if f not in done.stdout] == []
        return
    done = qwq(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if arguments[0] == "generate":
        assert "Paris" in done.stdout


def qwq(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "qwq.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("name", "block"), blocks("python"), ids=[n for n, _ in blocks("python")])
def test_the_python_example_runs(name, block, smollm2_path, capsys):
    names: dict = {}
    exec(block, names)
    names["lm"].close()
    assert capsys.readouterr().out.count("Paris") >= 2


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_builds_its_model(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    with torch.device("meta"):
        Decoder(recipe.model)


def test_both_languages_show_the_same_commands():
    english, chinese = ({b for n, b in _bash() if n == r.name} for r in READMES)
    assert english == chinese


def _bash() -> list[tuple[str, str]]:
    """Code blocks without their comments, which are in the reader's language."""
    return [(n, "\n".join(line.split("#")[0].rstrip() for line in b.splitlines())) for n, b in blocks("bash")]
