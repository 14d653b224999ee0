"""What overlaps with an evaluation set is found, wherever it stands."""

import json
import random
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq.data.decontaminate import CHARACTERS, WORDS, Decontaminate, NgramIndex, evaluation_strings, index_folder
from qwq.data.documents import Document

RANDOM = random.Random(0)
VOCABULARY = [f"word{i}" for i in range(400)]
EVALUATION = [RANDOM.choice(VOCABULARY) for _ in range(60)]
HAN = "".join(RANDOM.sample([chr(c) for c in range(0x4E00, 0x6000)], 80))


def index_of(**sets: str) -> NgramIndex:
    index = NgramIndex()
    for name, text in sets.items():
        index.add(name, text)
    return index


@given(
    start=st.integers(0, 60 - WORDS),
    length=st.integers(1, 60),
    before=st.lists(st.sampled_from(VOCABULARY), max_size=30),
    after=st.lists(st.sampled_from(VOCABULARY), max_size=30),
    joint=st.sampled_from([" ", ", ", "\n", " - "]),
)
def test_overlap_is_exactly_a_shared_run_of_13_words(start, length, before, after, joint):
    """Against plain Python sets of windows: found if and only if one is shared, whatever stands between the words."""
    words = [*before, *EVALUATION[start : start + length], *after]
    windows = {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
    known = {tuple(EVALUATION[i : i + WORDS]) for i in range(len(EVALUATION) - WORDS + 1)}
    expected = sum(tuple(words[i : i + WORDS]) in known for i in range(len(words) - WORDS + 1))
    hits, total, name = index_of(glue=" ".join(EVALUATION)).overlap(joint.join(words).upper())
    assert hits == expected
    assert bool(name) == bool(windows & known)
    assert total == max(0, len(words) - WORDS + 1)


def test_the_order_of_words_matters():
    """The same words in another order are another text."""
    backwards = " ".join(reversed(EVALUATION))
    assert index_of(glue=" ".join(EVALUATION)).overlap(backwards)[0] == 0


def test_chinese_is_compared_by_20_characters():
    """20 shared characters are an overlap, 19 are not, inside English as well; punctuation does not hide it."""
    index = index_of(cmrc2018=HAN)
    assert index.overlap("前文" + HAN[10 : 10 + CHARACTERS] + "后文")[0] == 1
    assert index.overlap("前文" + HAN[10 : 10 + CHARACTERS - 1] + "后文")[0] == 0
    assert index.overlap("some English words and " + "，".join(HAN[:30]))[0] == 30 - CHARACTERS + 1


def test_the_set_that_matched_is_named_and_counted():
    """The report says which evaluation set a dropped document belongs to."""
    other = [RANDOM.choice(VOCABULARY) for _ in range(40)]
    stage = Decontaminate(index_of(glue=" ".join(EVALUATION), lambada=" ".join(other)))
    assert stage(Document("harmless words only, " * 10, "s")) is None
    assert stage(Document("so " + " ".join(other[5:25]), "s")) == "in_evaluation_set"
    assert stage(Document(" ".join(EVALUATION), "s")) == "in_evaluation_set"
    assert stage.hits == {"lambada": 1, "glue": 1}


def test_texts_too_short_to_check_are_counted():
    """An honest report: twelve words cannot be told from chance, and are not claimed to be checked."""
    index = index_of(a=" ".join(EVALUATION[: WORDS - 1]), b=" ".join(EVALUATION[:WORDS]))
    assert index.too_short == {"a": 1, "b": 0}
    assert len(index) == 1


def test_an_empty_index_finds_nothing():
    """Without any evaluation set everything stays."""
    assert NgramIndex().overlap(" ".join(EVALUATION)) == (0, 0, "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({"data": [{"context": "TEXT", "answers": [{"text": "x"}]}]})),
        ("a.json", json.dumps({"q": "TEXT"}) + "\n" + json.dumps({"q": "other"})),
        ("a.jsonl", json.dumps({"question": "TEXT"})),
        ("a.csv", 'id,text\n1,"TEXT"\n'),
        ("a.tsv", "id\ttext\n1\tTEXT\n"),
        ("a.txt", "TEXT\nmore\n"),
    ],
)
def test_every_format_gives_its_texts(name, content):
    """JSON of any shape, JSON lines (also under .json), CSV, TSV and plain text."""
    text = "a question, with a comma"
    assert text in list(evaluation_strings(name, content.replace("TEXT", text).encode()))


def test_a_folder_of_sets_is_indexed_by_set_and_a_damaged_file_is_set_aside(tmp_path):
    """The first folder names the set; a broken file does not stop the others."""
    (tmp_path / "xquad").mkdir()
    (tmp_path / "xquad" / "en.json").write_text(json.dumps({"data": [" ".join(EVALUATION)]}))
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "broken.jsonl").write_text('{"question": ')
    aside: list[tuple[str, str]] = []
    index = NgramIndex()
    index_folder(index, tmp_path, lambda file, reason: aside.append((file, reason)))
    assert index.overlap(" ".join(EVALUATION))[2] == "xquad"
    assert [file.rpartition("/")[2] for file, _ in aside] == ["broken.jsonl"]


def test_the_benchmarks_inside_a_wheel_are_indexed_but_for_the_one_that_is_trained_on(tmp_path):
    """The demo corpus trains on WritingBench and stays clear of everything else in that package."""
    from qwq.data.decontaminate import index_wheel
    from qwq.data.demo import OTHER_BENCHMARKS

    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.writestr("inspect_evals/tau2/tasks.json", json.dumps([" ".join(EVALUATION)]))
        wheel.writestr("inspect_evals/writingbench/benchmark_all.jsonl", json.dumps({"query": HAN}))
        wheel.writestr("inspect_evals/tau2/code.py", "pass")
    index = NgramIndex()
    index_wheel(index, tmp_path / "w.whl", OTHER_BENCHMARKS, lambda file, reason: pytest.fail(reason))
    assert index.names == ["inspect_evals/tau2"]
    assert index.overlap(HAN)[0] == 0
