"""lm-evaluation-harness runs its own tasks on our models, and has our number on the same file."""

import copy
import json

import pytest

lm_eval = pytest.importorskip("lm_eval")
tasks = pytest.importorskip("lm_eval.tasks")
pytest.importorskip("datasets")

from qwq.engine import LanguageModel  # noqa: E402
from qwq.evals import evaluate, tasks_named  # noqa: E402
from qwq.evals.harness import Harness  # noqa: E402


@pytest.fixture(scope="module")
def lm(checkpoint):
    double = copy.deepcopy(checkpoint)
    double.model.double()
    lm = LanguageModel(double)
    yield lm
    lm.close()


def simple(lm, config, limit=None):
    """One task of the harness, given as its YAML would. Without the report on the machine, which takes it seconds."""
    manager = tasks.TaskManager(include_defaults=False)
    found = lm_eval.evaluate(Harness(lm), tasks.get_task_dict([config], manager), bootstrap_iters=0, limit=limit)
    return found["results"][config["task"]]


def lambada(path):
    """The harness's own lambada_openai, over a local file."""
    return {
        "task": "lambada_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    }


@pytest.fixture
def passages(tmp_path):
    words = "the cat sat on the mat and the dog ran to the house of the old man"
    texts = [" ".join(words.split()[i % 3 :][: 8 + i % 7]) for i in range(12)]
    path = tmp_path / "lambada/test.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def test_both_have_the_same_number_on_the_same_file(lm, passages, tmp_path):
    ours = evaluate(lm, tasks_named(["lambada"]), data_dir=tmp_path)["tasks"]["lambada"]["metrics"]
    theirs = simple(lm, lambada(passages))
    assert theirs["acc,none"] == ours["accuracy"]["value"]
    assert theirs["perplexity,none"] == pytest.approx(ours["perplexity"]["value"], rel=1e-6)


def test_its_choices_windows_and_generations_run(lm, passages):
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(passages)}}, "test_split": "test"}
    choice = {
        **common, "task": "choice", "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": ["yes", "no"],
        "doc_to_target": "yes", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    rolling = {
        **common, "task": "rolling", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }  # fmt: skip
    writing = {
        **common, "task": "writing", "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "cat",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    assert 0 <= simple(lm, choice)["acc,none"] <= 1
    assert simple(lm, rolling, limit=4)["bits_per_byte,none"] > 0
    assert simple(lm, writing, limit=2)["exact_match,none"] == 0
