"""OpenAI's Python SDK, unmodified, against a running server."""

import asyncio
import itertools

import openai
import pytest
from serve_helpers import ANSWER, KEY, THOUGHT, until

HI = [{"role": "user", "content": "the cat sees"}]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models_are_listed_and_found_by_id(client):
    assert [model.id for model in client.models.list()] == ["tiny", "endless", "narrow", "org/thinker", "broken"]
    model = client.models.retrieve("org/thinker")
    assert (model.id, model.object, model.context_length) == ("org/thinker", "model", 2048)


def test_a_chat_is_answered_with_usage(client):
    reply = client.chat.completions.create(model="tiny", messages=HI, max_tokens=7, seed=1)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 7
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 7
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_streamed_chat_is_the_same_text_piece_by_piece(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 30, "seed": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in pieces if c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert len(pieces) > 5
    assert len({chunk.id for chunk in chunks}) == 1
    assert (last.choices, last.usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in pieces)


def test_a_stream_has_no_usage_unless_asked(client):
    chunks = list(client.chat.completions.create(model="tiny", messages=HI, max_tokens=3, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_thinking_is_told_apart_from_the_answer(client):
    reply = client.chat.completions.create(model="org/thinker", messages=HI, temperature=0)
    message = reply.choices[0].message
    assert (message.reasoning_content, message.reasoning, message.content) == (THOUGHT, THOUGHT, ANSWER)
    assert reply.choices[0].finish_reason == "stop"
    assert 0 < reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.completion_tokens


def test_streamed_thinking_comes_in_fields_of_its_own(client):
    chunks = list(client.chat.completions.create(model="org/thinker", messages=HI, temperature=0, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    for name in ("reasoning_content", "reasoning"):
        assert "".join(getattr(delta, name, None) or "" for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER


def test_an_answer_can_be_sent_back_as_history_and_its_thinking_is_dropped(client):
    first = client.chat.completions.create(model="org/thinker", messages=HI, temperature=0).choices[0].message
    history = [*HI, first.model_dump(), {"role": "user", "content": "and?"}]
    plain = [*HI, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "and?"}]
    counts = [
        client.chat.completions.create(model="org/thinker", messages=m, temperature=0).usage.prompt_tokens
        for m in (history, plain)
    ]
    assert counts[0] == counts[1]


def test_content_may_be_a_list_of_text_parts(client):
    parts = [{"role": "user", "content": [{"type": "text", "text": "the cat "}, {"type": "text", "text": "sees"}]}]
    replies = [
        client.chat.completions.create(model="tiny", messages=m, max_tokens=9, temperature=0) for m in (HI, parts)
    ]
    assert replies[0].choices == replies[1].choices


@pytest.mark.parametrize(
    ("stop", "text"), [(" reads", "the cat"), (["never", " reads"], "the cat"), (["a", "b", "c", "reads"], "the ")]
)
def test_a_stop_string_ends_the_text_before_it(client, stop, text):
    reply = client.completions.create(model="org/thinker", prompt="x", temperature=0, stop=stop)
    assert reply.choices[0].text == text
    assert reply.choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_text_and_another_seed_another(client):
    def text(seed):
        asked = client.chat.completions.create(model="tiny", messages=HI, max_tokens=20, temperature=1, seed=seed)
        return asked.choices[0].message.content

    assert text(11) == text(11)
    assert text(11) != text(12)


def test_without_a_seed_texts_differ(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 20, "temperature": 1}
    assert len({client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}) > 1


def test_several_choices_come_from_seeds_of_their_own_and_share_the_prompt(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 15}
    many = client.chat.completions.create(**asked, n=3, seed=5)
    alone = [client.chat.completions.create(**asked, seed=seed) for seed in (5, 6, 7)]
    assert [c.message.content for c in many.choices] == [reply.choices[0].message.content for reply in alone]
    assert many.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert many.usage.completion_tokens == sum(reply.usage.completion_tokens for reply in alone)


def test_several_choices_are_streamed_under_their_index(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 15, "n": 2, "seed": 5}
    whole = client.chat.completions.create(**asked)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_text_is_completed_and_streamed(client):
    asked = {"model": "tiny", "prompt": "the cat", "temperature": 0}
    whole = client.completions.create(**asked)
    assert whole.object == "text_completion"
    assert whole.usage.completion_tokens <= 16
    pieces = client.completions.create(**asked, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_prompts_may_be_lists_and_token_ids(client, tokenizer):
    asked = {"model": "tiny", "temperature": 0}
    ids = [tokenizer.encode("the cat"), tokenizer.encode("a dog")]
    texts = client.completions.create(**asked, prompt=["the cat", "a dog"])
    tokens = client.completions.create(**asked, prompt=ids)
    assert [c.text for c in texts.choices] == [c.text for c in tokens.choices]
    assert texts.usage.prompt_tokens == sum(len(i) for i in ids)
    assert client.completions.create(**asked, prompt=ids[0]).choices[0].text == texts.choices[0].text


def test_log_probabilities_of_a_greedy_answer_are_the_largest(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 5, "temperature": 0}
    reply = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == reply.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs) < 0
    assert client.chat.completions.create(**asked).choices[0].logprobs is None
    texts = client.completions.create(model="tiny", prompt="the", max_tokens=4, temperature=0, logprobs=2).choices[0]
    assert len(texts.logprobs.tokens) == len(texts.logprobs.token_logprobs) == len(texts.logprobs.top_logprobs) == 4


def test_parameters_that_change_nothing_here_are_ignored(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 9, "temperature": 0}
    more = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "tools": [], "logit_bias": {}}
    plain, extra = client.chat.completions.create(**asked), client.chat.completions.create(**asked, **more)
    assert plain.choices == extra.choices


def test_sampling_parameters_beyond_openai_are_taken(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 12}
    greedy = client.chat.completions.create(**asked, temperature=0)
    first = client.chat.completions.create(**asked, temperature=1, extra_body={"top_k": 1})
    assert first.choices[0].message.content == greedy.choices[0].message.content
    more = {"min_p": 0.1, "repetition_penalty": 1.3, "top_k": 5, "enable_thinking": False}
    client.chat.completions.create(**asked, presence_penalty=1, frequency_penalty=1, top_p=0.9, extra_body=more)


def test_the_asynchronous_client_works_too(served):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="tiny", messages=HI, max_tokens=5, stream=True)
            return [chunk async for chunk in stream]

    assert asyncio.run(ask())[-1].choices[0].finish_reason in ("length", "stop")


def test_negative_max_tokens_raise_bad_request(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HI, max_tokens=-5)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "invalid_value")


def test_a_prompt_longer_than_the_context_raises_bad_request_with_both_lengths(client, tokenizer):
    prompt = [1] * 300
    with pytest.raises(openai.BadRequestError, match=r"300 tokens.* 256") as caught:
        client.completions.create(model="tiny", prompt=prompt)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")


def test_an_unknown_model_raises_not_found_and_names_the_nearest(client):
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny'") as caught:
        client.chat.completions.create(model="tinny", messages=HI)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")


def test_a_wrong_key_raises_authentication_error_and_the_right_one_is_let_in(locked):
    with pytest.raises(openai.AuthenticationError, match="wrong"):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="guess", max_retries=0).models.list()
    right = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0)
    assert right.chat.completions.create(model="tiny", messages=HI, max_tokens=2).usage.completion_tokens == 2


def test_a_full_queue_raises_rate_limit_error_with_retry_after(client, models):
    narrow = models["narrow"]
    until(lambda: narrow.stats()["running"] == 0)
    running = client.completions.create(model="narrow", prompt="a", max_tokens=16000, stream=True)
    until(lambda: (narrow.stats()["running"], narrow.stats()["waiting"]) == (1, 0))
    waiting = client.completions.create(model="narrow", prompt="a", max_tokens=16000, stream=True)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="narrow", prompt="a")
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert caught.value.code == "queue_full"
    for stream in (running, waiting):
        stream.close()
    until(lambda: narrow.stats()["running"] == narrow.stats()["waiting"] == 0)


def test_a_stream_that_is_closed_early_frees_its_slot(client, models):
    stream = client.chat.completions.create(model="endless", messages=HI, max_tokens=16000, stream=True)
    list(itertools.islice(stream, 5))
    assert models["endless"].stats()["running"] == 1
    stream.close()
    until(lambda: models["endless"].stats()["running"] == 0)
