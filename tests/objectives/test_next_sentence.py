"""Pairs of passages: where they come from, half of them right, and a model that learns to tell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.model import ModelConfig, build
from qwq.objectives import LateInteraction, NextSentence, SentenceOrder
from qwq.objectives.next_sentence import SHORTEST, pairs, passages
from qwq.objectives.objective import cut
from qwq.train.gradients import compute_gradients


@given(length=st.integers(1, 200), seed=st.integers(0, 99), longest=st.integers(SHORTEST, 40))
@settings(max_examples=60, deadline=None)
def test_passages_are_the_document_cut_after_sentences(length, seed, longest):
    """Joined they are the document; none is too long; a cut inside a sentence only where it was too long."""
    document = torch.randint(10, (length,), generator=torch.Generator().manual_seed(seed))
    ends = torch.arange(10) == 0
    parts = passages(document, ends, longest)
    assert torch.cat(parts).equal(document)
    assert max(map(len, parts)) <= longest
    for part in parts[:-1]:
        assert ends[part[-1]] or (len(part) == longest and not ends[part[SHORTEST - 1 :]].any())


def couples(batch, vocabulary):
    """The (first, second) of every packed text."""
    for start, end in zip(batch.boundaries, batch.boundaries[1:], strict=False):
        text = batch.input_ids[0, start:end]
        assert text[0] == vocabulary.cls
        assert text[-1] == vocabulary.separator
        middle = int((text[:-1] == vocabulary.separator).nonzero())
        yield text[1:middle].tolist(), text[middle + 1 : -1].tolist()


def test_right_pairs_are_neighbours_and_wrong_ones_are_from_other_documents(vocabulary, window, generator):
    batch = NextSentence(vocabulary, longest=32).batch(window, generator)
    texts = [" ".join(map(str, document.tolist())) + " " for document in cut(window[0], vocabulary.separator)]
    found = list(zip(couples(batch, vocabulary), batch.labels.tolist(), strict=True))
    assert len(found) > 10
    assert abs(2 * sum(batch.labels.tolist()) - len(found)) <= 1
    for (first, second), follows in found:
        joined = " ".join(map(str, first + second)) + " "
        assert any(joined in text for text in texts) == bool(follows)


def test_order_swaps_the_wrong_pairs(vocabulary, window, generator):
    batch = SentenceOrder(vocabulary, longest=32).batch(window, generator)
    right = {(tuple(p.first.tolist()), tuple(p.second.tolist())) for p in pairs(window, vocabulary, 32)}
    for (first, second), follows in zip(couples(batch, vocabulary), batch.labels.tolist(), strict=True):
        pair = tuple(first), tuple(second)
        assert (pair if follows else pair[::-1]) in right


def test_late_interaction_asks_the_same_of_passages_that_are_read_apart(vocabulary, window, generator):
    """The same pairs and labels; what a passage is like does not depend on which one it is compared with."""
    state = generator.get_state()
    together = NextSentence(vocabulary, longest=32).batch(window, generator)
    generator.set_state(state)
    apart = LateInteraction(vocabulary, longest=32).batch(window, generator)
    assert apart.labels.equal(together.labels)
    texts = [t.tolist() for t in apart.input_ids[0].tensor_split(apart.boundaries[1:-1])]
    count = len(apart.labels)
    assert list(zip(texts[:count], texts[count:], strict=True)) == list(couples(together, vocabulary))


def test_a_passage_is_most_like_itself(vocabulary, window, generator):
    """A cosine of 1 and the same piece for every token: the most there is, whatever the weights, less what is expected."""
    objective = LateInteraction(vocabulary, longest=32)
    batch = objective.batch(window, generator)
    texts = list(batch.input_ids[0].tensor_split(batch.boundaries[1:-1]))[: len(batch.labels)]
    model = build(ModelConfig(architecture="encoder", vocab_size=vocabulary.vocab_size, num_hidden_layers=1))
    model.init_weights(seed=0)
    with torch.no_grad():  # no token expects more than another
        model.lm_head.weight[vocabulary.no] = model.lm_head.weight[vocabulary.yes]
    same = objective.logits(model, objective.assemble([(t, t) for t in texts], batch.labels))[:, 1]
    torch.testing.assert_close(same, torch.full_like(same, objective.scale * (2 - objective.expected)))
    assert (objective.logits(model, batch)[:, 1] < same).all()


@pytest.mark.parametrize("kind", [NextSentence, SentenceOrder, LateInteraction])
def test_an_encoder_learns_the_pairs_of_one_window(kind, vocabulary, window):
    """From chance to below half of it."""
    config = ModelConfig(
        architecture="encoder",
        vocab_size=vocabulary.vocab_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        head_dim=16,
        use_qk_norm=True,
        num_attention_heads=2,
        initializer_range=0.1,
    )
    model, objective = build(config), kind(vocabulary, longest=16)
    model.init_weights(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    batch = objective.batch((window[0][:1], window[1][:1]), torch.Generator().manual_seed(0))
    losses = []
    for _ in range(40):
        losses.append(compute_gradients(model, [batch], objective))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.35 < losses[0]


def test_a_window_without_pairs_costs_nothing(vocabulary, generator):
    """No sentence, no label, no error."""
    ids = torch.full((1, 4), vocabulary.separator)
    batch = NextSentence(vocabulary).batch((ids, ids), generator)
    model = build(ModelConfig(architecture="encoder", vocab_size=vocabulary.vocab_size, num_hidden_layers=1))
    model.init_weights(seed=0)
    assert batch.labelled == 0
    assert float(NextSentence(vocabulary).loss(model, batch).detach()) == 0
