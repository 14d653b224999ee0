"""Every objective at toy size, from token shards to the rows; the peers are asked the same."""

import dataclasses
import random

import pytest

from qwq.bench import common, objectives, runs
from qwq.data import tokenize
from qwq.data.documents import Document, DocumentWriter, hash_of

RANDOM = random.Random(3)
WORDS = "the a model token cat dog river mountain reads writes 模型 读取 文字 今天 天气 很好".split()


def text():
    return " ".join(f"{' '.join(RANDOM.choices(WORDS, k=9))}." for _ in range(40))


@pytest.fixture
def folder(tmp_path, tokenizer):
    """What `runs.prepare` makes, of made-up sentences."""
    for name, count in (("documents/a", 60), ("heldout/en", 12), ("heldout/zh", 12)):
        with DocumentWriter(tmp_path / "corpus" / f"{name}.jsonl.zst") as writer:
            for page in (text() for _ in range(count)):
                writer.write(Document(page, "made-up", language=name[-2:], hash=hash_of(page)))
    (tmp_path / "corpus" / "report.json").write_text("{}")
    tokenizer.save(tmp_path / "tokenizer")
    tokenize(tmp_path / "corpus", tokenizer, tmp_path / "tokens", progress=False)
    return tmp_path


def test_a_comparison_from_tokens_to_rows(folder, tokenizer, tiny_config, monkeypatch):
    """All runs are made and scored; pairs apart are judged beside the same overlap of words as those at [CLS]."""
    pytest.importorskip("sklearn", reason="the peer is not installed")
    small = dataclasses.replace(tiny_config, vocab_size=tokenizer.vocab_size)
    encoder = dataclasses.replace(small, architecture="encoder", vocab_size=tokenizer.vocab_size + objectives.SPARE)
    teacher = dataclasses.replace(small, num_hidden_layers=3)
    for name, config in (("ENCODER", encoder), ("TEACHER", teacher), ("STUDENT", small)):
        monkeypatch.setattr(objectives, name, config)
    monkeypatch.setattr(objectives, "STEPS", dict.fromkeys(objectives.STEPS, 2))
    monkeypatch.setattr(runs, "train_all", lambda jobs, place, fit: [fit(job, str(place)) for job in jobs])
    monkeypatch.setattr(common, "limits", dict)
    result = objectives.run(folder / "objectives.json", seeds=2, folder=folder)
    rows = {row["case"]: row for row in result["rows"] if row["peer"] == "tf-idf-overlap"}
    ways = ("next-sentence", "next-sentence-at-cls")
    assert set(rows) == {f"{way}-{domain}" for way in ways for domain in ("en", "zh", "all")}
    for domain in ("en", "zh", "all"):
        apart, at_cls = (rows[f"{way}-{domain}"] for way in ways)
        assert apart["theirs"] == at_cls["theirs"] == result["word_overlap"][domain]
        assert 0 <= apart["ours"] <= 1
    jobs = [run["job"]["arm"] for run in result["runs"]]
    assert jobs.count("alone") == jobs.count("distilled") == jobs.count("late_interaction") == 2
    assert jobs.count("next_sentence") == 1
    assert {row["peer"] for row in result["rows"]} >= {"trigram-left", "student-alone"}
