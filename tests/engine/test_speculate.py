"""Self-speculative decoding changes how long a reply takes, and nothing in it."""

import dataclasses
import itertools

import pytest
import torch
from policy_helpers import CONFIG, SPECULATIVE, build, prompts, replies

from qwq.engine import ComputePolicy, Engine, LanguageModel, SamplingParams
from qwq.engine.speculate import TorchDecode
from qwq.errors import UsageError


def both(model, jobs, policy=SPECULATIVE, **options):
    """The same jobs without and with speculation."""
    full = replies(Engine(model, max_queue=1000, **options), jobs)
    jobs = [(prompt, dataclasses.replace(params, compute=policy)) for prompt, params in jobs]
    return full, replies(Engine(model, max_queue=1000, **options), jobs)


def shown(results):
    return [(tokens, reason) for tokens, reason, _ in results]


def test_greedy_replies_to_200_prompts_are_those_of_full_depth():
    """In fp64, in batches, with limits and stop tokens at any place in a draft. Some guesses are right here."""
    jobs = [(p, SamplingParams(temperature=0, max_tokens=3 + i % 20)) for i, p in enumerate(prompts(200))]
    model = build()
    full, quick = both(model, jobs, max_batch_size=7)
    assert shown(full) == shown(quick)
    spent = sum(request.layers for *_, request in quick) / sum(len(tokens) for tokens, *_ in quick)
    assert 5 < spent < 15  # layers a token: 4 with every guess right, nearly 20 with none
    stops = replies(Engine(model, max_queue=1000), [(p, dataclasses.replace(params, compute=SPECULATIVE))
                    for p, params in jobs[:40]], stop_ids=[7, 11, 19])  # fmt: skip
    for (tokens, _), (cut, reason, _) in zip(shown(full)[:40], stops, strict=True):
        end = next((i for i, token in enumerate(tokens) if token in (7, 11, 19)), None)
        assert cut == tokens[:end]
        assert reason == ("length" if end is None else "stop")


def test_the_kernel_takes_other_tokens_only_where_two_nearly_tie():
    """In fp32 sums have another order; the first difference of a reply must be at a near tie (1e-3)."""
    model = build(torch.float32)
    jobs = [(p, SamplingParams(temperature=0, max_tokens=16)) for p in prompts(60)]
    full, quick = both(model, jobs)
    for (prompt, _), (expected, _), (got, _) in zip(jobs, shown(full), shown(quick), strict=True):
        place = next((i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b), None)
        if place is not None:
            with torch.no_grad():
                top = model(torch.tensor([prompt + expected[:place]]))[0, -1].topk(2).values
            assert float(top[0] - top[1]) < 1e-3


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
        {"temperature": 1.0, "presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
        {"temperature": 0, "repetition_penalty": 1.3, "logprobs": 3},
    ],
)
@pytest.mark.parametrize("policy", [ComputePolicy("speculative", draft_tokens=1), ComputePolicy("speculative", 3, 6)])
def test_seeded_samples_are_the_same_tokens(sampling, policy):
    jobs = [(p, SamplingParams(seed=i, max_tokens=14, **sampling)) for i, p in enumerate(prompts(12))]
    full, quick = both(build(), jobs, policy, max_batch_size=5)
    assert shown(full) == shown(quick)


def test_samples_have_the_models_distribution():
    """Tokens 2 and 3 of 1,500 replies, of which the third is guessed, against their exact joint chance: chi-square."""
    model, prompt, count, temperature = build(vocab_size=4), [1, 2, 3], 1500, 4.0

    def next_token(ids):
        with torch.no_grad():
            return (model(torch.tensor([ids]))[0, -1] / temperature).softmax(-1)

    expected = torch.zeros(4, 4, dtype=torch.float64)
    for first, second in itertools.product(range(4), repeat=2):
        chance = next_token(prompt)[first] * next_token([*prompt, first])[second]
        expected[second] += count * chance * next_token([*prompt, first, second])
    seen, kept = torch.zeros(4, 4, dtype=torch.float64), 0
    jobs = [SamplingParams(max_tokens=3, temperature=temperature, seed=i, compute=SPECULATIVE) for i in range(count)]
    for tokens, _, request in replies(Engine(model, max_queue=count), [(prompt, params) for params in jobs]):
        seen[tokens[1], tokens[2]] += 1
        kept += request.layers == 12  # of 16 where the guess was wrong
    assert 0.2 < kept / count < 0.98
    assert float(expected.min()) > 5
    assert float(((seen - expected).square() / expected).sum()) < 37.7  # 15 degrees of freedom, p = 0.001


def test_rows_with_different_policies_run_side_by_side():
    model, jobs = build(), []
    policies = [ComputePolicy(), SPECULATIVE, SPECULATIVE, ComputePolicy("speculative", 2, 3), ComputePolicy()]
    for index, prompt in enumerate(prompts(15)):
        jobs.append((prompt, SamplingParams(temperature=0, max_tokens=4 + index, compute=policies[index % 5])))
    plain = [(prompt, dataclasses.replace(params, compute=ComputePolicy())) for prompt, params in jobs]
    mixed = replies(Engine(model, max_batch_size=6, prefill_chunk=7), jobs)
    assert shown(mixed) == shown(replies(Engine(model), plain))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "attention_patterns": ("local(16)+learnable(1)", "global(8)+random(1)", "dense", "local(8)"),
            "attention_block_size": 8,
        },
        {"mod_layers": (1, 3)},
    ],
)
def test_rejected_tokens_are_taken_back_wherever_they_left_a_trace(changes):
    """In what a gate keeps of each block; in a mixture-of-depths layer, where they may have gone or not."""
    model = build(**changes)
    jobs = [(p, SamplingParams(temperature=0, max_tokens=20)) for p in prompts(12, longest=70)]
    full, quick = both(model, jobs, max_batch_size=4)
    assert shown(full) == shown(quick)
    assert len({tuple(tokens) for tokens, *_ in full}) > 6


def test_the_draft_leaves_the_rows_as_long_as_they_were():
    model = build()
    engine = Engine(model)
    rows = engine.cache.rows(0, 2)
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3], [4, 5, 6]]), cache=rows)
        drafted, states = TorchDecode(model).draft(torch.tensor([[7], [8]]), rows, torch.zeros(2, 3, 61), 1)
        assert engine.cache.lengths[:2] == [3, 3]
        assert (drafted.shape, states.shape) == ((2, 4), (2, 4, CONFIG.hidden_size))
        TorchDecode(model).finish(drafted, states, rows, 1)
    assert engine.cache.lengths[:2] == [7, 7]


def test_text_stops_and_streams_as_without(checkpoint):
    """Stop strings that end inside a draft; what is shown, and why it ended."""
    lm = LanguageModel(checkpoint)
    try:
        compute = ComputePolicy("speculative", draft_layers=1)
        for seed in range(6):
            options = {"temperature": 0.9, "seed": seed, "max_tokens": 40, "stop": ["e", "th"]}
            parts = [list(lm.stream("the cat", **options, **more)) for more in ({}, {"compute": compute})]
            texts = ["".join(delta.content for delta in deltas) for deltas in parts]
            assert texts[0] == texts[1]
            plain, quick = (deltas[-1].usage for deltas in parts)
            assert plain.completion_tokens == quick.completion_tokens
            assert quick.flops > plain.flops
    finally:
        lm.close()


def test_a_model_without_exits_is_refused_unless_the_depth_is_given():
    engine = Engine(build(exit_layers=()))
    with pytest.raises(UsageError, match="exits"):
        engine.submit([1], SamplingParams(compute="speculative"), print)
    with pytest.raises(UsageError, match="draft_layers must be below 4"):
        engine.submit([1], SamplingParams(compute=ComputePolicy("speculative", draft_layers=4)), print)
