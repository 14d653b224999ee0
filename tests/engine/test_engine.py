"""The scheduler: many requests in one batch change nothing but the time they take."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.engine import Engine, PromptTooLong, QueueFull, SamplingParams
from qwq.errors import UsageError
from qwq.model import Decoder


@pytest.fixture(scope="module")
def model(tiny_config):
    """float64: there a batch of one and a batch of many agree on every token."""
    model = Decoder(tiny_config)
    model.init_weights(seed=2)
    return model.double().eval()


def greedy(model, prompt, tokens):
    """The reference: no cache, no batch."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def run(engine, jobs):
    """Submit (prompt, params) jobs and step until all have ended; returns (tokens, reason) of each."""
    results = []
    for prompt, params in jobs:
        result = {"tokens": [], "reason": None}
        results.append(result)

        def on_token(request, token, reason, result=result):
            if token is None:
                result["reason"] = reason
            else:
                result["tokens"].append(token)

        engine._thread = threading.current_thread()  # the test is the engine's thread: it steps by hand
        engine.submit(prompt, params, on_token)
    while engine.rows or engine.waiting:
        engine.step()
    return [(r["tokens"], r["reason"]) for r in results]


@settings(max_examples=15, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.lists(st.integers(0, 500), min_size=1, max_size=40), st.integers(1, 12)), min_size=1, max_size=7
    ),
    chunk=st.sampled_from([3, 16, 512]),
)
def test_a_batch_gives_every_request_its_own_greedy_tokens(model, jobs, chunk):
    engine = Engine(model, max_batch_size=3, prefill_chunk=chunk)
    done = run(engine, [(p, SamplingParams(temperature=0, max_tokens=n)) for p, n in jobs])
    assert done == [(greedy(model, p, n), "length") for p, n in jobs]


def test_prompts_that_begin_alike_share_their_prefill_and_keep_their_tokens(model, monkeypatch):
    start = [(7 * i) % 500 for i in range(40)]
    jobs = [([*start, *rest], SamplingParams(temperature=0, max_tokens=9)) for rest in ([1, 2], [3], [1, 2, 4], [1, 2])]
    computed, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **k: (computed.append(ids.shape[1]), forward(ids, **k))[1])
    done = run(Engine(model, max_batch_size=3), jobs)
    assert sorted(n for n in computed if n > 1) == [42]  # the others: one token each
    assert done == [(greedy(model, p, 9), "length") for p, _ in jobs]


def test_a_seeded_request_does_not_depend_on_its_neighbours(model):
    job = ([5, 6, 7], SamplingParams(seed=11, max_tokens=20))
    others = [([i, i + 1], SamplingParams(max_tokens=5 + i)) for i in range(5)]
    alone = run(Engine(model), [job])[0]
    assert run(Engine(model, max_batch_size=4), [*others, job])[-1] == alone


def test_a_stop_token_ends_a_request_and_is_not_shown(model):
    tokens = greedy(model, [1, 2, 3], 5)
    engine, shown, reasons = Engine(model), [], []
    engine._thread = threading.current_thread()

    def on_token(request, token, reason):
        (reasons if token is None else shown).append(reason if token is None else token)

    engine.submit([1, 2, 3], SamplingParams(temperature=0), on_token, stop_ids=[tokens[2]])
    while engine.rows or engine.waiting:
        engine.step()
    assert (shown, reasons) == (tokens[: tokens.index(tokens[2])], ["stop"])


def test_cancelling_frees_the_row_before_the_next_token(model):
    engine, reasons = Engine(model, max_batch_size=2), {}
    engine._thread = threading.current_thread()
    requests = [
        engine.submit([i + 1], SamplingParams(temperature=0), lambda r, t, why: reasons.update({id(r): why}))
        for i in range(3)
    ]
    for _ in range(4):
        engine.step()
    assert engine.rows == requests[:2]
    requests[0].cancel()
    engine.step()
    assert requests[0] not in engine.rows
    assert reasons[id(requests[0])] == "cancelled"
    engine.step()
    assert requests[2] in engine.rows  # the one that waited has the row now


def test_the_context_ends_a_request_with_length(model):
    engine = Engine(model, context_length=16)
    [(tokens, reason)] = run(engine, [([1] * 10, SamplingParams(temperature=0))])
    assert (len(tokens), reason) == (6, "length")


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(model):
    with pytest.raises(PromptTooLong, match=r"20 tokens.*16"):
        Engine(model, context_length=16).submit([1] * 20, SamplingParams(), print)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UsageError, match="empty"):
        Engine(model).submit([], SamplingParams(), print)


def test_a_full_queue_is_refused_at_once(model):
    engine = Engine(model, max_queue=2)
    engine._thread = threading.current_thread()
    for _ in range(2):
        engine.submit([1], SamplingParams(), print)
    with pytest.raises(QueueFull):
        engine.submit([1], SamplingParams(), print)


def test_a_failing_step_fails_its_requests_and_not_the_engine(model, monkeypatch):
    engine = Engine(model)
    ended = threading.Event()
    reasons = []

    def on_token(request, token, reason):
        if token is None:
            reasons.append((reason, request.error))
            ended.set()

    engine.submit([10_000_000], SamplingParams(), on_token)  # no such row in the embedding
    assert ended.wait(20)
    ended.clear()
    engine.submit([1], SamplingParams(max_tokens=2), on_token)
    assert ended.wait(20)
    engine.close()
    assert reasons[0][0] == "error"
    assert "IndexError" in reasons[0][1]
    assert reasons[1] == ("length", None)
