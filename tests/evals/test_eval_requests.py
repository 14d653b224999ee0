"""Log-likelihoods and generations: batches, shared prefixes and windows change nothing but the time they take."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.engine import LanguageModel
from qwq.errors import QwqError
from qwq.evals.requests import Requests


@pytest.fixture(scope="module")
def lm(checkpoint):
    """float64: there a batch of one and a batch of many agree."""
    double = copy.deepcopy(checkpoint)
    double.model.double()
    lm = LanguageModel(double)
    yield lm
    lm.close()


def plain(lm, pair):
    """The reference: the whole sequence at once, no cache, no batch -> (nats, whether greedy)."""
    context, continuation = pair
    log_p = lm.logits([context + continuation])[0].log_softmax(-1)[len(context) - 1 : -1]
    label = torch.tensor(continuation)[:, None]
    return float(log_p.gather(1, label).sum()), bool((log_p.argmax(-1) == label[:, 0]).all())


ids = st.integers(0, 500)
contexts = st.lists(ids, min_size=1, max_size=30)
endings = st.lists(st.lists(ids, min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=12, deadline=None)
@given(
    asked=st.lists(st.tuples(contexts, endings), min_size=1, max_size=7),
    start=st.sampled_from([0, 20]),
    batch_size=st.sampled_from([1, 2, 5]),
)
def test_any_batch_gives_the_likelihoods_of_the_whole_sequence(lm, asked, start, batch_size):
    shared = [(11 * i) % 500 for i in range(start)]
    requests = [[(shared + context, ending) for ending in these] for context, these in asked]
    answers = dict(Requests(lm, batch_size)._answer([list(r) for r in requests]))
    assert sorted(answers) == list(range(len(asked)))
    for i, pairs in enumerate(requests):
        for pair, answer in zip(pairs, answers[i], strict=True):
            nats, greedy = plain(lm, pair)
            assert answer.nats == pytest.approx(nats, abs=1e-9)
            assert answer.greedy == greedy


def test_a_shared_beginning_is_computed_once(lm, monkeypatch):
    computed, hidden = [], lm.model.hidden
    monkeypatch.setattr(lm.model, "hidden", lambda ids, **k: (computed.append(ids.numel()), hidden(ids, **k))[1])
    shared = list(range(1, 101))
    dict(Requests(lm, 4)._answer([[([*shared, i, i + 1], [3, 4])] for i in range(8)]))
    assert sum(computed) == 100 + 8 * 3  # without sharing 8 * 103


def test_a_context_beyond_the_window_loses_its_beginning(lm):
    requests = Requests(lm)
    requests.max_length = 16
    context, ending = [(7 * i) % 400 for i in range(40)], [1, 2, 3]
    [(_, [answer])] = requests._answer([[(context, ending)]])
    assert answer.nats == pytest.approx(plain(lm, (context[-14:], ending))[0], abs=1e-9)


def test_a_continuation_without_tokens_is_refused(lm):
    with pytest.raises(QwqError, match="without tokens"):
        dict(Requests(lm).likelihoods([("text", [""])]))


def test_a_pair_stands_as_in_the_joined_text_and_the_space_goes_with_the_word(lm):
    requests = Requests(lm)
    for context, ending in (("The cat sat on the", " mat"), ("The cat sat on the ", "mat")):
        before, after = requests.encode_pair(context, ending)
        assert before + after == lm.tokenizer.encode_prompt("The cat sat on the mat")
        assert before == lm.tokenizer.encode_prompt("The cat sat on the")


def test_every_token_of_a_long_text_is_predicted_once_with_as_much_context_as_fits(lm):
    requests = Requests(lm, 3)
    requests.max_length = 10
    text = "The cat sat on the mat and looked at the moon. " * 3
    tokens = [requests.first_token, *lm.tokenizer.encode(text)]
    expected = sum(
        plain(lm, (tokens[max(0, min(a + 10, len(tokens)) - 11) : a], tokens[a : a + 10]))[0]
        for a in range(1, len(tokens), 10)
    )
    found = dict(requests.rolling([text, "short"]))
    assert found[0] == pytest.approx(expected, abs=1e-9)
    assert found[1] == pytest.approx(plain(lm, ([tokens[0]], lm.tokenizer.encode("short")))[0], abs=1e-9)


def test_generation_is_greedy_and_ends_before_a_stop_string(lm):
    prompts = ["The cat", "One two three", "The cat sat"]
    whole = {p: lm.generate(p, max_tokens=12, temperature=0) for p in prompts}
    assert {prompts[i]: texts for i, (texts, _) in Requests(lm).generate(prompts, max_tokens=12)} == {
        p: [text] for p, text in whole.items()
    }
    stop = whole["The cat"][3:5]
    [(_, ([text], _))] = Requests(lm).generate(["The cat"], max_tokens=12, stop=[stop])
    assert text == whole["The cat"].split(stop)[0]


def test_many_samples_of_a_prompt_differ_and_come_again_with_the_seed(lm):
    first, again = ([t for _, (t, _) in Requests(lm).generate(["The"], max_tokens=8, samples=5, seed=3)] for _ in "ab")
    assert first == again
    assert len(set(first[0])) > 1


def test_a_choice_decided_by_next_to_nothing_says_so(lm):
    [(_, answer)] = Requests(lm)._answer([[([1, 2, 3], [7]), ([1, 2, 3], [7])]])
    assert answer[0].nats == answer[1].nats
    assert math.isfinite(answer[0].margin)
