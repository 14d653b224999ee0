"""The chat page in a real Chromium, served by the real server. Every page that a test opens is watched: at its end there
was no console error, no violation of the Content-Security-Policy and no request to another host."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from serve_helpers import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MODELS = "#model:not([hidden])"
EMPTY = """new Promise((done, failed) => {
  localStorage.clear();
  sessionStorage.clear();
  const request = indexedDB.deleteDatabase('qwq');
  request.onsuccess = () => done();
  request.onerror = failed;
})"""
SCRIPT = Path(__file__).parent / "scripted.js"


@pytest.fixture(scope="module")
def chromium():
    """A browser; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the page is tested in a real browser")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Watched:
    """A page with what it logged and asked for. `expected` are pieces of console errors that the test provokes."""

    def __init__(self, page, url: str):
        self.page, self.url = page, url
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.expected: list[str] = []
        page.on("console", self.log)
        page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def log(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location['url']})")

    def check(self) -> None:
        unexpected = [text for text in self.errors if not any(piece in text for piece in self.expected)]
        assert unexpected == []
        assert self.hosts - {""} == {urlsplit(self.url).netloc}
        assert self.page.evaluate("script.violations") == []


class Browser:
    """Opens pages. Those with the same settings share a context, so that the browser's cache is warm; their storage is
    emptied between tests."""

    def __init__(self, chromium, url: str):
        self.chromium, self.url = chromium, url
        self.contexts: dict[str, Any] = {}
        self.pages: list[Any] = []

    def open(self, *, scripted=False, url=None, wait_for: str | None = MODELS, before="", **settings):
        settings = {"viewport": {"width": 1200, "height": 800}, "locale": "en-US", **settings}
        key = repr(settings)
        if key not in self.contexts:
            self.contexts[key] = self.chromium.new_context(**settings)
        context = self.contexts[key]
        page = context.new_page()
        page.set_default_timeout(60_000)  # other tests may have the cores
        page.watched = Watched(page, self.url if url is None else url)
        self.pages.append(page)
        page.add_init_script(f"window.scripted = {str(scripted).lower()}")
        page.add_init_script(path=SCRIPT)
        page.add_init_script(before)
        page.goto(page.watched.url)
        if wait_for is not None:
            page.wait_for_selector(wait_for)
        return page

    def check_and_empty(self) -> None:
        pages, self.pages = self.pages, []
        for page in pages:
            page.watched.check()
            page.goto(f"{page.watched.url}/favicon.svg")  # leaves the page, which holds its database open
        for page in pages:
            page.evaluate(EMPTY)
            page.close()


@pytest.fixture(scope="module")
def browser(chromium, served):
    return Browser(chromium, served.url)


@pytest.fixture(scope="module")
def shared(chromium, served):
    """A browser for pages that the tests of a module share."""
    made = Browser(chromium, served.url)
    yield made
    made.check_and_empty()


@pytest.fixture
def open_page(browser):
    """open_page(scripted=False, url=..., before=script, **settings): a page that is loaded and knows its models."""
    yield browser.open
    browser.check_and_empty()


@pytest.fixture
def page(open_page):
    """A page whose answers the test speaks: see `answer`."""
    return open_page(scripted=True)


@pytest.fixture
def ask():
    """ask(page, text): types a message and sends it."""

    def ask_(page, text: str) -> None:
        page.fill("#composer textarea", text)
        page.press("#composer textarea", "Enter")

    return ask_


@pytest.fixture
def answer():
    """answer(page, "say", text) -> what the model does next in the newest request: say, think, end, breakOff, leave."""

    def answer_(page, action: str, *arguments: str) -> None:
        until(lambda: page.evaluate("script.answers.length > 0"))
        page.evaluate("([action, given]) => script.answers.at(-1)[action](...given)", [action, list(arguments)])

    return answer_
