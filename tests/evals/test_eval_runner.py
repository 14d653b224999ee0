"""The runner: resuming, drawing, few-shot examples, intervals, and what happens to the other tasks when one fails."""

import copy
import json

import numpy as np
import pytest

from qwq.engine import LanguageModel
from qwq.errors import QwqError, UsageError
from qwq.evals import evaluate, runner, scorecard, suite, tasks_named
from qwq.evals.task import ChoiceTask, Example, Split, mean


@pytest.fixture(scope="module")
def lm(checkpoint):
    double = copy.deepcopy(checkpoint)
    double.model.double()
    lm = LanguageModel(double)
    yield lm
    lm.close()


@pytest.fixture
def data(tmp_path):
    """SST-2 as GLUE's archive has it, and ten LAMBADA passages."""
    folder = tmp_path / "data"
    (folder / "glue/SST-2").mkdir(parents=True)
    rows = "".join(f"the cat number {i} is {'good' if i % 3 else 'bad'}\t{int(i % 3 > 0)}\n" for i in range(30))
    (folder / "glue/SST-2/dev.tsv").write_text("sentence\tlabel\n" + rows)
    (folder / "lambada").mkdir()
    lines = [json.dumps({"text": f"the cat saw {i} mice and the dog saw {i} mice"}) for i in range(10)]
    (folder / "lambada/test.jsonl").write_text("\n".join(lines))
    return folder


def test_the_report_has_the_contract_of_the_command_line(lm, data, tmp_path):
    out = tmp_path / "report.json"
    result = evaluate(lm, tasks_named(["sst2", "lambada"]), data_dir=data, out=out)
    assert json.loads(out.read_text()) == result
    assert result["model"] == "tiny"
    entry = result["tasks"]["sst2"]
    assert (entry["n"], entry["label"], entry["fewshot"], entry["seed"]) == (30, "sample", 0, 0)
    low, high = entry["metrics"]["accuracy"]["interval"]
    assert low <= entry["metrics"]["accuracy"]["value"] <= high
    assert set(result["tasks"]["lambada"]["metrics"]) == {"accuracy", "perplexity"}


def test_scores_do_not_depend_on_the_batch_size(lm, data):
    results = [evaluate(lm, tasks_named(["sst2", "lambada"]), data_dir=data, batch_size=b)["tasks"] for b in (1, 3, 16)]
    metrics = [{name: entry["metrics"] for name, entry in result.items()} for result in results]
    assert metrics[0] == metrics[1] == metrics[2]


def test_an_interrupted_run_goes_on_where_it_was(lm, data, tmp_path, monkeypatch):
    out, asked = tmp_path / "report.json", []
    likelihoods = runner.Requests.likelihoods
    monkeypatch.setattr(runner.Requests, "likelihoods", lambda self, r: (asked.append(len(r)), likelihoods(self, r))[1])
    add, count = runner.Journal.add, iter(range(100))

    def interrupted(self, row):
        add(self, row)
        if next(count) == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner.Journal, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(lm, tasks_named(["sst2"]), data_dir=data, out=out)
    journal = out.with_suffix(".items.jsonl")
    journal.write_text(journal.read_text() + '{"task": "sst2", "id": "2')  # and half a line
    resumed = evaluate(lm, tasks_named(["sst2"]), data_dir=data, out=out)
    assert asked == [30, 18]
    whole = evaluate(lm, tasks_named(["sst2"]), data_dir=data)
    assert resumed["tasks"]["sst2"]["metrics"] == whole["tasks"]["sst2"]["metrics"]
    evaluate(lm, tasks_named(["sst2"]), data_dir=data, out=out, fewshot=2)  # another setting is another answer
    assert asked[-1] == 28


def test_answers_of_another_model_are_not_taken_over(lm, data, tmp_path, checkpoint):
    out = tmp_path / "report.json"
    evaluate(lm, tasks_named(["sst2"]), data_dir=data, out=out)
    other = copy.deepcopy(checkpoint)
    other.model.init_weights(seed=99)
    changed = LanguageModel(other)
    evaluate(changed, tasks_named(["sst2"]), data_dir=data, out=out)
    changed.close()
    assert len(out.with_suffix(".items.jsonl").read_text().splitlines()) == 60


def test_a_task_that_fails_leaves_the_others_their_results(lm, data, tmp_path):
    (data / "lambada/test.jsonl").write_text('{"text": "one two"}\n{"text": "cut o')
    result = evaluate(lm, tasks_named(["lambada", "sst2"]), data_dir=data, out=tmp_path / "r.json")
    assert list(result["tasks"]) == ["sst2"]
    assert "test.jsonl, line 2" in result["not_measured"]["lambada"]


def test_a_limit_below_one_is_wrong_use(lm, data):
    with pytest.raises(UsageError, match="limit"):
        evaluate(lm, tasks_named(["sst2"]), data_dir=data, limit=0)


def test_a_journal_that_is_none_is_refused(lm, data, tmp_path):
    (tmp_path / "r.items.jsonl").write_text("dear diary\n")
    with pytest.raises(QwqError, match="not a record of answers"):
        evaluate(lm, tasks_named(["sst2"]), data_dir=data, out=tmp_path / "r.json")


def test_a_limit_draws_whole_groups_in_the_order_of_the_file():
    examples = [Example(str(i), "", group=f"paragraph {i // 5}") for i in range(50)]
    drawn = runner.draw(examples, 10, seed=1)
    assert len({e.group for e in drawn}) == 2
    assert [int(e.id) for e in drawn] == sorted(int(e.id) for e in drawn)
    assert drawn == runner.draw(examples, 10, seed=1) != runner.draw(examples, 10, seed=2)


class Parrot(ChoiceTask):
    """Ten questions without a pool of shots."""

    name = "parrot"

    def load(self, source):
        return Split([Example(str(i), f"Q{i}", f" A{i}", (" A", " B"), 0) for i in range(10)], official=True)


def test_shots_are_not_asked_themselves_and_the_rest_is_a_sample(tmp_path):
    source = runner.Source(tmp_path)
    asked, prefix, label = runner._prepare(Parrot(), source, None, 3, 0)
    shown = [i for i in range(10) if f"Q{i} A{i}\n\n" in prefix]
    assert (len(shown), len(asked), label) == (3, 7, "sample")
    assert not {str(i) for i in shown} & {e.id for e in asked}
    assert runner._prepare(Parrot(), source, None, 0, 0)[2] == "real"
    assert runner._prepare(Parrot(), source, 5, 0, 0)[2] == "sample"
    with pytest.raises(QwqError, match="10 examples cannot be shown"):
        runner._prepare(Parrot(), source, None, 10, 0)


def test_the_interval_covers_the_truth_nineteen_times_of_twenty():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(40):
        table = {"correct": (random.random(120) < 0.3).astype(float)}
        low, high = runner.scores({"a": mean("correct")}, table, [str(i) for i in range(120)], trial)["a"]["interval"]
        hits += low <= 0.3 <= high
    assert 33 <= hits <= 40


def test_answers_of_one_dialogue_are_resampled_together():
    table = {"correct": np.repeat([0.0, 1.0] * 5, 20)}
    alone = runner.scores({"a": mean("correct")}, table, [str(i) for i in range(200)], 0)["a"]["interval"]
    grouped = runner.scores({"a": mean("correct")}, table, [str(i // 20) for i in range(200)], 0)["a"]["interval"]
    assert grouped[1] - grouped[0] > 3 * (alone[1] - alone[0])


def test_task_names_are_known_or_corrected():
    assert [t.name for t in tasks_named(["glue"])] == list(scorecard.ROWS["GLUE"])
    assert [t.name for t in tasks_named(["humaneval@10", "xquad-zh"])] == ["humaneval@10", "xquad-zh"]
    with pytest.raises(UsageError, match="did you mean 'lambada'"):
        tasks_named(["lambda"])


def test_the_scorecard_has_every_row_claims_and_reasons(lm, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "load", lambda model: lm)
    monkeypatch.setattr(suite, "LanguageModel", lambda checkpoint, max_batch_size: lm)
    monkeypatch.setattr(lm, "close", lambda: None)
    monkeypatch.setattr(scorecard, "ROWS", {"GLUE": ("sst2", "cola"), "LAMBADA": ("lambada",), "VQA": ("vqa",)})
    monkeypatch.setattr("qwq.evals.files._hub_answers", lambda: False)
    out = tmp_path / "card.json"
    suite.run("tiny", suite="scorecard", data_dir=data, out=out)
    shown = capsys.readouterr().out
    for page in (shown, (tmp_path / "scorecard.html").read_text()):
        assert all(word in page for word in ("85.2%", "65.2%", "sst2", "lambada", "not measured", "perplexity"))
    assert "<script" not in (tmp_path / "scorecard.html").read_text()
    with pytest.raises(QwqError, match="cola could not be measured"):
        suite.run("tiny", tasks=["cola", "sst2"], data_dir=data, out=out)
    assert list(json.loads(out.read_text())["tasks"]) == ["sst2"]


def test_either_tasks_or_the_suite_are_asked_for():
    for wrong in ({}, {"tasks": ["sst2"], "suite": "scorecard"}, {"suite": "everything"}):
        with pytest.raises(UsageError):
            suite.run("tiny", **wrong)
