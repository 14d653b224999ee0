"""Near-duplicates: what is alike goes, what is not stays, and the record says what it was like."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.data.dedup import NearDedup, sketch
from qwq.data.documents import Document, hash_of
from qwq.kernels import minhash

VOCABULARY = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "ner", "su", "ti") for b in ("bel", "dor", "sun", "tar", "wen", "zig")
]
HAN = [chr(c) for c in range(0x4E00, 0x5200)]


def text_of(choice, length, chinese):
    return "".join(choice.choices(HAN, k=length)) if chinese else " ".join(choice.choices(VOCABULARY, k=length))


def edited(choice, text, edits, chinese):
    units = list(text) if chinese else text.split()
    for _ in range(edits):
        units[choice.randrange(len(units))] = choice.choice(HAN if chinese else VOCABULARY)
    return ("" if chinese else " ").join(units)


def document(text, source="s"):
    return sketch(Document(text, source, hash=hash_of(text)))


def jaccard(one, two):
    first, second = minhash.shingles(one), minhash.shingles(two)
    return len(np.intersect1d(first, second)) / len(np.union1d(first, second))


def collected(threshold=0.75):
    record = []
    return NearDedup(lambda d, kept, similarity: record.append((d, kept, similarity)), threshold), record


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_each_dropped_document_names_a_kept_one_like_it(seed, chinese):
    """Recall and precision against exact Jaccard, with room for the estimate's error; the named one is kept."""
    choice = random.Random(seed)
    originals = [text_of(choice, choice.randint(60, 300), chinese) for _ in range(12)]
    texts = originals + [edited(choice, choice.choice(originals), choice.randint(0, 12), chinese) for _ in range(30)]
    stage, record = collected()
    kept = {}
    for text in texts:
        best = max((jaccard(text, other) for other in kept.values()), default=0.0)
        if stage(document(text)) is None:
            kept[hash_of(text)] = text
            assert best < 0.9
        else:
            dropped, name, similarity = record[-1]
            assert f"{dropped.name:016x}" == hash_of(text)
            assert abs(jaccard(text, kept[name]) - similarity) < 0.15
            assert best > 0.6
    assert len(record) == len(texts) - len(kept)


def test_duplicates_across_sources_are_counted_by_source():
    """The report can say which data set repeats which."""
    choice = random.Random(2)
    text = text_of(choice, 100, True)
    stage, record = collected()
    assert stage(document(text, "news")) is None
    assert stage(document(text + "又", "web")) == "near_duplicate"
    assert stage(document(text + "了", "news")) == "near_duplicate"
    assert stage.pairs == {("web", "news"): 1, ("news", "news"): 1}
    assert record[0][1] == hash_of(text)


def test_texts_without_letters_are_never_duplicates():
    """There is nothing to compare; the quality rules deal with them."""
    stage, _ = collected()
    assert [stage(document(t)) for t in ("...", "!!!", "")] == [None, None, None]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    """Not silently a stage that drops all or nothing."""
    with pytest.raises(ValueError, match="threshold must be above 0"):
        collected(threshold)
