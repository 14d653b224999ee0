"""Both contenders read the same files, and the pairs are judged as they are."""

import json
import random

import pytest

from qwq.bench import data

RANDOM = random.Random(1)
WORDS = [
    f"{a}{b}{c}"
    for a in ("ka", "lo", "mi", "ne", "su", "ti")
    for b in ("bel", "dor", "san", "ter", "win")
    for c in ("a", "eth", "ing", "o", "um")
]


def prose():
    """A page of random sentences with the words that any English has."""
    sentences = [
        " ".join(RANDOM.choice((*RANDOM.choices(WORDS, k=3), "the", "of")) for _ in range(RANDOM.randint(9, 16)))
        for _ in range(20)
    ]
    return "\n".join(f"The {sentence} and it was.".replace("the the", "the") for sentence in sentences)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty pages, and ten of them again with a word changed."""
    share, folder = tmp_path_factory.mktemp("share"), tmp_path_factory.mktemp("bench")
    pages = [prose() for _ in range(40)]
    pages += [page.replace(" and it was.", ", that is all.", 2) for page in pages[:10]]
    source = share / "pages.jsonl"
    source.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    assert data.prepare(folder, (str(source),), share) == pytest.approx(sum(map(len, pages)) / 1e6)
    return folder


def test_the_files_hold_every_text_once(folder):
    """Spread over the files of a language; asked for again, they stay."""
    rows = [json.loads(line) for path in sorted((folder / "raw").glob("en-*.jsonl")) for line in path.open()]
    assert len(rows) == 50
    assert len(list((folder / "raw").glob("*.jsonl"))) == 3 * data.FILES
    assert data.prepare(folder, ("nowhere",)) > 0.05


def test_ours_builds_the_corpus(folder):
    """The changed copies go."""
    result = data.here(folder, folder / "raw", 1)
    assert 0 < result["documents"] <= 40
    assert result["dropped"]["near_dedup"] == 10
    assert result["seconds"] > 0


def test_datatrove_builds_the_corpus_of_the_same_files(folder):
    """Through its own executor; it finds the copies as well."""
    pytest.importorskip("datatrove", reason="the peer is not installed")
    pytest.importorskip("spacy", reason="the peer's tokenizer is not installed")
    result = data.datatrove(folder, "en", "en-*.jsonl", 1, "fork")
    assert result["filtered"] == 50
    assert 40 <= result["documents"] < 50


def test_pairs_are_scored_for_both(folder, monkeypatch):
    """All true pairs are among the sampled ones, each contender finds most, and nothing else."""
    pytest.importorskip("datatrove", reason="the peer is not installed")
    pytest.importorskip("spacy", reason="the peer's tokenizer is not installed")
    monkeypatch.setattr(data, "PAIRS", 200)
    monkeypatch.setattr(data, "RANDOM_PAIRS", 100)
    found = data.pairs(folder, 1)
    assert found["documents"] == 50
    assert found["duplicates"] == {"bytes": 10, "our-shingles": 10, "datatrove-shingles": 10}
    for name, (values, (low, high)) in found["scores"].items():
        assert all(0.8 <= value <= 1 for value in values), name
        assert low <= high
    assert 0.8 < found["agreement"]["of all"] <= 1


def test_what_was_measured_is_not_measured_again(tmp_path):
    """An interrupted benchmark goes on where it was."""
    kept = data._Kept(tmp_path / "rounds.jsonl")
    first = kept({"who": "a", "setting": (1, "fork")}, lambda: {"seconds": 3})
    again = data._Kept(tmp_path / "rounds.jsonl")({"who": "a", "setting": [1, "fork"]}, lambda: {"seconds": 4})
    assert first == again == {"who": "a", "setting": [1, "fork"], "seconds": 3}
