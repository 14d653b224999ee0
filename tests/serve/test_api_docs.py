"""The API's own documentation: complete, correct, and readable without a network."""

import re

import pytest

from qwq.serve.app import STATIC


@pytest.fixture
def api(http):
    return http.get("/openapi.json").json()


def test_openapi_describes_every_route_and_resolves_its_references(api):
    assert set(api["paths"]) == {
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/chat/completions",
        "/v1/completions",
        "/health",
        "/metrics",
    }
    names = set(re.findall(r"#/components/schemas/(\w+)", str(api)))
    assert names <= set(api["components"]["schemas"])
    assert "422" not in str(api["paths"])  # errors are 4XX of our own shape, not FastAPI's
    assert set(api["components"]["schemas"]["ErrorDetail"]["required"]) == {"message", "type", "param", "code"}


def test_a_real_answer_has_exactly_the_fields_that_openapi_names(api, http):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = http.post("/v1/chat/completions", json=body).json()
    schemas = api["components"]["schemas"]
    assert set(answer) == set(schemas["ChatCompletion"]["properties"])
    assert set(answer["choices"][0]) == set(schemas["ChatChoice"]["properties"])
    assert set(answer["choices"][0]["message"]) == set(schemas["AssistantMessage"]["properties"])
    assert set(answer["usage"]) == set(schemas["UsageBody"]["properties"])
    assert set(http.get("/v1/models").json()["data"][0]) == set(schemas["ModelCard"]["properties"])
    text = http.post("/v1/completions", json={"model": "tiny", "prompt": "a"}).json()
    assert set(text) == set(schemas["TextCompletion"]["properties"])
    assert set(text["choices"][0]) == set(schemas["TextChoice"]["properties"])


def test_the_docs_page_names_every_route_and_parameter_and_no_other_host(api, http):
    response = http.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    for path in api["paths"]:
        assert f"<code>{path}</code>" in response.text
    for name in ("ChatRequest", "CompletionRequest"):
        for field in api["components"]["schemas"][name]["properties"]:
            assert f"<code>{field}</code>" in response.text
    hosts = set(re.findall(r"https?://([^/\"'\s<]+)", response.text))
    assert hosts == {f"127.0.0.1:{http.base_url.port}"}
    assert "<script" not in response.text
    assert "style=" not in response.text
    for link in re.findall(r'(?:href|src)="(/[^"]*)"', response.text):
        assert http.get(link).status_code == 200, link


def test_the_page_s_files_are_served_with_their_types_and_revalidated(http):
    suffixes = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".woff2": "font/woff2"}
    files = [path for path in STATIC.rglob("*") if path.suffix in suffixes]
    assert {path.suffix for path in files} >= {".js", ".css", ".html"}
    for path in files:
        response = http.get(f"/{path.relative_to(STATIC).as_posix()}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(suffixes[path.suffix])
        assert response.headers["cache-control"] == "no-cache"
        again = http.get(response.url, headers={"if-none-match": response.headers["etag"]})
        assert again.status_code == 304
    assert http.get("/").text == (STATIC / "index.html").read_text(encoding="utf-8")
