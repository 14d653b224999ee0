"""What stands before every route: Host, Origin, key, type and size of the body; and the headers on every answer."""

import re
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from serve_helpers import KEY
from test_api_bad_inputs import assert_openai_error

from qwq.serve.guard import MAX_BODY_BYTES, hosts_for

CHAT = "/v1/chat/completions"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost@evil", ""]
)
def test_a_foreign_host_name_is_refused_so_that_dns_rebinding_fails(http, host):
    host = host.format(port=http.base_url.port)
    for path in ("/v1/models", "/", "/health"):
        assert_openai_error(http.get(path, headers={"host": host}), 421, "misdirected_request")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}", "localhost:9999"]
)
def test_this_machines_own_names_are_answered(http, host):
    assert http.get("/v1/models", headers={"host": host.format(port=http.base_url.port)}).status_code == 200


def test_a_server_bound_to_a_name_answers_to_it_and_to_what_a_proxy_was_allowed():
    assert hosts_for("10.0.0.7", ["chat.example ", ""]) == {"localhost", "127.0.0.1", "::1", "10.0.0.7", "chat.example"}
    assert hosts_for("0.0.0.0") is None
    assert hosts_for("::") is None


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost", "http://127.0.0.1:1", "x"])
def test_a_page_of_another_site_cannot_post(http, origin):
    assert_openai_error(http.post(CHAT, json=ASK, headers={"origin": origin}), 403, "cross_origin")


def test_the_page_of_this_server_can_post(http, served):
    assert http.post(CHAT, json=ASK, headers={"origin": served.url}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_declared_json_is_refused(http, kind):
    headers = {"content-type": kind} if kind else {}
    assert_openai_error(http.post(CHAT, content=b"{}", headers=headers), 415, "unsupported_media_type")


def test_json_with_a_charset_is_json(http):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    body = b'{"model": "tiny", "prompt": "the", "max_tokens": 2}'
    assert http.post("/v1/completions", content=body, headers=headers).status_code == 200


def test_a_body_that_announces_too_many_bytes_is_refused_unread(served):
    """Only the headers are sent, and the answer comes."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_is_refused_once_it_is_too_large(http):
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(2 * MAX_BODY_BYTES // 2**20):
            sent += 2**20
            yield b" " * 2**20

    response = http.post(CHAT, content=chunks(), headers={"content-type": "application/json"})
    assert "content-length" not in response.request.headers
    assert_openai_error(response, 413, "request_too_large")


def test_a_body_just_below_the_limit_is_read(http):
    body = b'{"model": "none"' + b" " * (MAX_BODY_BYTES - 50) + b', "prompt": "a"}'
    response = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert_openai_error(response, 404, "model_not_found", "model")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xe9"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/metrics", "/v1/nothing"])
def test_without_the_key_nothing_of_the_api_is_told(locked, path, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    response = httpx.get(locked.url + path, headers=headers)
    assert_openai_error(response, 401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


def test_without_the_key_no_chat_runs(locked, models):
    before = models["tiny"].stats()
    assert_openai_error(httpx.post(locked.url + CHAT, json=ASK), 401, "invalid_api_key")
    assert models["tiny"].stats() == before


def test_with_the_key_the_api_answers(locked):
    headers = {"authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{locked.url}/v1/models", headers=headers).status_code == 200
    assert httpx.post(locked.url + CHAT, json=ASK, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
def test_pages_and_health_need_no_key(locked, path):
    assert httpx.get(locked.url + path).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/models", "/health", "/docs", "/nowhere", "/metrics"])
def test_every_answer_carries_the_security_headers(http, path):
    headers = http.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["font-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "server" not in headers


def test_a_path_cannot_leave_the_page_s_folder(http):
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/static/../../app.py", "//etc/passwd", "/%00"):
        response = http.get(path)
        assert response.status_code == 404, path
        assert "import" not in response.text


def test_the_log_holds_one_short_line_a_request_and_no_control_characters(http, caplog):
    caplog.set_level("INFO", "qwq.serve")
    http.get("/v1/models")
    http.get("/nowhere%0aGET%20/forged%1b[31m")
    lines = [record.getMessage() for record in caplog.records if record.name == "qwq.serve"]
    assert re.fullmatch(r"GET /v1/models 200 \d+\.\d\d s", lines[0])
    assert lines[1].startswith("GET /nowhere%0aGET%20/forged%1b")
    assert all(line.isprintable() for line in lines)
