"""`qwq data build`: counts add up, nothing that must not be trained on gets in, and what was there before is safe."""

import itertools
import json
import random

import pytest

from qwq.data import build, heldout_documents, read_documents
from qwq.errors import QwqError, UsageError

RANDOM = random.Random(3)
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "that",
    *(f"{a}{b}" for a in ("ka", "lo", "mi", "ner") for b in ("bel", "dor", "sun", "tar")),
]
HAN = [chr(c) for c in range(0x4E00, 0x4F00)]


def english(words=80):
    return " ".join(RANDOM.choice(WORDS) for _ in range(words)).capitalize() + "."


def chinese(characters=120):
    return "，".join("".join(RANDOM.choice(HAN) for _ in range(12)) for _ in range(characters // 12)) + "。"


@pytest.fixture
def corpus(tmp_path):
    """300 texts in two languages and code, with a copy, a short one, and one that is in the evaluation set."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    secret = english(40)
    texts = [english() for _ in range(150)] + [chinese() for _ in range(150)]
    texts += [texts[0].upper(), "Too short.", english(30) + " " + secret + " " + english(30)]
    rows = [{"text": t} for t in texts]
    rows.append(
        {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好，有什么事？"}]}
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for i in range(40):
        (folder / f"m{i}.py").write_text(
            f"def function_{i}(argument):\n    return argument * {i} + len('{english(8)}')\n"
        )
    sets = tmp_path / "evaluation" / "lambada"
    sets.mkdir(parents=True)
    (sets / "test.jsonl").write_text(json.dumps({"text": secret}) + "\n")
    return folder


def test_counts_add_up_and_reasons_are_named(corpus, tmp_path):
    """Each stage lets out what it took in less what it dropped; sources, languages and stages agree with the files."""
    report = build([str(corpus)], tmp_path / "out", evaluation_dir=tmp_path / "evaluation", progress=False)
    stages = list(report["stages"].values())
    for stage, following in itertools.pairwise(stages):
        assert stage["in"] == stage["out"] + sum(stage["dropped"].values())
        assert following["in"] <= stage["out"]
    held = {lang: heldout["documents"] for lang, heldout in report["heldout"].items()}
    assert stages[-1]["in"] == stages[-2]["out"] - sum(held.values())
    kept = list(read_documents(tmp_path / "out"))
    assert len(kept) == report["documents"] == sum(s["kept"] for s in report["sources"].values()) == stages[-1]["out"]
    assert report["bytes"] == sum(len(d.text.encode()) for d in kept)
    assert {lang: v["kept"] for lang, v in report["languages"].items()} == {
        lang: sum(d.language == lang for d in kept) for lang in ("en", "zh", "code")
    }
    dropped = {reason: n for stage in stages for reason, n in stage["dropped"].items()}
    assert dropped == {"too_short": 1, "duplicate": 1, "in_evaluation_set": 1} | {
        k: v for k, v in dropped.items() if k == "in_heldout"
    }
    assert report["decontamination"]["dropped"] == {"lambada": 1}
    assert report["decontamination"]["sets"]["lambada"] == {"texts": 1, "too_short_to_check": 0}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_the_record_of_duplicates_names_documents_of_the_corpus(corpus, tmp_path):
    """dropped -> kept, and the kept one is there, in training or held out."""
    build([str(corpus)], tmp_path / "out", progress=False, evaluation_dir=tmp_path / "evaluation")
    (record,) = map(json.loads, (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines())
    names = {d.hash for d in read_documents(tmp_path / "out")}
    names |= {d.hash for f in (tmp_path / "out" / "heldout").iterdir() for d in read_documents(f)}
    assert record["kept"] in names
    assert record["dropped"] not in names


def test_held_out_text_is_not_in_training(corpus, tmp_path):
    """A document that quotes a held-out one is dropped; a dialogue is never held out."""
    build([str(corpus)], tmp_path / "one", progress=False, evaluation_dir=tmp_path / "evaluation")
    held = heldout_documents(tmp_path / "one")
    assert set(held) <= {"en", "zh", "code"}
    assert {"en", "zh"} & set(held)
    quoted = next(iter(held["en"] if "en" in held else held["zh"]))
    dialogue = {
        "messages": [
            {"role": "user", "content": "Quote it."},
            {"role": "assistant", "content": f"{english(90)} {quoted}"},
        ]
    }
    (corpus / "zz.jsonl").write_text(json.dumps(dialogue) + "\n")
    report = build([str(corpus)], tmp_path / "two", progress=False, evaluation_dir=tmp_path / "evaluation")
    assert heldout_documents(tmp_path / "two") == held
    assert report["stages"]["heldout_overlap"]["dropped"]["in_heldout"] >= 1
    assert not any(quoted in d.text for d in read_documents(tmp_path / "two"))


def test_the_same_input_gives_the_same_bytes(corpus, tmp_path):
    """Documents, held-out documents, duplicates and report are reproducible to the byte."""
    for name in ("one", "two"):
        build([str(corpus)], tmp_path / name, progress=False, evaluation_dir=tmp_path / "evaluation")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) >= 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_broken_file_is_in_the_report_and_on_the_screen(corpus, tmp_path, capfd):
    """One line on stderr, one entry in report.json, and the job goes on."""
    (corpus / "broken.txt").write_bytes(b"\x00\x00")
    report = build([str(corpus)], tmp_path / "out", evaluation_dir=tmp_path / "evaluation")
    assert [a["reason"] for a in report["set_aside"]] == ["is binary, not text"]
    assert "broken.txt: is binary, not text" in capfd.readouterr().err.replace("\n", "")
    assert report["documents"] > 200


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "empty corpus: the sources hold no file that a reader knows"),
        ({"a.png": b"\x89PNG"}, "empty corpus: the sources hold no file that a reader knows"),
        ({"a.txt": b""}, "empty corpus: nothing could be read; the first file set aside is .*a.txt: is empty"),
        ({"a.txt": b"short"}, r"empty corpus: all 1 documents were dropped \(1 too_short\)"),
        ({"a.jsonl": b'{"title": 1}\n'}, 'empty corpus: nothing could be read; .*1 bad line; .*no "text"'),
    ],
)
def test_an_empty_corpus_says_why_and_leaves_nothing(tmp_path, files, said):
    """No folder, no temporary folder, one line."""
    source = tmp_path / "source"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    with pytest.raises(QwqError, match=said):
        build([str(source)], tmp_path / "out", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_tiny_corpus_is_not_held_out_away(tmp_path):
    """The first documents always train: a corpus of one document has one."""
    for i in range(30):
        (tmp_path / "a.txt").write_text(english())
        assert build([str(tmp_path / "a.txt")], tmp_path / f"out{i}", progress=False)["documents"] == 1
    with pytest.raises(QwqError, match="has no held-out documents"):
        heldout_documents(tmp_path / "out0")


def test_a_folder_with_other_things_in_it_is_not_replaced(corpus, tmp_path):
    """--out on a folder of the user's is refused; on an earlier corpus it replaces it as a whole."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="mine exists and is not a folder that `qwq data build` wrote"):
        build([str(corpus)], tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    build([str(corpus)], tmp_path / "out", progress=False)
    (corpus / "rows.jsonl").write_text(json.dumps({"text": english()}))
    assert build([str(corpus)], tmp_path / "out", progress=False)["documents"] < 50
    assert sum(1 for _ in read_documents(tmp_path / "out")) < 50


def test_a_missing_folder_of_evaluation_sets_is_refused_and_none_is_noted(corpus, tmp_path, monkeypatch):
    """Decontamination is never skipped in silence."""
    monkeypatch.setenv("QWQ_DATA_DIR", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="absent, the folder of evaluation sets, does not exist"):
        build([str(corpus)], tmp_path / "out", progress=False)
    monkeypatch.delenv("QWQ_DATA_DIR")
    report = build([str(corpus)], tmp_path / "out", progress=False)
    assert report["decontamination"]["sets"] == {}
    assert "no evaluation set of your own was checked" in report["decontamination"]["note"]
