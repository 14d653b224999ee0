"""Masked LM: what is chosen, what becomes of it, and that nothing else is asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.errors import UsageError
from qwq.objectives import IGNORE, MaskedLM, Vocabulary
from qwq.objectives.objective import cut, pack


def many(objective, window, generator):
    return [objective.batch(window, generator) for _ in range(60)]


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_cut_and_pack_keep_every_token_in_order(rows):
    """0 separates; a document never crosses a row."""
    ids = torch.tensor(rows)
    documents = cut(ids, 0)
    kept = [i for row in rows for i in row if i]
    if kept:
        packed, boundaries = pack(documents)
        assert packed[0].tolist() == kept
        assert boundaries == sorted(set(boundaries))
        assert len(boundaries) == 1 + len(documents)
    assert len(documents) >= 1


def test_fifteen_percent_are_chosen_and_80_10_10_of_them_masked_random_kept(vocabulary, window, generator):
    """Rates over 60 batches, within four standard deviations."""
    objective = MaskedLM(vocabulary)
    original, boundaries = pack(cut(window[0], vocabulary.separator))
    chosen = masked = kept = changed = total = 0
    for batch in many(objective, window, generator):
        assert batch.boundaries == boundaries
        asked = batch.labels != IGNORE
        assert batch.labels[asked].equal(original[asked])
        assert batch.input_ids[~asked].equal(original[~asked])
        total, chosen = total + asked.numel(), chosen + int(asked.sum())
        masked += int((batch.input_ids[asked] == vocabulary.mask).sum())
        kept += int((batch.input_ids[asked] == original[asked]).sum())
        changed += int(((batch.input_ids != original) & (batch.input_ids != vocabulary.mask))[asked].sum())
    assert chosen / total == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / total) ** 0.5)
    for found, share in ((masked, 0.8), (changed, 0.1), (kept, 0.1)):
        assert found / chosen == pytest.approx(share, abs=4 * (share * (1 - share) / chosen) ** 0.5 + 0.001)


def test_whole_words_are_chosen_or_left_alone(vocabulary, window, generator):
    """Every piece of a word has the same fate; without the option, some words are chosen in part."""
    ids, boundaries = pack(cut(window[0], vocabulary.separator))
    starts = vocabulary.starts_word[ids[0]].clone()
    starts[boundaries[:-1]] = True
    words = starts.cumsum(0)

    def in_part(whole_words):
        asked = (MaskedLM(vocabulary, whole_words=whole_words).batch(window, generator).labels != IGNORE)[0].double()
        per_word = torch.zeros(int(words[-1]) + 1, dtype=torch.float64)
        share = per_word.index_add(0, words, asked) / words.bincount().clamp(min=1)
        return int(((share > 0) & (share < 1)).sum())

    assert in_part(whole_words=True) == 0
    assert in_part(whole_words=False) > 0


def test_words_start_at_spaces_and_ideographs(vocabulary):
    """By the pieces of two sentences."""

    def starts(text):
        ids = vocabulary.tokenizer.encode(text)
        return [
            vocabulary.tokenizer.decode([i]) for i, first in zip(ids, vocabulary.starts_word[ids], strict=True) if first
        ]

    english = starts("the tokenizers are unbelievable")
    assert len(english) == 3  # the first word starts with its document
    assert all(piece.startswith(" ") for piece in english)
    assert len(starts("今天天气很好")) >= 2


def test_control_tokens_are_never_chosen(vocabulary, generator):
    control = torch.tensor([sorted(vocabulary.tokenizer.special_tokens.values())] * 50)
    ids = control[control != vocabulary.separator].view(50, -1)
    batch = MaskedLM(vocabulary, mask_fraction=0.9).batch((ids, ids), generator)
    assert batch.labelled == 0


def test_the_same_generator_masks_the_same_tokens(vocabulary, window):
    """What an exact resume rests on."""
    objective = MaskedLM(vocabulary)
    one, two = (objective.batch(window, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.input_ids.equal(two.input_ids)
    assert one.labels.equal(two.labels)


def test_a_vocabulary_without_room_is_refused_with_the_size_it_needs(tokenizer):
    with pytest.raises(
        UsageError, match=r"masked_lm needs 1 ids beyond the tokenizer's 512: set model.vocab_size to 576"
    ):
        MaskedLM(Vocabulary(tokenizer, 512))
