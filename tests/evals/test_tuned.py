"""A fine-tuned head: it learns, stands beside its baseline, resumes without training again, and reads with any model."""

import copy
import json

import pytest
import torch

from qwq.errors import QwqError
from qwq.evals import evaluate, suite, tasks_named, tuned
from qwq.evals.files import Source
from qwq.model import Encoder, ModelConfig

GOOD, BAD = ("good", "fine", "warm"), ("bad", "poor", "cold")


@pytest.fixture(scope="module")
def encoder(checkpoint):
    """Two bidirectional layers over the tokenizer of the tiny checkpoint, as they were drawn."""
    found = copy.copy(checkpoint)
    found.config = ModelConfig(
        vocab_size=checkpoint.config.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, architecture="encoder",
    )  # fmt: skip
    found.model = Encoder(found.config)
    found.model.init_weights(0)
    return found


@pytest.fixture
def data(tmp_path):
    """SST-2 where one word decides."""
    folder = tmp_path / "data/glue/SST-2"
    folder.mkdir(parents=True)
    for name, count, start in (("train", 600, 0), ("dev", 60, 600)):
        rows = (
            f"the cat is {(GOOD if i % 2 else BAD)[i // 2 % 3]} {'and small ' * (i % 4)}\t{i % 2}"
            for i in range(start, start + count)
        )
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return tmp_path / "data"


def test_an_encoder_learns_the_task_and_stands_beside_its_baseline(encoder, data, tmp_path):
    pytest.importorskip("sklearn")
    result = evaluate(encoder, tasks_named(["sst2-tuned", "sst2"]), data_dir=data, out=tmp_path / "report.json")
    metrics = result["tasks"]["sst2-tuned"]["metrics"]
    assert metrics["accuracy"]["value"] > 0.95
    assert metrics["baseline_accuracy"]["value"] == 1.0
    assert "only be fine-tuned" in result["not_measured"]["sst2"]


def test_what_was_answered_is_not_trained_for_again(encoder, data, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(tuned, "EPOCHS", 1)
    tasks, out = ["sst2-tuned"], tmp_path / "report.json"
    first = evaluate(encoder, tasks_named(tasks), data_dir=data, out=out)
    monkeypatch.setattr(tuned, "fine_tune", lambda *a: pytest.fail("trained again"))
    again = evaluate(encoder, tasks_named(tasks), data_dir=data, out=out)
    assert again["tasks"]["sst2-tuned"]["metrics"] == first["tasks"]["sst2-tuned"]["metrics"]


def test_the_model_that_is_given_stays_as_it_is(checkpoint):
    before = copy.deepcopy(checkpoint.model.state_dict())
    reports = []
    predict = tuned.fine_tune(
        checkpoint.model,
        checkpoint.tokenizer,
        ["a good cat", "a bad dog"] * 8,
        [1, 0] * 8,
        2,
        0,
        lambda *done: reports.append(done),
    )
    assert set(predict(["a good cat", ""])) <= {0, 1}
    assert reports[-1] == (3, 3)
    assert all(torch.equal(before[name], value) for name, value in checkpoint.model.state_dict().items())


def test_scores_are_learned_as_scores(checkpoint):
    texts, scores = ["good good", "bad bad"] * 40, [5.0, 0.0] * 40
    predict = tuned.fine_tune(checkpoint.model, checkpoint.tokenizer, texts, scores, 0, 0, lambda *done: None)
    high, low = predict(["good good", "bad bad"])
    assert high > low
    pytest.importorskip("sklearn")
    high, low = tuned.baseline(texts, scores, ["good good", "bad bad"], classify=False)
    assert high > 4
    assert low < 1


def test_without_a_training_set_it_says_so(tmp_path):
    (tmp_path / "glue/SST-2").mkdir(parents=True)
    (tmp_path / "glue/SST-2/dev.tsv").write_text("sentence\tlabel\ngood\t1\n")
    with pytest.raises(QwqError, match=r"train\.tsv of SST-2"):
        tasks_named(["sst2-tuned"])[0].load(Source(tmp_path))


@pytest.mark.parametrize("folder", ["RTE", "rte"])
def test_pairs_are_read_as_one_text(tmp_path, folder):
    (tmp_path / "glue" / folder).mkdir(parents=True)
    for name in ("dev", "train"):
        rows = "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n"
        (tmp_path / "glue" / folder / f"{name}.tsv").write_text(rows)
    assert tasks_named(["rte-tuned"])[0].load(Source(tmp_path)).examples[0].prompt == "It rains.\nIt is wet."


def test_the_command_takes_an_encoder(encoder, data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(tuned, "EPOCHS", 1)
    monkeypatch.setattr(suite, "load", lambda name: encoder)
    suite.run("encoder", ["sst2-tuned"], data_dir=data, json=True)
    assert json.loads(capsys.readouterr().out)["tasks"]["sst2-tuned"]["n"] == 60
