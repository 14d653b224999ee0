"""Every arm trains on what it says, and all are scored on the same text."""

import dataclasses
import json
import random

import pytest

from qwq.bench import common, corpus, data, nano, runs
from qwq.data import heldout_documents, read_documents
from qwq.data.augment import WORDNET
from qwq.data.documents import Document, hash_of

pytest.importorskip("jieba", reason="jieba is not installed: pip install 'qwq[data]'")
RANDOM = random.Random(4)
WORDS = [
    f"{a}{b}{c}"
    for a in ("ka", "lo", "mi", "ne", "su", "ti")
    for b in ("bel", "dor", "san", "ter", "win")
    for c in ("a", "eth", "ing", "o", "um")
]
HAN = [chr(c) for c in range(0x4E00, 0x4F00)]


def english():
    return ". ".join("the " + " of ".join(RANDOM.choices(WORDS, k=9)) for _ in range(8)) + "."


def chinese():
    return (
        "。".join("".join(RANDOM.choices(HAN, k=15)) + "，" + "".join(RANDOM.choices(HAN, k=12)) for _ in range(6))
        + "。"
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """150 texts in each of two languages, ten of them twice, and some too short to keep."""
    share, folder = tmp_path_factory.mktemp("share"), tmp_path_factory.mktemp("raw")
    texts = [english() for _ in range(150)] + [chinese() for _ in range(150)]
    texts += [text + " And more." for text in texts[:10]] + ["the short of it"] * 5
    (share / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data.prepare(folder, (str(share / "texts.jsonl"),), share)
    return folder


def test_noise_changes_about_three_words_of_ten():
    """And is the same for the same draw."""
    text = " ".join(RANDOM.choices(WORDS, k=400))
    one, two = (corpus.noisy(text, random.Random(1)) for _ in range(2))
    changed = sum(word not in one.split() for word in text.split())
    assert one == two != text
    assert 20 < changed < 140


def test_small_corpora_are_chosen_by_hash():
    """Whatever the order of the documents; each language has its share, and no single text fills it."""
    documents = [
        Document(text, "s", language=language, hash=hash_of(text))
        for language, make in (("en", english), ("zh", chinese))
        for text in (make() for _ in range(40))
    ]
    documents.append(Document("x" * corpus.SMALL, "s", language="en", hash="0"))
    chosen = list(corpus.small(documents))
    assert chosen == list(corpus.small(reversed(documents)))
    assert {d.language for d in chosen} == {"en", "zh"}
    assert all(len(d.text) < corpus.SMALL / 5 for d in chosen)


def test_a_comparison_from_raw_text_to_the_table(raw, tmp_path, tiny_config, monkeypatch):
    """All arms at toy size: made, trained, scored, and written into the page."""
    if not (WORDNET / "index.noun").is_file():
        monkeypatch.setattr(corpus, "WordNet", lambda: lambda word: [])
    monkeypatch.setattr(
        corpus, "Apertium", lambda direction: lambda texts: [text.replace("of", "about") for text in texts]
    )
    monkeypatch.setattr(corpus, "SMALL", 8_000)
    monkeypatch.setattr(corpus, "VOCAB_SIZE", 700)
    monkeypatch.setattr("qwq.data.pipeline_parts.HELDOUT_FRACTION", 0.1)
    recipe = nano.dense()
    training = dataclasses.replace(recipe.training, batch_size=2, micro_batch_size=2)
    model = dataclasses.replace(tiny_config, vocab_size=700)
    shape = dataclasses.replace(
        recipe, model=model, training=training, data=dataclasses.replace(recipe.data, seq_len=32)
    )
    monkeypatch.setattr(nano, "dense", lambda: shape)
    trained = []

    def here(jobs, folder, fit):
        trained.extend(jobs)
        return [fit(job, str(folder)) for job in jobs]

    monkeypatch.setattr(runs, "train_all", here)
    monkeypatch.setattr(common, "limits", dict)
    page = tmp_path / "data.md"
    page.write_text(f"before\n{corpus.BEGIN}\nold\n{corpus.END}\nafter\n")
    result = corpus.run(tmp_path / "corpus.json", steps=2, seeds=1, folder=tmp_path / "bench", raw=raw, page=page)
    assert len(trained) == len(corpus.ARMS)
    domains = {"en", "zh", "mean", "en-after-noise", "zh-after-noise"}
    assert {row["case"] for row in result["rows"]} == {
        f"{arm}-{domain}" for arm, _ in corpus.COMPARED for domain in domains
    }
    assert all(0 < value < 20 for arm in result["bits"].values() for values in arm.values() for value in values)
    text = page.read_text()
    assert (text[:7], text[-7:]) == ("before\n", "\nafter\n")
    assert "old" not in text
    assert text.count("| en-after-noise |") == 1

    arms = {arm: list(read_documents(tmp_path / "bench" / arm / "corpus")) for arm in corpus.ARMS}
    held = {t for texts in heldout_documents(tmp_path / "bench" / "filtered" / "corpus").values() for t in texts}
    assert len(arms["raw"]) > len(arms["filtered"]) > len(arms["small"])
    assert not held & {d.text for arm in arms.values() for d in arm}
    for arm in ("small-words", "small-back-translation"):
        assert [d.text for d in arms[arm][: len(arms["small"])]] == [d.text for d in arms["small"]]
        assert {d.meta["augmented"] for d in arms[arm][len(arms["small"]) :]} == {arm}
