"""Every sampling parameter does what its paper says, on logits where the answer can be seen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq.engine import SamplingParams
from qwq.engine.sampler import Sampler
from qwq.errors import UsageError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])


def distribution(**params) -> torch.Tensor:
    return Sampler(SamplingParams(**params), [0]).distribution(LOGITS)


def test_top_k_keeps_the_k_most_likely():
    assert distribution(top_k=2).nonzero().flatten().tolist() == [0, 1]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probabilities = LOGITS.softmax(0)
    assert probabilities[0] < 0.7 < probabilities[:2].sum()
    assert distribution(top_p=0.7).nonzero().flatten().tolist() == [0, 1]


def test_top_p_always_keeps_the_most_likely():
    assert distribution(top_p=1e-6).nonzero().flatten().tolist() == [0]


def test_min_p_is_relative_to_the_most_likely():
    kept = distribution(min_p=0.3).nonzero().flatten().tolist()
    ratio = (LOGITS - LOGITS.max()).exp()
    assert kept == (ratio >= 0.3).nonzero().flatten().tolist() == [0, 1]


def test_repetition_penalty_reads_prompt_and_reply():
    sampler = Sampler(SamplingParams(repetition_penalty=2.0, temperature=0), [0])
    assert sampler.penalise(LOGITS).tolist() == [1.0, 1.0, 0.0, -1.0, -2.0]
    sampler.counts[4] = 1
    assert sampler.penalise(LOGITS).tolist() == [1.0, 1.0, 0.0, -1.0, -4.0]


def test_presence_and_frequency_penalties_read_the_reply_only():
    sampler = Sampler(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, temperature=0), [0, 1])
    sampler.counts = {1: 2}
    assert sampler.penalise(LOGITS).tolist() == [2.0, 0.0, 0.0, -1.0, -2.0]


@given(seed=st.integers(0, 2**63), temperature=st.floats(0.1, 3))
def test_a_seed_fixes_the_tokens(seed, temperature):
    params = SamplingParams(seed=seed, temperature=temperature)
    first, second = Sampler(params, [0]), Sampler(params, [0])
    assert [first(LOGITS) for _ in range(8)] == [second(LOGITS) for _ in range(8)]


def test_sampled_frequencies_follow_the_distribution():
    sampler = Sampler(SamplingParams(seed=3), [0])
    counts = torch.bincount(torch.tensor([sampler(LOGITS) for _ in range(4000)]), minlength=5)
    expected = LOGITS.softmax(0) * 4000
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("max_tokens", 2.5),
        ("repetition_penalty", 0.0),
        ("seed", "one"),
        ("stop", [""]),
        ("logprobs", 21),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        SamplingParams(**{field: value})
