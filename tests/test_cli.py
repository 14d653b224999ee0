"""The command line as a person meets it: what it prints, and the exit code of every wrong turn."""

import json
import sys

import pytest
from shared_text import sentences

from qwq import cli
from qwq.checkpoint import native


@pytest.fixture
def qwq(monkeypatch, capsys):
    """Runs a command line in this process; returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwq", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def model(checkpoint, tmp_path):
    native.save(tmp_path / "tiny", checkpoint.model, checkpoint.tokenizer, {"name": "tiny"})
    return tmp_path / "tiny"


def test_generate_prints_text_or_one_json_object(qwq, model):
    arguments = ["generate", "--model", model, "--prompt", "the cat", "--max-tokens", 8, "--seed", 1]
    code, text, _ = qwq(*arguments)
    assert code == 0
    code, out, _ = qwq(*arguments, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["text"] == text.removesuffix("\n")
    assert result["usage"]["completion_tokens"] == 8


def test_info_counts_the_published_model(qwq):
    code, out, _ = qwq("info", "qwq-32b", "--json")
    assert code == 0
    assert json.loads(out)["parameters"] == 32_763_876_352


def test_convert_writes_a_folder_that_info_reads(qwq, model, tmp_path):
    assert qwq("convert", model, "--to", "hf", "--out", tmp_path / "hf")[0] == 0
    code, out, _ = qwq("info", tmp_path / "hf", "--json")
    assert code == 0
    assert json.loads(out)["format"] == "hf"


def test_documents_become_a_tokenizer_and_shards(qwq, tmp_path):
    for i in range(30):
        text = "\n\n".join(" ".join(sentences(12, seed=100 * i + j)) for j in range(6))
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
    docs, vocabulary = tmp_path / "docs", tmp_path / "vocabulary"
    assert qwq("data", "build", *sorted(tmp_path.glob("*.txt")), "--out", docs)[0] == 0
    assert qwq("tokenizer", "train", docs, "--vocab-size", 400, "--out", vocabulary)[0] == 0
    code, out, _ = qwq("data", "tokenize", docs, "--tokenizer", vocabulary, "--out", tmp_path / "tokens")
    assert code == 0
    assert json.loads(out)["tokens"] > 1000


BAD = {
    "no verb": ([], 2, "qwq"),
    "an unknown verb": (["generat"], 2, "generat"),
    "an unknown flag": (["info", "qwq-nano", "--jsn"], 2, "jsn"),
    "a missing flag": (["generate", "--model", "{model}"], 2, "--prompt"),
    "a number that is none": (["generate", "--model", "{model}", "--prompt", "a", "--max-tokens", "many"], 2, "max-tokens"),
    "an unknown model": (["generate", "--model", "smollm3", "--prompt", "a"], 2, "smollm2"),
    "a model that is a text file": (["info", "{tmp}/file.txt"], 2, "file.txt"),
    "a folder that is no model": (["info", "{tmp}"], 1, "not a model"),
    "a hub that cannot be reached": (["info", "nobody/nothing-at-all"], 1, "nobody/nothing-at-all"),
    "a GGUF that is none": (["info", "{tmp}/fake.gguf"], 1, "not a GGUF file"),
    "a negative length": (["generate", "--model", "{model}", "--prompt", "a", "--max-tokens", "-3"], 2, "max_tokens"),
    "top-p above one": (["generate", "--model", "{model}", "--prompt", "a", "--top-p", "1.5"], 2, "top_p"),
    "a prompt beyond the context": (["generate", "--model", "{model}", "--prompt", "cat " * 900], 1, "256"),
    "an unknown format": (["convert", "{model}", "--to", "onnx", "--out", "{tmp}/x"], 2, "onnx"),
    "a format without a writer": (["convert", "{model}", "--to", "gguf", "--out", "{tmp}/x"], 2, "gguf"),
    "an output that is there": (["convert", "{model}", "--to", "hf", "--out", "{tmp}"], 2, "there already"),
    "an unknown recipe": (["train", "qwq-nanoo"], 2, "qwq-nano"),
    "an unknown recipe key": (["train", "qwq-nano", "--model.hiden-size", "4"], 2, "--model.hidden-size"),
    "a recipe that makes no sense": (["train", "qwq-nano", "--model.hidden-size", "0", "--dry-run"], 2, "hidden_size"),
    "a recipe file that is no JSON": (["train", "{tmp}/bad.json"], 2, "bad.json"),
    "a recipe file with an unknown key": (["train", "{tmp}/key.json"], 2, "training.steps"),
    "training without shards": (["train", "qwq-nano", "--tokenizer.path", "{model}", "--data.path", "{tmp}/none", "--out", "{tmp}/run"], 1, "none"),
    "a source that is not there": (["data", "build", "{tmp}/nowhere", "--out", "{tmp}/docs"], 2, "nowhere"),
    "a source without text": (["data", "build", "{tmp}/empty.txt", "--out", "{tmp}/docs"], 1, "empty"),
    "a tokenizer of nothing": (["tokenizer", "train", "{tmp}/nowhere", "--vocab-size", "400", "--out", "{tmp}/t"], 1, "nowhere"),
    "an unknown benchmark": (["bench", "trian"], 2, "train"),
    "an unknown flag of a benchmark": (["bench", "moe", "--round", "3"], 2, "round"),
    "nothing to serve": (["serve"], 2, "--model"),
    "an open host without a key": (["serve", "--model", "{model}", "--host", "0.0.0.0", "--port", "0"], 2, "key"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_the_right_exit_code(case, qwq, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("QWQ_API_KEY", raising=False)
    (tmp_path / "file.txt").write_text("hello")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "fake.gguf").write_text("hello")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "key.json").write_text('{"training": {"step": 3}}')
    arguments, expected, named = BAD[case]
    code, out, err = qwq(*(str(a).format(model=model, tmp=tmp_path) for a in arguments))
    assert code == expected, err
    assert named in err
    assert "Traceback" not in out + err
    if code == 1:
        lines = [line for line in err.splitlines() if line.startswith("qwq: ")]
        assert len(lines) == 1
