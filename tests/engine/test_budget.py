"""A thinking budget: at the cap the model is made to close its thinking, and goes on with the answer."""

import pytest
from policy_helpers import build, prompts, replies

from qwq.engine import ComputePolicy, Engine, LanguageModel, SamplingParams

THINKS = "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n"  # ends inside a thought, as QwQ's does


@pytest.fixture
def lm(checkpoint, monkeypatch):
    """A model that never closes its thinking by itself."""
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", THINKS)
    model = LanguageModel(checkpoint)
    yield model
    model.close()


def ask(lm, **sampling):
    return lm.chat([{"role": "user", "content": "the cat"}], temperature=0, **sampling)


def test_without_a_budget_it_thinks_to_the_end(lm):
    reply = ask(lm, max_tokens=60)
    assert (reply.content, reply.finish_reason) == ("", "length")
    assert reply.usage.reasoning_tokens == 60


@pytest.mark.parametrize("budget", [0, 1, 12])
@pytest.mark.parametrize("compute", ["full", ComputePolicy("speculative", draft_layers=1)])
def test_thinking_ends_at_the_cap_and_the_answer_follows(lm, budget, compute):
    closing = len(lm.tokenizer.encode(ComputePolicy().thinking_end, special=True))
    free = ask(lm, max_tokens=60)
    reply = ask(lm, max_tokens=budget + closing + 10, max_thinking_tokens=budget, compute=compute)
    sentence = ComputePolicy().thinking_end.split("</think>")[0].strip()
    assert reply.reasoning.rstrip().endswith(sentence)
    own = reply.reasoning[: reply.reasoning.index(sentence)].strip()
    assert free.reasoning.strip().startswith(own)
    assert bool(own) == (budget > 0)
    assert "</think>" not in reply.content + reply.reasoning
    assert reply.usage.completion_tokens == budget + closing + 10
    assert budget < reply.usage.reasoning_tokens <= budget + closing


def test_the_policy_of_a_model_can_hold_it_and_a_sentence_of_its_own(lm):
    lm.default_sampling["compute"] = ComputePolicy(max_thinking_tokens=3, thinking_end="\nenough\n</think>\n\n")
    assert ask(lm, max_tokens=40).reasoning.endswith("enough")
    assert ask(lm, max_tokens=40, max_thinking_tokens=1000).usage.reasoning_tokens == 40  # the request's own counts


def test_it_streams_like_any_other_text(lm):
    deltas = list(lm.chat_stream([{"role": "user", "content": "hi"}], max_tokens=50, max_thinking_tokens=5, seed=1))
    first_answer = next((i for i, delta in enumerate(deltas) if delta.content), len(deltas))
    assert not any(delta.reasoning for delta in deltas[first_answer + 1 :])
    assert sum(bool(delta.reasoning) for delta in deltas) > 5


def test_raw_text_has_no_thinking_to_close(lm):
    assert lm.generate("the cat", temperature=0, max_tokens=20, max_thinking_tokens=0) == lm.generate(
        "the cat", temperature=0, max_tokens=20
    )


def test_forced_tokens_come_first_and_count_for_the_penalties():
    [prompt] = prompts(1)
    for compute in ("full", "speculative"):
        params = SamplingParams(temperature=0, max_tokens=6, frequency_penalty=50, compute=compute)
        [(tokens, _, request)] = replies(Engine(build()), [(prompt, params)], forced=[7, 7, 9])
        assert tokens[:3] == [7, 7, 9]
        assert not {7, 9} & set(tokens[3:])
        assert request.sampler.counts[7] == 2
