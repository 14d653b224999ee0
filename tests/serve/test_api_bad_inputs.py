"""Bad HTTP requests: each gets its status, its code and one clear line, in OpenAI's shape."""

import json

import pytest

from qwq.engine import LanguageModel

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


def chat(**body):
    return CHAT, {"model": "tiny", "messages": USER, "max_tokens": 2, **body}


def text(**body):
    return TEXT, {"model": "tiny", "prompt": "hi", "max_tokens": 2, **body}


def message(content, role="user"):
    return chat(messages=[{"role": role, "content": content}])


# (request, status, code, param)
BAD = {
    "the body is not JSON": ((CHAT, b"{model: tiny}"), 400, "invalid_json", None),
    "the body is cut off": ((CHAT, b'{"model": "ti'), 400, "invalid_json", None),
    "the body is empty": ((CHAT, b""), 400, "invalid_json", None),
    "the body is a list": ((CHAT, []), 400, "invalid_json", None),
    "the body is a string": ((TEXT, "hello"), 400, "invalid_json", None),
    "the body is not UTF-8": ((CHAT, b'{"model": "\xff"}'), 400, "invalid_json", None),
    "the body is nested too deep": ((CHAT, b"[" * 200_000), 400, "invalid_json", None),
    "model is missing": ((CHAT, {"messages": USER}), 400, "missing_required_parameter", "model"),
    "model is a number": (chat(model=5), 400, "invalid_type", "model"),
    "model is unknown": (chat(model="tiny2"), 404, "model_not_found", "model"),
    "model is a lone surrogate": ((TEXT, b'{"model": "\\ud800", "prompt": "a"}'), 404, "model_not_found", "model"),
    "messages are missing": ((CHAT, {"model": "tiny"}), 400, "missing_required_parameter", "messages"),
    "messages are empty": (chat(messages=[]), 400, "invalid_value", "messages"),
    "messages are a string": (chat(messages="hi"), 400, "invalid_type", "messages"),
    "a message is a string": (chat(messages=["hi"]), 400, "invalid_type", "messages[0]"),
    "a role is unknown": (message("hi", role="boss"), 400, "invalid_value", "messages[0].role"),
    "a role is missing": (
        chat(messages=[*USER, {"content": "hi"}]),
        400,
        "missing_required_parameter",
        "messages[1].role",
    ),
    "content is missing": (chat(messages=[{"role": "user"}]), 400, "invalid_value", "messages[0]"),
    "content is a number": (message(3), 400, "invalid_type", "messages[0].content"),
    "content is an image": (
        message([{"type": "image_url", "image_url": {"url": "x"}}]),
        400,
        "invalid_value",
        "messages[0].content",
    ),
    "a text part has no text": (
        message([{"type": "text"}]),
        400,
        "missing_required_parameter",
        "messages[0].content[0].text",
    ),
    "history has tool calls": (
        chat(messages=[{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]),
        400,
        "invalid_value",
        "messages[0]",
    ),
    "max_tokens is negative": (chat(max_tokens=-1), 400, "invalid_value", "max_tokens"),
    "max_tokens is zero": (chat(max_tokens=0), 400, "invalid_value", "max_tokens"),
    "max_tokens is a string": (chat(max_tokens="9"), 400, "invalid_type", "max_tokens"),
    "max_tokens is true": (chat(max_tokens=True), 400, "invalid_type", "max_tokens"),
    "max_tokens is a fraction": (chat(max_tokens=1.5), 400, "invalid_type", "max_tokens"),
    "max_completion_tokens is zero": (chat(max_completion_tokens=0), 400, "invalid_value", "max_completion_tokens"),
    "temperature is hot": (chat(temperature=3), 400, "invalid_value", "temperature"),
    "temperature is below zero": (text(temperature=-0.1), 400, "invalid_value", "temperature"),
    "temperature is no number": (
        (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": ""}], "temperature": NaN}'),
        400,
        "invalid_value",
        "temperature",
    ),
    "temperature is huge": (chat(temperature=10**400), 400, None, "temperature"),
    "top_p is zero": (chat(top_p=0), 400, "invalid_value", "top_p"),
    "top_p is text": (chat(top_p="all"), 400, "invalid_type", "top_p"),
    "top_k is negative": (chat(top_k=-2), 400, "invalid_value", "top_k"),
    "min_p is above one": (chat(min_p=1.1), 400, "invalid_value", "min_p"),
    "repetition_penalty is zero": (chat(repetition_penalty=0), 400, "invalid_value", "repetition_penalty"),
    "presence_penalty is large": (chat(presence_penalty=9), 400, "invalid_value", "presence_penalty"),
    "seed is text": (chat(seed="lucky"), 400, "invalid_type", "seed"),
    "seed has more than 64 bits": (chat(seed=2**70), 400, "invalid_value", "seed"),
    "n is zero": (chat(n=0), 400, "invalid_value", "n"),
    "n is large": (chat(n=100), 400, "invalid_value", "n"),
    "n times prompts is large": (text(prompt=["a", "b", "c"], n=4), 400, "invalid_request", "n"),
    "stop is a number": (chat(stop=5), 400, "invalid_type", "stop"),
    "stop is empty": (chat(stop=["a", ""]), 400, "invalid_value", "stop"),
    "stop is long": (chat(stop=["x"] * 17), 400, "invalid_value", "stop"),
    "stream is text": (chat(stream="yes"), 400, "invalid_type", "stream"),
    "stream_options without stream": (
        chat(stream_options={"include_usage": True}),
        400,
        "invalid_request",
        "stream_options",
    ),
    "top_logprobs without logprobs": (chat(top_logprobs=2), 400, "invalid_request", "top_logprobs"),
    "logprobs of a chat is a number": (chat(logprobs=3), 400, "invalid_type", "logprobs"),
    "tools": (chat(tools=[{"type": "function"}]), 400, "unsupported_parameter", "tools"),
    "response_format": (
        chat(response_format={"type": "json_object"}),
        400,
        "unsupported_parameter",
        "response_format",
    ),
    "echo": (text(echo=True), 400, "unsupported_parameter", "echo"),
    "suffix": (text(suffix="end"), 400, "unsupported_parameter", "suffix"),
    "a misspelt parameter": (chat(temprature=1), 400, "unknown_parameter", "temprature"),
    "a template variable that is reserved": (
        chat(chat_template_kwargs={"messages": []}),
        400,
        "invalid_value",
        "chat_template_kwargs",
    ),
    "prompt is missing": ((TEXT, {"model": "tiny"}), 400, "missing_required_parameter", "prompt"),
    "prompt is an empty list": (text(prompt=[]), 400, "invalid_value", "prompt"),
    "prompt mixes text and ids": (text(prompt=["a", 1]), 400, "invalid_value", "prompt"),
    "prompt is a negative id": (text(prompt=[-1]), 400, "invalid_value", "prompt"),
    "prompt is an id beyond the vocabulary": (text(prompt=[10**6]), 400, "invalid_request", "prompt"),
    "prompt is empty": (text(prompt=""), 400, None, "prompt"),
    "prompt is longer than the context": (text(prompt=[1] * 256), 400, "context_length_exceeded", "prompt"),
    "chat is longer than the context": (message("cat " * 300), 400, "context_length_exceeded", "messages"),
    "the route does not exist": (("/v1/embeddings", {}), 404, "not_found", None),
    "the route takes only GET": (("/v1/models", {}), 405, "method_not_allowed", None),
}


def assert_openai_error(response, status, code=None, param=None):
    """The status, and a body of OpenAI's shape with a message of one line."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    message = body["error"]["message"]
    assert message
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 300
    if code is not None:
        assert body["error"]["code"] == code, body
    assert body["error"]["param"] == param, body
    assert "\n" not in response.text.strip()


def send(http, path, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(path, content=data, headers={"content-type": "application/json"})


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_one_clear_line(http, case):
    (path, body), status, code, param = BAD[case]
    assert_openai_error(send(http, path, body), status, code, param)


def test_nothing_of_a_refused_request_runs(http, models):
    before = models["tiny"].stats()
    for case in BAD:
        (path, body), *_ = BAD[case]
        assert send(http, path, body).status_code < 500
    assert models["tiny"].stats() == before


def test_a_misspelt_parameter_gets_the_nearest_name(http):
    path, body = chat(temprature=1)
    assert "Did you mean 'temperature'?" in http.post(path, json=body).json()["error"]["message"]


def test_a_long_chat_is_told_both_lengths(http, models):
    path, body = message("cat " * 300)
    message_of_error = http.post(path, json=body).json()["error"]["message"]
    assert f"{len(models['tiny'].chat_ids(body['messages'])):,} tokens" in message_of_error
    assert "256" in message_of_error


def test_a_stream_is_refused_with_a_status_before_it_begins(http):
    path, body = message("cat " * 300)
    assert_openai_error(http.post(path, json={**body, "stream": True}), 400, "context_length_exceeded", "messages")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT, 405), ("DELETE", "/v1/models/tiny", 405), ("GET", "/nowhere", 404), ("GET", "/v1/models/none", 404)],
)
def test_wrong_methods_and_paths(http, method, path, status):
    assert_openai_error(http.request(method, path), status, param="model" if "none" in path else None)


def test_an_error_nobody_foresaw_is_a_500_that_shows_nothing_of_the_inside(http, monkeypatch, caplog):
    def broken(self, messages, **template):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(LanguageModel, "chat_ids", broken)
    path, body = chat()
    response = http.post(path, json=body)
    assert_openai_error(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.text
    assert "secret detail" in caplog.text


def test_an_engine_that_fails_is_a_500_that_shows_nothing_of_the_inside(http):
    path, body = chat(model="broken")
    response = http.post(path, json=body)
    assert_openai_error(response, 500, "engine_error")
    assert "shape" not in response.text


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error_event(http):
    path, body = chat(model="broken", stream=True)
    events = http.post(path, json=body).text.strip().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_error"
    assert events[-1] == "data: [DONE]"
