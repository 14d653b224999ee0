"""Each benchmark: its official format read, its official metric computed, broken files refused in one line."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from qwq.errors import QwqError
from qwq.evals import tasks_named
from qwq.evals.dstc import joint_goal_accuracy, parse_state, slot_f1, token_sort_ratio
from qwq.evals.files import Source
from qwq.evals.glue import f1, matthews, pearson, spearman
from qwq.evals.gsm8k import final_number
from qwq.evals.humaneval import pass_at_k
from qwq.evals.requests import Likelihood
from qwq.evals.squad import cmrc_scores, squad_scores
from qwq.evals.vqa import vqa_accuracy
from qwq.evals.wikitext import articles


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(name, folder):
    return tasks_named([name])[0].load(Source(folder))


# Official formats ------------------------------------------------------------------------------------------------------

GLUE_FILES = {
    "cola": ("CoLA/dev.tsv", "gj04\t1\t\tThe sailors rode the breeze clear.\nks08\t0\t*\tJohn is tall on several occasions.\n"),
    "sst2": ("SST-2/dev.tsv", "sentence\tlabel\na good film \t1\na bad film\t0\n"),
    "mrpc": ("MRPC/dev.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe \"said\" so.\tSo he said.\n0\t1\t2\tA.\tB.\n"),
    "stsb": ("STS-B/dev.tsv", "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tA man.\tA person.\t4.2\n1\tx\tA man.\tA car.\t0.0\n"),
    "qqp": ("QQP/dev.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tHow so?\t1\n2\t2\t4\tWhy?\tWho?\t0\n"),
    "mnli": ("MNLI/dev_matched.tsv", "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tIt rains.\tIt is wet.\tx\tentailment\n1\tIt rains.\tIt is dry.\tx\tcontradiction\n"),
    "qnli": ("QNLI/dev.tsv", "index\tquestion\tsentence\tlabel\n0\tWho?\tIt was Ann.\tentailment\n1\tWho?\tIt rains.\tnot_entailment\n"),
    "rte": ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n1\tIt rains.\tIt is dry.\tnot_entailment\n"),
    "wnli": ("WNLI/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\t1\n1\tIt rains.\tIt is dry.\t0\n"),
}  # fmt: skip
TARGETS = {
    "cola": [1, 0],
    "sst2": [1, 0],
    "mrpc": [1, 0],
    "stsb": [4.2, 0.0],
    "qqp": [1, 0],
    "mnli": [0, 2],
    "qnli": [0, 1],
    "rte": [0, 1],
    "wnli": [1, 0],
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_glue_is_read_as_its_archive_has_it(name, tmp_path):
    file, text = GLUE_FILES[name]
    write(tmp_path, f"glue/{file}", text)
    split = load(name, tmp_path)
    assert [e.target for e in split.examples] == TARGETS[name]
    assert not split.official
    first = split.examples[0]
    assert first.answer in first.choices
    answers = [Likelihood(-1.0 - abs(i - round(first.target))) for i in range(len(first.choices))]
    grade = tasks_named([name])[0].grade(first, answers)
    assert grade.get("correct", abs(grade["prediction"] - 4) < 0.5)


def test_a_glue_file_without_header_is_a_sample(tmp_path):
    rows = "a good film\t1\n" * 872
    write(tmp_path, "glue/sst2/dev.tsv", rows)
    assert not load("sst2", tmp_path).official
    write(tmp_path, "glue/sst2/dev.tsv", "sentence\tlabel\n" + rows)
    assert load("sst2", tmp_path).official


SQUAD = {"data": [{"paragraphs": [{"context": "Ann was born in Rome.", "qas": [
    {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 16}, {"text": "in Rome", "answer_start": 13}]},
    {"id": "2", "question": "When?", "answers": [], "is_impossible": True}]}]}]}  # fmt: skip


def test_squad_takes_the_best_of_the_answers(tmp_path):
    write(tmp_path, "squad/dev-v1.1.json", json.dumps(SQUAD))
    [example] = load("squad", tmp_path).examples
    assert example.prompt == "Ann was born in Rome.\nQuestion: Where?\nAnswer:"
    assert tasks_named(["squad"])[0].grade(example, [" In Rome."]) == {"exact_match": True, "f1": 1.0}


SERVICE = {"service_name": "Taxi_1", "slots": [
    {"name": "to", "description": "Where to", "is_categorical": False, "possible_values": []},
    {"name": "seats", "description": "How many", "is_categorical": True, "possible_values": ["1", "2"]}]}  # fmt: skip
TURNS = [
    {"speaker": "USER", "utterance": "A taxi to Main Street for two.", "frames": [{
        "service": "Taxi_1", "slots": [{"slot": "to", "start": 10, "exclusive_end": 21}],
        "state": {"active_intent": "Book", "requested_slots": [], "slot_values": {"to": ["Main Street", "main st"], "seats": ["2"]}}}]},
    {"speaker": "SYSTEM", "utterance": "It is on its way.", "frames": []},
]  # fmt: skip


def test_dstc_asks_for_the_state_after_each_turn_of_the_user(tmp_path):
    write(tmp_path, "sgd/dev/schema.json", json.dumps([SERVICE]))
    write(
        tmp_path,
        "sgd/dev/dialogues_001.json",
        json.dumps([{"dialogue_id": "1_0", "services": ["Taxi_1"], "turns": TURNS}]),
    )
    [example] = load("dstc", tmp_path).examples
    assert (
        example.prompt == "Slots: to (Where to); seats (How many: 1, 2)\nUser: A taxi to Main Street for two.\nState:"
    )
    assert example.answer == " to = Main Street; seats = 2"
    grade = tasks_named(["dstc"])[0].grade
    assert grade(example, [example.answer]) == {"joint": 1.0, "slot_f1": 1.0}
    assert grade(example, [" seats = 2; to = street main; weather = fine"]) == {"joint": 1.0, "slot_f1": 0.0}
    assert grade(example, [" none"]) == {"joint": 0.0, "slot_f1": 0.0}


def test_vqa_v2_is_read_and_says_that_the_model_saw_no_image(tmp_path):
    people = [{"answer": a, "answer_id": i} for i, a in enumerate(["two"] * 2 + ["2"] * 8)]
    write(
        tmp_path,
        "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
        json.dumps({"questions": [{"question_id": 5, "image_id": 9, "question": "How many?"}]}),
    )
    write(
        tmp_path,
        "vqa/v2_mscoco_val2014_annotations.json",
        json.dumps({"annotations": [{"question_id": 5, "answers": people}]}),
    )
    [task] = tasks_named(["vqa"])
    [example] = task.load(Source(tmp_path)).examples
    assert example.answer == " 2"
    assert task.grade(example, [" Two."])["accuracy"] == 1.0
    assert (task.label, "no image" in task.note) == ("proxy", True)


def test_easy_vqa_chooses_among_its_answers(tmp_path):
    write(tmp_path, "easy-vqa/answers.txt", "circle\nred\n")
    for part in ("train", "test"):
        write(
            tmp_path,
            f"easy-vqa/{part}/questions.json",
            json.dumps([["what shape?", "circle", 0], ["what colour?", "red", 0]]),
        )
    split = load("easy-vqa", tmp_path)
    assert [(e.answer, e.choices) for e in split.examples] == [
        (" circle", (" circle", " red")),
        (" red", (" circle", " red")),
    ]


def test_gsm8k_grades_the_final_number_and_hides_the_calculator(tmp_path):
    write(tmp_path, "gsm8k/test.jsonl", json.dumps({"question": "2 + 3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"}))
    [example] = load("gsm8k", tmp_path).examples
    assert example.answer == " It is 2+3=5.\n#### 5"
    grade = tasks_named(["gsm8k"])[0].grade
    assert grade(example, [" Well.\n#### 5.00"])["correct"]
    assert not grade(example, [" #### 6 or 5"])["correct"]


def test_humaneval_runs_the_tests_of_a_problem(tmp_path):
    row = {"task_id": "HumanEval/0", "prompt": "def add(a, b):\n    \"\"\"Sum.\"\"\"\n", "entry_point": "add", "canonical_solution": "    return a + b\n",
           "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n"}  # fmt: skip
    path = tmp_path / "humaneval/HumanEval.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    [task] = tasks_named(["humaneval@10"])
    [example] = task.load(Source(tmp_path)).examples
    right, wrong = "\n    return a + b", "\n    return a - b"
    grade = task.grade(example, [right] * 3 + [wrong] * 7)
    assert grade == {"pass@1": pytest.approx(0.3), "pass@10": 1.0}


def test_ocnli_leaves_out_what_the_annotators_did_not_agree_on(tmp_path):
    rows = [
        {"sentence1": "下雨了。", "sentence2": "地是湿的。", "label": label}
        for label in ("entailment", "-", "contradiction")
    ]
    write(tmp_path, "ocnli/dev.json", "\n".join(json.dumps(row) for row in rows))
    assert [e.answer for e in load("ocnli", tmp_path).examples] == ["对", "错"]


def test_wikitext_articles_are_the_file_cut_at_titles(tmp_path):
    text = " \n = First = \n \n Text . \n = = Section = = \n More . \n = Second = \n \n End . \n"
    path = write(tmp_path, "wikitext2/wiki.test.tokens", text)
    pages = [row["page"] for row in articles(path)]
    assert "".join(pages) == text[2:]
    assert [page.split("\n")[0] for page in pages] == [" = First = ", " = Second = "]


def test_lambada_asks_for_the_last_word(tmp_path):
    write(tmp_path, "lambada/test.jsonl", json.dumps({"text": "They sat on the mat"}))
    [example] = load("lambada", tmp_path).examples
    assert (example.prompt, example.answer) == ("They sat on the", " mat")


def test_a_hub_data_set_has_the_same_columns(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = {"sst2": {"sentence": ["fine", "dull"], "label": [1, 0], "idx": [0, 1]},
            "rte": {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], "idx": [0, 1]},
            "mrpc": {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0], "idx": [0, 1]}}  # fmt: skip
    monkeypatch.setattr("qwq.evals.files._hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: datasets.Dataset.from_dict(rows[name]))
    for name, target in (("sst2", [1, 0]), ("rte", [0, 1]), ("mrpc", [1, 0])):
        assert [e.target for e in load(name, tmp_path).examples] == target


# Metrics ---------------------------------------------------------------------------------------------------------------


def test_correlations_and_f1_equal_scikit_learn_and_scipy():
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    columns = {
        "prediction": random.integers(0, 2, 200).astype(float),
        "target": random.integers(0, 2, 200).astype(float),
    }
    assert matthews(columns) == pytest.approx(metrics.matthews_corrcoef(columns["target"], columns["prediction"]))
    assert f1(columns) == pytest.approx(metrics.f1_score(columns["target"], columns["prediction"]))
    assert matthews(columns | {"prediction": np.ones(200)}) == 0.0
    scores = {"prediction": random.random(50), "target": random.integers(0, 6, 50).astype(float)}
    assert pearson(scores) == pytest.approx(stats.pearsonr(*scores.values()).statistic)
    assert spearman(scores) == pytest.approx(stats.spearmanr(*scores.values()).statistic)


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("The Broncos!", "broncos", True, 1.0),
        ("in the city of Rome", "Rome", False, 0.4),
        ("", "Rome", False, 0.0),
        ("308 分。", "308分", False, 2 / 3 * 0 + 1.0),
        ("蒙古帝国", "蒙古人", False, 4 / 7),
    ],
)
def test_squad_normalisation(prediction, answer, exact, f1):
    found_exact, found = squad_scores(prediction, answer)
    assert found == pytest.approx(f1)
    assert found_exact == (exact or f1 == 1.0)


def test_squad_scores_equal_the_metric_of_evaluate_on_spaced_languages():
    from collections import Counter

    def reference(a, b):  # the definition, from the paper
        import re
        import string

        def tokens(s):
            return re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in s.lower() if c not in string.punctuation)).split()

        x, y = tokens(a), tokens(b)
        same = sum((Counter(x) & Counter(y)).values())
        p, r = same / len(x) if x else 0, same / len(y) if y else 0
        return x == y, 2 * p * r / (p + r) if same else 0.0

    for pair in (
        ("an apple a day", "the apples of a day"),
        ("U.S. dollars", "US dollars"),
        ("el año 1990", "1990"),
        ("die Straße", "Straße"),
    ):
        assert squad_scores(*pair) == pytest.approx(reference(*pair))


def test_cmrc_f1_is_of_the_longest_common_run():
    assert cmrc_scores("踢爆。", "踢爆") == (True, 1.0)
    exact, score = cmrc_scores("玩家用水枪", "水枪、小枪")
    assert (exact, score) == (False, pytest.approx(2 * 2 / (5 + 4)))
    assert cmrc_scores("iPhone 4S手机", "iphone 4s") == (False, pytest.approx(2 * 2 / (4 + 2)))
    assert cmrc_scores("", "水") == (False, 0.0)


def test_fuzzy_values_are_compared_without_word_order_case_and_marks():
    assert token_sort_ratio("San Jose, CA", "ca san jose") == 1.0
    assert token_sort_ratio("san jose", "san jos") == pytest.approx(0.93)
    assert token_sort_ratio("", "x") == 0.0


def test_joint_goal_accuracy_is_a_product_over_the_schema():
    truth = {"to": ["Main Street"], "seats": ["2"]}
    assert joint_goal_accuracy(truth, {"to": "Main Street", "seats": "2"}, SERVICE) == 1.0
    assert joint_goal_accuracy(truth, {"to": "Main Stree", "seats": "2"}, SERVICE) == pytest.approx(0.95)
    assert joint_goal_accuracy(truth, {"to": "Main Street", "seats": "two"}, SERVICE) == 0.0
    assert joint_goal_accuracy(truth, {"to": "Main Street"}, SERVICE) == 0.0
    assert joint_goal_accuracy({}, {"seats": "1"}, SERVICE) == 0.0
    assert joint_goal_accuracy({}, {}, SERVICE) == 1.0


def test_slot_f1_counts_as_the_baseline_does():
    assert slot_f1([("a", "x"), ("b", "y")], [("a", "x")]) == pytest.approx(2 / 3)
    assert (slot_f1([], []), slot_f1([("a", "x")], []), slot_f1([], [("a", "x")])) == (1.0, 0.0, 0.0)


def test_a_state_is_read_from_what_a_model_writes():
    assert parse_state(" to = Main Street; seats=2; rubbish; x =") == {"to": "Main Street", "seats": "2"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 12.\n#### 1,234", "1234"),
        ("$5.50 and $18.00", "18"),
        ("#### -7 apples", "-7"),
        ("none", None),
        ("#### x", None),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == number


def test_pass_at_k_is_unbiased():
    random = np.random.default_rng(0)
    passes = [pass_at_k(10, int((random.random(10) < 0.3).sum()), 3) for _ in range(4000)]
    assert np.mean(passes) == pytest.approx(1 - 0.7**3, abs=0.015)
    assert (pass_at_k(5, 0, 5), pass_at_k(5, 1, 5)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "people", "accuracy"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 3 + ["blue"] * 7, (3 * 2 / 3 + 7) / 10),
        ("red", ["red"] + ["blue"] * 9, 9 / 3 / 10),
        ("the two.", ["2"] * 10, 1.0),
        ("dont know", ["don't know"] * 10, 1.0),
        ("1,000", ["1000"] * 10, 1.0),
        ("green", ["red"] * 10, 0.0),
    ],
)
def test_vqa_accuracy(answer, people, accuracy):
    assert vqa_accuracy(answer, people) == pytest.approx(accuracy)


# Broken files ----------------------------------------------------------------------------------------------------------

BROKEN = {
    "no folder": ("lambada", {}, "no lambada/lambada_test_en.jsonl in"),
    "wrong columns": ("sst2", {"glue/sst2/dev.tsv": "text\tscore\textra\nx\t1\ty\n"}, "needs the columns sentence, label"),
    "a row cut off": ("sst2", {"glue/sst2/dev.tsv": "sentence\tlabel\ngood\t1\nbad"}, "row 3: 1 columns where 2"),
    "a label that is none": ("sst2", {"glue/sst2/dev.tsv": "sentence\tlabel\ngood\t7\n"}, "row 1: '7' is no label"),
    "a score out of range": ("stsb", {"glue/stsb/dev.tsv": "sentence1\tsentence2\tscore\na\tb\tx\n"}, "'x' is no score"),
    "nothing at all": ("sst2", {"glue/sst2/dev.tsv": ""}, "holds no examples"),
    "only a header": ("sst2", {"glue/sst2/dev.tsv": "sentence\tlabel\n"}, "holds no examples"),
    "half a line of JSON": ("gsm8k", {"gsm8k/test.jsonl": '{"question": "1?", "answer": "#### 1"}\n{"question": "2'}, "line 2"),
    "a field less": ("gsm8k", {"gsm8k/test.jsonl": '{"question": "1?"}\n'}, "line 1: needs question, answer"),
    "half a JSON file": ("squad", {"squad/dev-v1.1.json": '{"data": [{"paragraphs"'}, "not JSON, or cut off"),
    "another JSON": ("squad", {"squad/dev-v1.1.json": '{"rows": []}'}, "not in SQuAD's format"),
    "no questions": ("squad", {"squad/dev-v1.1.json": '{"data": []}'}, "holds no examples"),
    "no dialogues": ("dstc", {"sgd/dev/schema.json": "[]"}, "holds no examples"),
    "no schema": ("dstc", {"sgd/dev/dialogues_001.json": "[]"}, "schema.json: cannot be read"),
    "dialogues of another form": ("dstc", {"sgd/dev/schema.json": "[]", "sgd/dev/dialogues_001.json": '[{"turns": 3}]'}, "dialogues_001.json: not in the format"),
    "one word": ("lambada", {"lambada/test.jsonl": '{"text": "alone"}'}, "passage 1: has no last word"),
    "questions without answers": ("vqa", {"vqa/questions.json": '{"questions": [{"question_id": 1, "question": "?", "image_id": 1}]}', "vqa/annotations.json": '{"annotations": []}'}, "not in VQA's format"),
    "empty wikitext": ("wikitext", {"wikitext2/test.txt": " \n"}, "holds no examples"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_clear_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr("qwq.evals.files._hub_answers", lambda: False)
    name, files, message = BROKEN[case]
    for file, text in files.items():
        write(tmp_path, file, text)
    with pytest.raises(QwqError) as error:
        load(name, tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_archive_and_text_that_is_not_utf8_are_one_line(tmp_path):
    folder = tmp_path / "humaneval"
    folder.mkdir()
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(b'{"task_id": 1}' * 50)[:30])
    with pytest.raises(QwqError, match="cannot be read"):
        load("humaneval", tmp_path)
    write(tmp_path, "lambada/test.jsonl", "").write_bytes(b'{"text": "caf\xe9 au lait"}')
    with pytest.raises(QwqError, match="not UTF-8 at byte 13"):
        load("lambada", tmp_path)


# Real files ------------------------------------------------------------------------------------------------------------

REAL = {"sst2": 872, "cola": 516, "mrpc": 4076, "ocnli": 9985, "lambada": 2576, "xquad-en": 1190, "xquad-zh": 1190, "cmrc2018": 1002,
        "gsm8k": 7473, "wikitext": 60, "dstc": 2856}  # fmt: skip


@pytest.mark.skipif("QWQ_DATA_DIR" not in os.environ, reason="QWQ_DATA_DIR is not set")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read(name):
    source = Source(Path(os.environ["QWQ_DATA_DIR"]))
    [task] = tasks_named([name])
    examples = task.load(source).examples
    assert len(examples) == REAL[name]
    assert len({e.id for e in examples}) == len(examples)
    if task.kind == "generate" and name != "gsm8k":
        assert all(math.isclose(max(task.grade(e, [e.answer]).values()), 1.0) for e in examples[:20])
