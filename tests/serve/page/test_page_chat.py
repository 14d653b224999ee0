"""Questions and answers on the page: with the real server, and with answers that the test speaks."""

import pytest
from serve_helpers import ANSWER, KEY, THOUGHT, until

LAST = ".turn.assistant:last-child"


def texts(page, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def wait(page, condition: str, argument=None) -> None:
    """Waits until a JavaScript condition holds. (Playwright's own way evaluates strings, which the page forbids.)"""
    until(lambda: page.evaluate(condition, argument))


def said(page) -> list[tuple[str, str]]:
    """The messages of the newest request."""
    messages = page.evaluate("script.requests.at(-1).messages")
    return [(message["role"], message["content"]) for message in messages]


def test_a_real_model_answers_and_the_chat_is_there_after_a_reload(open_page, models, ask):
    page = open_page()
    assert page.locator("#model option").all_inner_texts() == list(models)
    ask(page, "the cat sees")
    page.wait_for_selector(f"{LAST} .meta")
    prose, meta = page.inner_text(f"{LAST} .prose:not(.thought)"), page.inner_text(f"{LAST} .meta")
    assert prose
    assert meta.startswith("tiny · ")
    assert "tokens/s" in meta
    assert "prompt " in meta
    assert page.title() == "the cat sees – QwQ"
    page.reload()
    page.wait_for_selector(f"{LAST} .meta")
    assert texts(page, ".bubble") == ["the cat sees"]
    assert page.inner_text(f"{LAST} .prose:not(.thought)") == prose
    assert page.inner_text(f"{LAST} .meta") == meta


def test_real_thinking_is_folded_above_the_answer(open_page, ask):
    page = open_page()
    page.select_option("#model", "org/thinker")
    ask(page, "the cat")
    page.wait_for_selector(f"{LAST} .meta")
    assert page.inner_text(f"{LAST} > .prose") == ANSWER
    assert not page.locator(f"{LAST} .thought").is_visible()
    page.click(f"{LAST} summary")
    until(lambda: page.inner_text(f"{LAST} .thought") == THOUGHT)


def test_thinking_shows_that_it_goes_on_and_then_how_long_it_took(page, ask, answer):
    ask(page, "why?")
    answer(page, "think", "Let me **see**")
    page.wait_for_selector(".thinking.active")
    assert page.inner_text(".thinking summary").startswith("Thinking")
    page.click(".thinking summary")
    answer(page, "think", " and more")
    wait(page, "document.querySelector('.thought').innerText === 'Let me see and more'")
    page.evaluate("new Promise((done) => setTimeout(done, 120))")
    answer(page, "say", "Because.")
    page.wait_for_selector(".thinking:not(.active)")
    assert page.inner_text(".thinking summary").startswith("Thought for")
    answer(page, "end")
    page.wait_for_selector(".meta")
    ask(page, "and?")
    wait(page, "script.requests.length === 2")
    assert said(page) == [("user", "why?"), ("assistant", "Because."), ("user", "and?")]
    answer(page, "end")
    wait(page, "document.querySelectorAll('.notice:not([hidden])').length === 1")


def test_the_answer_grows_while_it_streams(page, ask, answer):
    ask(page, "go")
    page.wait_for_selector(".waiting:not([hidden])")
    assert page.get_attribute("#log", "aria-busy") == "true"
    assert texts(page, "#chats a") == ["go"]
    assert page.locator("#chats .pulse").count() == 1
    for piece, text in (("Hel", "Hel"), ("lo **wo", "Hello **wo"), ("rld**", "Hello world")):
        answer(page, "say", piece)
        wait(page, "(text) => document.querySelector('.assistant .prose:not(.thought)').innerText === text", text)
    assert page.locator("#send").is_hidden()
    assert page.locator("#stop").is_visible()
    answer(page, "end")
    page.wait_for_selector(".meta")
    assert page.get_attribute("#log", "aria-busy") == "false"
    assert page.inner_text("#status") == "The answer is complete."
    assert page.locator("#send").is_visible()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_keeps_what_was_said_and_frees_the_server(open_page, models, ask, way):
    page = open_page()
    page.select_option("#model", "endless")
    ask(page, "the cat")
    wait(page, "document.querySelector('.assistant .prose:not(.thought)')?.innerText.length > 20")
    assert models["endless"].stats()["running"] == 1
    page.click("#stop") if way == "button" else page.keyboard.press("Escape")
    page.wait_for_selector(f"{LAST} .notice:not([hidden])")
    assert texts(page, f"{LAST} .notice") == ["Stopped."]
    assert len(page.inner_text(f"{LAST} > .prose")) > 20
    assert "about" in page.inner_text(".meta")
    until(lambda: models["endless"].stats()["running"] == 0)


def test_edit_and_regenerate_make_branches_and_lose_nothing(page, ask, answer):
    def reply(text: str) -> None:
        requests = page.evaluate("script.requests.length")
        wait(page, "(n) => script.answers.length === n", requests)
        answer(page, "say", text)
        answer(page, "end")
        wait(page, "document.querySelector('#stop').hidden")

    ask(page, "first")
    reply("one")
    ask(page, "second")
    reply("two")
    page.click(f"{LAST} [aria-label='Answer again']")
    reply("two again")
    assert said(page) == [("user", "first"), ("assistant", "one"), ("user", "second")]
    assert texts(page, ".assistant > .prose") == ["one", "two again"]
    assert texts(page, f"{LAST} .branches span") == ["2 / 2"]
    page.click(f"{LAST} [aria-label='Previous version']")
    assert texts(page, ".assistant > .prose") == ["one", "two"]

    first = page.locator(".turn.user").first
    first.hover()
    first.locator("[aria-label='Edit']").click()
    assert first.locator("textarea").input_value() == "first"
    first.locator("textarea").fill("first, edited")
    first.locator("textarea").press("Enter")
    reply("one, edited")
    assert said(page) == [("user", "first, edited")]
    assert (texts(page, ".bubble"), texts(page, ".assistant > .prose")) == (["first, edited"], ["one, edited"])
    page.click(".turn.user [aria-label='Previous version']")
    assert (texts(page, ".bubble"), texts(page, ".assistant > .prose")) == (["first", "second"], ["one", "two again"])
    page.reload()
    page.wait_for_selector(".meta")
    assert texts(page, ".bubble") == ["first", "second"]


def test_copying_gives_the_markdown_and_the_code_as_they_were_written(open_page, ask, answer):
    page = open_page(scripted=True, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "code")
    answer(page, "say", "Some **bold** $x$:\n\n```py\nprint('a')\n\tb < c\n```\n")
    answer(page, "end")
    page.click(f"{LAST} [aria-label='Copy']")
    assert page.evaluate("navigator.clipboard.readText()") == "Some **bold** $x$:\n\n```py\nprint('a')\n\tb < c\n```\n"
    page.click(".copy-code")
    assert page.evaluate("navigator.clipboard.readText()") == "print('a')\n\tb < c"
    page.wait_for_selector(".copy-code.done")


def test_the_end_is_followed_until_one_scrolls_up(page, ask, answer):
    ask(page, "long")
    line = "A line of text.\n\n"
    answer(page, "say", line * 60)
    distance = "(() => { const s = document.querySelector('#scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight; })()"
    wait(page, f"document.querySelector('#scroller').scrollTop > 100 && {distance} < 2")
    page.hover("#log")
    page.mouse.wheel(0, -300)
    page.wait_for_selector("#to-end.shown")
    before = page.evaluate("document.querySelector('#scroller').scrollTop")
    answer(page, "say", line * 30)
    wait(page, "document.querySelectorAll('.prose p').length === 90")
    assert page.evaluate("document.querySelector('#scroller').scrollTop") == before
    page.click("#to-end")
    wait(page, f"{distance} < 2")
    answer(page, "say", line * 30)
    wait(page, f"document.querySelectorAll('.prose p').length === 120 && {distance} < 2")
    answer(page, "end")
    page.wait_for_selector(".meta")


def test_an_answer_goes_on_while_another_chat_is_on_the_screen(page, ask, answer):
    ask(page, "slow one")
    answer(page, "say", "Begun")
    page.keyboard.press("Control+k")
    page.wait_for_selector("body.empty")
    assert page.locator(".pulse").count() == 1
    answer(page, "say", " and done.")
    page.click("#chats a")
    wait(page, "document.querySelector('.assistant .prose:not(.thought)').innerText === 'Begun and done.'")
    page.keyboard.press("Control+k")
    answer(page, "end")
    wait(page, "document.querySelectorAll('.pulse').length === 0")
    page.click("#chats a")
    assert texts(page, ".assistant > .prose") == ["Begun and done."]
    assert page.locator(".meta").count() == 1


@pytest.mark.parametrize("way", ["breakOff", "leave"])
def test_a_connection_that_breaks_keeps_the_text_and_offers_a_retry(page, ask, answer, way):
    ask(page, "hm")
    answer(page, "say", "Half an ans")
    wait(page, "document.querySelector('.prose:not(.thought)').innerText === 'Half an ans'")
    answer(page, way)
    page.wait_for_selector(".notice.error")
    assert "connection broke" in page.inner_text(".notice.error")
    assert texts(page, ".assistant > .prose") == ["Half an ans"]
    page.click(".notice.error button")
    wait(page, "script.answers.length === 2")
    answer(page, "say", "Whole.")
    answer(page, "end")
    page.wait_for_selector(".meta")
    assert texts(page, ".assistant > .prose") == ["Whole."]


def test_a_server_that_is_gone_is_named_and_found_again(open_page, ask):
    page = open_page()
    page.watched.expected.append("Failed to load resource")
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "the cat")
    page.wait_for_selector(".notice.error")
    assert "The server does not answer" in page.inner_text(".notice.error")
    page.unroute("**/v1/**")
    page.wait_for_selector("#model:not([hidden])")
    page.click(".notice.error button")
    page.wait_for_selector(f"{LAST} .meta")
    assert page.locator(".turn").count() == 2


def test_a_busy_server_says_when_to_try_again(open_page, ask):
    page = open_page()
    page.watched.expected.append("429")
    body = '{"error": {"message": "The queue is full.", "type": "rate_limit_error", "code": "queue_full"}}'
    answer = {"status": 429, "headers": {"retry-after": "1"}, "content_type": "application/json", "body": body}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
    ask(page, "the cat")
    page.wait_for_selector(".notice.error")
    notice = page.inner_text(".notice.error")
    assert "The server is busy" in notice
    assert "The queue is full." in notice
    assert page.locator(".notice.error button").is_disabled()
    page.unroute("**/v1/chat/completions")
    page.click(".notice.error button")  # waits until it may be clicked
    page.wait_for_selector(f"{LAST} .meta")


def test_a_chat_that_is_too_long_says_so_with_both_lengths(open_page, ask):
    page = open_page()
    page.watched.expected.append("400")
    ask(page, "the cat sees " * 200)
    page.wait_for_selector(".notice.error")
    notice = page.inner_text(".notice.error")
    assert "no longer fits" in notice
    assert "256" in notice
    page.click(".notice.error >> text=New chat")
    page.wait_for_selector("body.empty")


def test_a_key_is_asked_for_and_kept_only_for_this_tab(open_page, locked, ask):
    page = open_page(url=locked.url, wait_for=None)
    page.watched.expected.append("401")
    for key in ("wrong", KEY):
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-dialog input", key)
        page.press("#key-dialog input", "Enter")
    page.wait_for_selector("#model:not([hidden])")
    ask(page, "the cat")
    page.wait_for_selector(f"{LAST} .meta")
    stored = page.evaluate("[sessionStorage.getItem('qwq.key'), JSON.stringify(localStorage), document.cookie]")
    assert stored[0] == KEY
    assert KEY not in stored[1] + stored[2]
