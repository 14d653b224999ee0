"""Shingles and signatures: the compiled and the plain form agree to the bit, and signatures estimate Jaccard."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.kernels import minhash

RANDOM = random.Random(5)
TEXT = st.text(
    st.one_of(st.sampled_from("aB9_ ,\n中文字。ひカ한กǅİ😀𠀀é\u0301"), st.characters(exclude_categories=[])),
    max_size=80,
)


def plain(monkeypatch):
    monkeypatch.setattr(minhash, "_compiled", lambda: None)


@given(TEXT)
@settings(deadline=None)  # the first call compiles
def test_both_forms_give_the_same_bits(text):
    """Any text, lone surrogates and unassigned characters too."""

    def all_of() -> tuple:
        tokens = minhash.tokens(text)
        return minhash.signature(text), tokens.tolist(), *(minhash.windows(tokens, n).tolist() for n in (1, 3, 5))

    with pytest.MonkeyPatch.context() as patch:
        fast = all_of()
        plain(patch)
        assert all_of() == fast


def test_both_forms_agree_on_long_texts(monkeypatch):
    """More shingles than a block has, and a word of a hundred thousand letters."""
    text = " ".join(str(RANDOM.random()) for _ in range(3000)) + "x" * 100_000 + "数据" * 2000
    fast = minhash.signature(text), minhash.shingles(text)
    plain(monkeypatch)
    assert minhash.signature(text) == fast[0]
    assert np.array_equal(minhash.shingles(text), fast[1])


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("?! —", 0), ("word", 1), ("one two three four five", 1), ("one two three four five six", 2),
     ("我们的数据", 1), ("我们的数据集", 2), ("用 Python 写的", 1), ("ひらがなで書く", 3), ("한국어 글은 낱말 사이를 띄어 쓴다", 2)],
)  # fmt: skip
def test_a_shingle_is_five_words_or_characters(text, count):
    """Chinese and Japanese count by characters, Korean and English by words."""
    assert len(minhash.shingles(text)) == count


def test_case_and_punctuation_do_not_count():
    """One text in two dresses has one signature; another order of words has another."""
    assert minhash.signature("Five words, one after another!") == minhash.signature("five  WORDS one — after\nANOTHER")
    assert minhash.signature("five words one after another") != minhash.signature("words five one after another")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.9, 1.0])
def test_signatures_estimate_the_jaccard_similarity(kept):
    """Over many pairs the estimate is unbiased, and its error is what 256 functions allow."""
    errors = []
    for _ in range(40):
        words = [f"w{RANDOM.randrange(5000)}" for _ in range(400)]
        other = words[: int(400 * kept)] + [f"w{RANDOM.randrange(5000)}" for _ in range(400 - int(400 * kept))]
        first, second = minhash.shingles(" ".join(words)), minhash.shingles(" ".join(other))
        exact = len(np.intersect1d(first, second)) / len(np.union1d(first, second))
        one, two = (np.frombuffer(minhash.signature(" ".join(w)), np.uint16) for w in (words, other))
        errors.append((one == two).mean() - exact)
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 0.045


def test_marked_windows_are_those_whose_bit_is_set():
    """The kernel's answer is that of numpy on the same bitmap, for texts shorter than a window as well."""
    bits = np.random.default_rng(0).integers(0, 256, 1 << 13, dtype=np.uint8)
    for words in (0, 3, 12, 13, 14, 500):
        tokens = minhash.tokens(" ".join(f"w{i}" for i in range(words)))
        found = minhash.windows(tokens, 13)
        slots = (found >> np.uint64(48)).astype(np.int64)
        wanted = found[np.unpackbits(bits, bitorder="little")[slots] == 1]
        assert minhash.marked(tokens, 13, bits, 48).tolist() == wanted.tolist()
