"""What a request may spend, and what it reports to have spent."""

import pytest
from policy_helpers import CONFIG, SPECULATIVE, build, prompts, replies

from qwq.engine import ComputePolicy, Engine, LanguageModel, SamplingParams
from qwq.errors import UsageError
from qwq.model.depth import filling_flops, flops_of_token


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fast"}, "compute must be one of full, speculative, early-exit, got 'fast'"),
        ({"draft_tokens": 0}, "draft_tokens must be between 1 and 64, got 0"),
        ({"draft_tokens": True}, "draft_tokens"),
        ({"draft_layers": 0}, "draft_layers must be 1 or more"),
        ({"confidence": 1.5}, "confidence must be between 0 and 1"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens must be 0 or more"),
        ({"max_thinking_tokens": 2.5}, "max_thinking_tokens"),
    ],
)
def test_a_policy_that_makes_no_sense_names_its_field(fields, message):
    with pytest.raises(UsageError, match=message):
        ComputePolicy(**fields)


def test_a_request_takes_a_policy_a_name_or_fields():
    assert SamplingParams(compute="speculative").compute == SPECULATIVE
    assert SamplingParams(compute={"mode": "early-exit", "confidence": 0.5}).compute.confidence == 0.5
    assert SamplingParams(compute=SPECULATIVE, max_thinking_tokens=9).compute.max_thinking_tokens == 9
    for wrong in ({"speed": 3}, 7, None):
        with pytest.raises(UsageError, match="compute must be the name of a mode"):
            SamplingParams(compute=wrong)
    with pytest.raises(UsageError, match="max_thinking_tokens"):
        SamplingParams(max_thinking_tokens=-4)


def test_early_exit_with_full_confidence_is_full_depth_and_with_none_the_first_exit():
    model, prompt = build(), prompts(1)[0]
    params = {"temperature": 0, "max_tokens": 12}
    [(full, _, most)] = replies(Engine(model), [(prompt, SamplingParams(**params))])
    results = {}
    for confidence in (0.0, 1.0):
        compute = ComputePolicy("early-exit", confidence=confidence)
        [results[confidence]] = replies(Engine(model), [(prompt, SamplingParams(**params, compute=compute))])
    assert results[1.0][0] == full
    assert results[0.0][2].layers == 4 + 11 * 1  # the first token is the prompt's
    assert results[1.0][2].layers == most.layers == 4 * 12


def test_rows_that_leave_early_do_not_change_their_neighbours():
    model = build()
    policies = [ComputePolicy("early-exit", confidence=0.3), ComputePolicy(), SPECULATIVE]
    jobs = [
        (prompt, SamplingParams(temperature=0, max_tokens=5 + i, compute=policies[i % 3]))
        for i, prompt in enumerate(prompts(12))
    ]
    together = replies(Engine(model, max_batch_size=5, prefill_chunk=9), jobs)
    alone = [replies(Engine(model), [job])[0] for job in jobs]
    assert [r[:2] for r in together] == [r[:2] for r in alone]
    assert {r[2].layers for r in together[::3]} != {4 * (5 + i) for i in range(0, 12, 3)}


def test_the_cost_is_the_sum_over_all_tokens():
    model, prompt = build(), [1, 2, 3, 4, 5]
    head = flops_of_token(CONFIG, 0, 0)

    def spent(compute, tokens):
        params = SamplingParams(temperature=0, max_tokens=tokens, compute=compute)
        [(_, _, request)] = replies(Engine(model, prefill_chunk=2), [(prompt, params)])
        return request.flops

    read = sum(flops_of_token(CONFIG, 4, i + 1, heads=0) for i in range(5)) + 3 * head  # three chunks
    assert spent("full", 1) == read
    assert spent("full", 3) == read + flops_of_token(CONFIG, 4, 6) + flops_of_token(CONFIG, 4, 7)
    left = flops_of_token(CONFIG, 1, 6) + filling_flops(CONFIG, 1)
    assert spent(ComputePolicy("early-exit", confidence=0.0), 2) == read + left
    guessed = flops_of_token(CONFIG, 4, 6) + flops_of_token(CONFIG, 4, 7) + head
    assert spent(SPECULATIVE, 3) in (read + guessed, read + guessed + flops_of_token(CONFIG, 4, 7))


def test_usage_reports_cost_and_mean_depth(checkpoint):
    lm = LanguageModel(checkpoint)
    try:
        reply = lm.chat([{"role": "user", "content": "hi"}], max_tokens=6, temperature=0)
        assert reply.usage.mean_depth == checkpoint.config.num_hidden_layers
        tokens = reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert 0 < reply.usage.flops < tokens * checkpoint.config.flops_per_token(tokens)
    finally:
        lm.close()
