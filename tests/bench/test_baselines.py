"""What a learned model is measured against: counts of neighbours are distributions, overlap of words tells pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.bench.baselines import BothSides, Overlap, Trigram

VOCAB = 11


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, VOCAB - 1), min_size=6, max_size=60), st.integers(0, VOCAB - 1), st.integers(0, VOCAB - 1)
)
def test_a_trigram_model_is_a_distribution_whatever_it_is_asked(ids, far, near):
    ids = np.array(ids)
    p = Trigram(ids[:-2], ids[1:-1], ids[2:], VOCAB)(far, near)
    assert p.min() > 0
    assert p.sum() == pytest.approx(1)


def test_what_follows_two_tokens_is_likeliest():
    ids = np.array([1, 2, 3, 4, 2, 5] * 20)
    model = Trigram(ids[:-2], ids[1:-1], ids[2:], VOCAB)
    assert model(1, 2).argmax() == 3
    assert model(4, 2).argmax() == 5


def test_both_sides_see_what_the_left_cannot():
    """x a y with x alone drawn: only the right neighbours tell it."""
    draw = np.random.default_rng(0)
    middle = draw.integers(3, 7, 4000)
    ids = np.stack([np.ones_like(middle), middle, middle + 4, np.full_like(middle, 2)], 1).flatten()
    places = np.arange(401, 800, 4)
    scores = BothSides(ids, VOCAB).scores(ids, places, ids[places])
    assert scores["left"][0] == pytest.approx(2, abs=0.1)  # one of four
    assert scores["left-and-right"][0] < 1
    assert scores["with-both-sides"][1] == scores["product"][1] == 1


def test_overlap_tells_pairs_that_share_words():
    pytest.importorskip("sklearn")
    topics = [f"word{i} thing{i} place{i} name{i}".split() for i in range(40)]
    couples, labels = [], []
    for i, words in enumerate(topics):
        couples += [(" ".join(words), " ".join(words[::-1])), (" ".join(words), " ".join(topics[(i + 7) % 40]))]
        labels += [1, 0]
    assert Overlap(couples, labels).accuracy(couples, labels) == 1
