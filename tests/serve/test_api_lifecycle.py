"""Beginnings and ends: clients that leave, clients in a crowd, signals, ports that are taken."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from serve_helpers import start, until
from test_api_bad_inputs import assert_openai_error

from qwq.checkpoint import native
from qwq.errors import QwqError, UsageError
from qwq.serve import create_app, serve

CHAT = "/v1/chat/completions"


def ask(model="tiny", max_tokens=8, **more):
    return {"model": model, "messages": [{"role": "user", "content": "the"}], "max_tokens": max_tokens, **more}


def post_raw(url, body):
    """A socket on which the request has been sent and nothing read."""
    address = urlsplit(url)
    data = json.dumps(body).encode()
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(
        f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(served, models, stream):
    lm = models["endless"]
    connection = post_raw(served.url, ask("endless", 16000, stream=stream))
    until(lambda: lm.stats()["running"] == 1)
    if stream:
        received = b""  # the headers may come alone
        while b"data: " not in received:
            part = connection.recv(65536)
            assert part, received
            received += part
    connection.close()
    until(lambda: lm.stats()["running"] == 0)
    assert lm.stats()["waiting"] == 0
    until(lambda: served.server.lifecycle.active == 0)


def test_all_choices_of_a_client_that_hangs_up_are_freed(served, models):
    connection = post_raw(served.url, ask("endless", 16000, n=3))
    until(lambda: models["endless"].stats()["running"] == 3)
    connection.close()
    until(lambda: models["endless"].stats()["running"] == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_in_the_queue_leaves_the_queue(served, models, stream):
    lm = models["narrow"]
    first = post_raw(served.url, ask("narrow", 16000, stream=True))
    until(lambda: lm.stats()["running"] == 1)
    second = post_raw(served.url, ask("narrow", 16000, stream=stream))
    until(lambda: lm.stats()["waiting"] == 1)
    second.close()
    until(lambda: lm.stats()["waiting"] == 0)
    assert lm.stats()["running"] == 1
    first.close()
    until(lambda: lm.stats()["running"] == 0)


def test_comments_keep_a_waiting_stream_alive(served, models, monkeypatch):
    monkeypatch.setattr("qwq.serve.stream.KEEP_ALIVE_SECONDS", 0.01)
    first = post_raw(served.url, ask("narrow", 16000, stream=True))
    until(lambda: models["narrow"].stats()["running"] == 1)
    with httpx.stream("POST", served.url + CHAT, json=ask("narrow", 5, stream=True), timeout=60) as response:
        lines = response.iter_lines()
        assert ": still working" in lines  # reads up to it
        first.close()
        events = [line for line in lines if line and not line.startswith(":")]
    assert events[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in events)


def test_a_body_that_never_comes_is_given_up(served, monkeypatch):
    monkeypatch.setattr("qwq.serve.guard.BODY_SECONDS", 0.1)
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    until(lambda: served.server.lifecycle.active == 0)


def test_a_client_that_stops_reading_is_given_up_and_its_slot_freed(models, monkeypatch):
    """Straight against the application: it takes megabytes to fill the buffers of a real connection."""
    monkeypatch.setattr("qwq.serve.guard.STALL_SECONDS", 0.1)
    app = create_app(models)
    body = [
        {"type": "http.request", "body": json.dumps(ask("endless", 16000, stream=True)).encode(), "more_body": False}
    ]
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
    sent = []

    async def receive():
        return body.pop() if body else await asyncio.Future()

    async def send(message):
        sent.append(message)
        if len(sent) == 4:
            await asyncio.Future()

    asyncio.run(app(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * 3
    assert app.state.lifecycle.active == 0
    until(lambda: models["endless"].stats()["running"] == 0)


def test_sixteen_clients_share_four_slots_and_all_are_answered(served, models):
    most = 0

    def one(seed):
        nonlocal most
        stream = seed % 2 == 0
        with httpx.Client(base_url=served.url, timeout=120) as client:
            body = ask(
                "endless", 40, seed=seed, stream=stream, stream_options={"include_usage": True} if stream else None
            )
            text = client.post(CHAT, json=body).text
        most = max(most, models["endless"].stats()["running"])
        last = json.loads(text.strip().split("\n\n")[-2].removeprefix("data: ")) if stream else json.loads(text)
        return last["usage"]["completion_tokens"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == [40] * 16
    assert most <= 4
    until(lambda: models["endless"].stats()["running"] == 0)


def test_the_metrics_count_requests_tokens_and_latencies(served, models, http):
    def value(name):
        lines = http.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0.0)

    names = {
        "requests": 'qwq_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}',
        "refused": 'qwq_http_requests_total{method="POST",route="/v1/chat/completions",status="400"}',
        "generated": 'qwq_generated_tokens_total{model="endless"}',
        "prompt": 'qwq_prompt_tokens_total{model="endless"}',
        "first": 'qwq_time_to_first_token_seconds_count{model="endless"}',
        "each": 'qwq_time_per_output_token_seconds_count{model="endless"}',
    }
    before = {key: value(name) for key, name in names.items()}
    usage = http.post(CHAT, json=ask("endless", 9)).json()["usage"]
    http.post(CHAT, json=ask("endless", -9))
    after = {key: value(name) - before[key] for key, name in names.items()}
    assert after == {
        "requests": 1,
        "refused": 1,
        "generated": 9,
        "prompt": usage["prompt_tokens"],
        "first": 1,
        "each": 1,
    }
    assert value('qwq_requests_running{model="endless"}') == 0
    with http.stream("POST", CHAT, json=ask("endless", 16000, stream=True)) as response:
        pieces = response.iter_raw()  # held: an iterator that is dropped closes the connection
        next(pieces)
        assert value('qwq_requests_running{model="endless"}') == 1
    until(lambda: value('qwq_requests_running{model="endless"}') == 0)


def test_unknown_paths_share_one_label_so_that_nobody_can_fill_the_metrics(http):
    for index in range(5):
        http.get(f"/random-{index}")
    text = http.get("/metrics").text
    assert 'route="unmatched"' in text
    assert "random-" not in text


def test_a_draining_server_answers_503_and_finishes_what_runs(models):
    running = start(models)
    with httpx.Client(base_url=running.url, timeout=60) as client:
        connection = post_raw(running.url, ask("endless", 16000, stream=True))
        until(lambda: models["endless"].stats()["running"] == 1)
        running.server.handle_exit(signal.SIGTERM, None)
        refused = client.post(CHAT, json=ask())
        assert_openai_error(refused, 503, "shutting_down")
        assert int(refused.headers["retry-after"]) > 0
        assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "draining")
        assert running.thread.is_alive()
        connection.close()
    running.stop()


SCRIPT = """
import sys, qwq
from qwq.serve import create_app, serve
lm = qwq.load(sys.argv[1])
lm.stop_ids = frozenset()
serve({"endless": lm}, port=0)
"""


@pytest.fixture
def process(models, tmp_path):
    """A server in a process of its own, and its address."""
    lm = models["endless"]
    native.save(tmp_path / "model", lm.model, lm.tokenizer, {})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True, env=environment
    ) as made:
        line = made.stdout.readline()
        assert line.startswith("Serving endless at http://127.0.0.1:"), line
        yield made, line.split()[3]
        if made.poll() is None:
            made.kill()


def test_sigterm_finishes_what_runs_and_exits_with_0(process):
    server, url = process
    with httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", CHAT, json=ask("endless", 1500, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{url}/health").status_code == 503)
            assert_openai_error(httpx.post(url + CHAT, json=ask("endless")), 503, "shutting_down")
            events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert server.wait(timeout=60) == 0


def test_ctrl_c_twice_ends_at_once_whatever_runs(process):
    server, url = process
    with httpx.stream("POST", url + CHAT, json=ask("endless", 16000, stream=True), timeout=60) as response:
        pieces = response.iter_raw()  # held: an iterator that is dropped closes the connection
        next(pieces)
        server.send_signal(signal.SIGINT)
        until(lambda: httpx.get(f"{url}/health").status_code == 503)
        assert server.poll() is None
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0


def test_ctrl_c_of_an_idle_server_exits_with_0(process):
    server, url = process
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "models": ["endless"]}
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=30) == 0


def test_a_port_that_is_taken_is_named_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QwqError, match=rf"port {port} .* --port {port + 1}"):
            serve({}, port=port)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"host": "0.0.0.0"}, "--api-key"),
        ({"host": "::"}, "--api-key"),
        ({"host": "192.0.2.1"}, "--api-key"),
        ({"host": "example.invalid"}, "--api-key"),
        ({"api_key": ""}, "API key"),
        ({"api_key": "two words"}, "API key"),
        ({"api_key": "clé"}, "API key"),
        ({"port": 70000}, "--port"),
        ({"port": -1}, "--port"),
        ({"host": "192.0.2.1", "api_key": "k"}, "--host 192.0.2.1"),
        ({"host": "no.such.host.invalid", "api_key": "k"}, "no.such.host.invalid"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_listens(settings, match, monkeypatch):
    monkeypatch.delenv("QWQ_API_KEY", raising=False)
    threads = threading.active_count()
    with pytest.raises(UsageError, match=match) as caught:
        serve({}, **settings)
    assert "\n" not in str(caught.value)
    assert threading.active_count() == threads


def test_a_key_in_the_environment_is_demanded(models, monkeypatch):
    monkeypatch.setenv("QWQ_API_KEY", "from-env")
    running = start(models)
    assert httpx.get(f"{running.url}/v1/models").status_code == 401
    assert httpx.get(f"{running.url}/v1/models", headers={"authorization": "Bearer from-env"}).status_code == 200
    running.stop()
