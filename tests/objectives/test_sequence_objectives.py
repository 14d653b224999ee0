"""Span denoising and prefixes: source and target together hold the document."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.model import ModelConfig, build
from qwq.objectives import PrefixLM, SpanDenoising
from qwq.objectives.objective import cut
from qwq.train.gradients import compute_gradients


def restored(source, target, sentinels):
    """Each sentinel of the source replaced by what follows it in the target."""
    spans, out = {}, []
    for token in target:
        if token in sentinels:
            spans[token] = []
            newest = token
        else:
            spans[newest].append(token)
    for token in source:
        out += spans.pop(token) if token in sentinels else [token]
    assert not spans
    return out


@given(length=st.integers(2, 300), seed=st.integers(0, 999), fraction=st.floats(0.01, 0.9))
@settings(max_examples=80, deadline=None)
def test_spans_put_back_are_the_document(vocabulary, length, seed, fraction):
    generator = torch.Generator().manual_seed(seed)
    document = torch.randint(vocabulary.size, (length,), generator=generator)
    source, target = SpanDenoising(vocabulary, mask_fraction=fraction).split(document, generator)
    assert restored(source.tolist(), target.tolist(), vocabulary.sentinels) == document.tolist()
    hidden = sum(token not in vocabulary.sentinels for token in target.tolist())
    assert hidden == min(max(round(length * fraction), 1), length - 1)
    first = [token for token in source.tolist() if token in vocabulary.sentinels]
    assert first == list(vocabulary.sentinels[: len(first)])


def test_spans_are_three_tokens_on_average(vocabulary, generator):
    document = torch.arange(400) % vocabulary.size
    _, target = SpanDenoising(vocabulary).split(document, generator)
    marks = sum(token in vocabulary.sentinels for token in target.tolist())
    assert (len(target) - marks) / marks == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("kind", [SpanDenoising, PrefixLM])
def test_the_decoder_reads_its_target_one_step_late(kind, vocabulary, window, generator):
    """It starts from the separator, and has to end with it; one target for each document of two tokens or more."""
    batch = kind(vocabulary).batch(window, generator)
    documents = [d for d in cut(window[0], vocabulary.separator) if len(d) > 1]
    assert len(batch.boundaries) == len(batch.target_boundaries) == len(documents) + 1
    for start, end in zip(batch.target_boundaries, batch.target_boundaries[1:], strict=False):
        read, written = batch.target_ids[0, start:end].tolist(), batch.labels[0, start:end].tolist()
        assert read[0] == written[-1] == vocabulary.separator
        assert read[1:] == written[:-1]


def test_a_prefix_and_its_target_are_the_document(vocabulary, generator):
    for _ in range(50):
        source, target = PrefixLM(vocabulary).split(torch.arange(7), generator)
        assert torch.cat((source, target)).equal(torch.arange(7))
        assert min(len(source), len(target)) >= 1


@pytest.mark.parametrize("kind", [SpanDenoising, PrefixLM])
def test_an_encoder_decoder_learns_one_window(kind, vocabulary, window):
    config = ModelConfig(
        architecture="encoder-decoder",
        vocab_size=vocabulary.vocab_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_encoder_layers=1,
        head_dim=16,
        initializer_range=0.1,
    )
    model, objective = build(config), kind(vocabulary)
    model.init_weights(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batch = objective.batch((window[0][:1], window[1][:1]), torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        losses.append(compute_gradients(model, [batch], objective))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
