"""Everything on the page around the chat: languages, themes, keys, settings, the history, small screens."""

import json
import re
from pathlib import Path

import pytest
from serve_helpers import until

import qwq.serve

STATIC = Path(qwq.serve.__file__).parent / "static"
TITLES = "#chats a"


@pytest.fixture
def chats(page, ask, answer):
    """A page with two finished chats, "apples" and "pears"."""
    for count, name in enumerate(("apples", "pears"), start=1):
        page.keyboard.press("Control+k")
        ask(page, name)
        until(lambda count=count: page.evaluate("script.answers.length") == count)
        answer(page, "say", f"About {name}.")
        answer(page, "end")
        page.wait_for_selector(".meta")
    return page


def titles(page) -> list[str]:
    return [text.strip() for text in page.locator(TITLES).all_inner_texts()]


def test_the_language_follows_the_browser_and_can_be_chosen(open_page):
    page = open_page(locale="zh-CN")
    assert page.inner_text("h1") == "今天想聊些什么？"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#open-settings")
    page.click("text=English")
    assert page.inner_text("h1") == "What shall we think about?"
    page.reload()
    page.wait_for_selector("#model:not([hidden])")
    assert page.inner_text("#new-chat span") == "New chat"
    assert open_page(locale="fr-FR").inner_text("h1") == "What shall we think about?"


def test_answers_on_the_screen_change_their_language_too(chats):
    chats.click("#open-settings")
    chats.click("text=中文")
    assert "128 词元" in chats.inner_text(".meta")
    assert chats.get_attribute(".turn.assistant .tools button", "aria-label") == "复制"


def test_both_languages_have_the_same_texts_and_the_page_uses_all_of_them():
    tables = {name: (STATIC / "lang" / f"{name}.js").read_text() for name in ("en", "zh")}
    keys = {name: re.findall(r"^  '([\w.]+)': ", text, re.M) for name, text in tables.items()}
    assert keys["en"] == keys["zh"]
    assert len(set(keys["en"])) == len(keys["en"])
    for key in keys["en"]:
        holes = [sorted(re.findall(r"\{\w+\}", re.search(rf"'{re.escape(key)}': (.*)", t)[1])) for t in tables.values()]
        assert holes[0] == holes[1], key
    source = "".join(p.read_text() for p in [*STATIC.glob("*.js"), STATIC / "index.html"])
    made = ("example.", "error.", "sampling.", "finish.")  # keys that are put together
    unused = [key for key in keys["en"] if f"'{key}'" not in source and f'"{key}"' not in source]
    assert [key for key in unused if not key.startswith(made)] == []
    used = re.findall(r"(?:i18n|label|text|i18nPlaceholder): '([\w.]+)'", source)
    used += re.findall(r'data-i18n(?:-label|-placeholder)?="([\w.]+)"', source)
    assert len(used) > 60
    assert set(used) <= set(keys["en"])


def paper(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_theme_follows_the_system_and_can_be_chosen(open_page):
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    colours = paper(light), paper(dark)
    assert colours[0] != colours[1]
    light.click("#open-settings")
    light.click("#settings >> text=Dark")
    assert paper(light) == colours[1]
    light.reload()
    light.wait_for_selector("#model:not([hidden])")
    assert paper(light) == colours[1]


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility({ visibilityProperty: true }) || node.closest('.sr-only, .katex-mathml, :disabled')) continue;
    const chain = [];
    for (let at = node; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    const back = light(paint(chain));
    const front = light(paint([...chain, getComputedStyle(node).color]));
    const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (ratio < 4.5) poor.push([node.className || node.localName, node.textContent.slice(0, 20), ratio.toFixed(2)]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(open_page, ask, answer, scheme):
    page = open_page(scripted=True, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    ask(page, "a question")
    code = "```python\n# comment\n@decorator\ndef f(x: int = 1) -> str:\n    return 'text'\n```"
    answer(page, "think", "Hm.")
    answer(page, "say", f"**b** `code` [link](https://example.org) $x$\n\n> quote\n\n{code}\n\n| a |\n|--|\n| b |")
    answer(page, "end", "length")
    page.wait_for_selector(".meta")
    page.click("summary")
    assert page.evaluate(CONTRAST) == []
    page.click("#open-settings")
    assert page.evaluate(CONTRAST) == []


def test_every_control_has_a_name(chats):
    chats.click("#open-settings")
    nameless = chats.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, a')].filter((node) =>
             !node.ariaLabel && !node.labels?.length && !node.textContent.trim() && node.type !== 'file')
           .map((node) => node.outerHTML)"""
    )
    assert nameless == []


def test_the_keyboard_is_enough(page, ask, answer):
    box = "#composer textarea"
    assert page.evaluate("document.activeElement.closest('#composer') !== null")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value(box) == "one\ntwo"
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("script.requests.length") == 1)
    assert page.evaluate("script.requests[0].messages") == [{"role": "user", "content": "one\ntwo"}]
    assert page.input_value(box) == ""
    answer(page, "say", "x")
    page.keyboard.press("Escape")
    page.wait_for_selector(".meta")
    assert page.evaluate("script.answers[0].aborted")

    page.keyboard.press("ArrowUp")
    assert page.input_value(".editor textarea") == "one\ntwo"
    page.keyboard.press("Escape")
    assert page.locator(".editor").count() == 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.closest('#composer') !== null")
    assert page.input_value(box) == ""
    page.keyboard.press("Control+k")
    assert page.locator("body.empty").count() == 1
    page.keyboard.press("Control+b")
    page.wait_for_selector("#sidebar", state="hidden")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.wait_for_selector("#shortcuts[open]")
    page.keyboard.press("Escape")
    assert page.locator("#shortcuts[open]").count() == 0


def test_enter_that_ends_a_composition_does_not_send(page):
    page.fill("#composer textarea", "ni hao")
    for extra in ({"isComposing": True}, {"keyCode": 229}):
        page.dispatch_event("#composer textarea", "keydown", {"key": "Enter", "bubbles": True, **extra})
    assert page.evaluate("script.requests.length") == 0
    assert page.input_value("#composer textarea") == "ni hao"
    page.press("#composer textarea", "Enter")
    until(lambda: page.evaluate("script.requests.length") == 1)


def test_sampling_settings_and_the_system_prompt_go_with_the_request(page, ask, answer):
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    for name, value in (("temperature", "0.6"), ("top_k", "40"), ("max_tokens", "99"), ("seed", "7"), ("top_p", "3")):
        page.fill(f"#sampling-{name}", value)
        page.press(f"#sampling-{name}", "Tab")
    assert "3 is not a number from 0.01 to 1." in page.evaluate("script.toasts.join()")
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("#model:not([hidden])")
    ask(page, "hi")
    until(lambda: page.evaluate("script.requests.length") == 1)
    request = page.evaluate("script.requests[0]")
    asked = {"temperature": 0.6, "top_k": 40, "max_tokens": 99, "seed": 7}
    assert {k: v for k, v in request.items() if k in (*asked, "top_p", "min_p")} == asked
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    answer(page, "end")
    page.click("#open-settings")
    page.click("#sampling-reset")
    page.keyboard.press("Escape")
    ask(page, "again")
    until(lambda: page.evaluate("script.requests.length") == 2)
    assert not set(asked) & set(page.evaluate("Object.keys(script.requests[1])"))


def test_chats_are_found_renamed_deleted_and_brought_back(chats):
    assert titles(chats) == ["pears", "apples"]
    chats.fill("#search", "about APP")
    assert titles(chats) == ["apples"]
    chats.fill("#search", "")
    item = chats.locator("#chats li").nth(1)
    item.hover()
    item.locator("[aria-label='Rename']").click()
    chats.keyboard.type("Fruit")
    chats.keyboard.press("Enter")
    assert titles(chats) == ["pears", "Fruit"]
    item = chats.locator("#chats li").nth(0)
    item.hover()
    item.locator("[aria-label='Delete']").click()
    chats.wait_for_selector("body.empty")
    assert titles(chats) == ["Fruit"]
    chats.click(".toast >> text=Undo")
    chats.wait_for_selector(".bubble >> text=pears")
    chats.reload()
    chats.wait_for_selector(TITLES)
    assert titles(chats) == ["pears", "Fruit"]


def test_the_history_goes_through_a_file(chats, open_page, tmp_path):
    chats.click("#open-settings")
    with chats.expect_download() as download:
        chats.click("#export")
    path = tmp_path / "chats.json"
    download.value.save_as(path)
    assert json.loads(path.read_text())["format"] == "qwq-chats"
    other = open_page(locale="en-GB")
    assert titles(other) == []
    for _ in range(2):
        other.set_input_files("#import-file", path)
        until(lambda: titles(other) == ["pears", "apples"])
    other.click("#chats a")
    assert other.inner_text(".assistant > .prose:not(.thought)") == "About pears."
    broken = tmp_path / "broken.json"
    broken.write_text('{"chats": 1')
    other.set_input_files("#import-file", broken)
    until(lambda: "broken.json is not a file of exported chats." in other.evaluate("script.toasts.join()"))
    other.click("#open-settings")
    other.click("#delete-all")
    other.click("dialog.small[open] .danger")
    until(lambda: titles(other) == [])


def test_a_damaged_history_and_damaged_preferences_do_no_harm(chats):
    chats.evaluate(
        """async () => {
          localStorage.setItem('qwq.preferences', '{"theme": 5, "language": ["x"], "sampling": {"temperature": "hot", "top_k"');
          const database = await new Promise((done) => { const r = indexedDB.open('qwq'); r.onsuccess = () => done(r.result); });
          const store = database.transaction('chats', 'readwrite').objectStore('chats');
          const user = { id: 'm1', parent: 'm2', role: 'user', content: 'in a circle', created: 1 };
          store.put({ id: 'junk', messages: 'no' });
          store.put({ id: 'none' });
          store.put({ id: 'nan', messages: { a: { id: 'a', role: 'robot', content: 5 } }, leaf: 'b' });
          store.put({ id: 'circle', title: 7, leaf: 'zzz', messages: { m1: user, m2: { ...user, id: 'm2', parent: 'm1', role: 'assistant' }, __proto__: null } });
          await new Promise((done) => (store.transaction.oncomplete = done));
        }"""
    )
    chats.reload()
    chats.wait_for_selector(TITLES)
    assert sorted(titles(chats)) == ["Untitled", "apples", "pears"]
    assert "could not be read: 3" in chats.evaluate("script.toasts.join()")
    chats.click("#chats >> text=Untitled")
    assert chats.locator(".turn").count() == 2
    chats.evaluate("localStorage.setItem('qwq.preferences', '[1')")
    chats.reload()
    chats.wait_for_selector("#model:not([hidden])")


def test_a_browser_that_keeps_nothing_still_chats_and_says_so(open_page, ask, answer):
    refuse = "indexedDB.open = () => { throw new DOMException('refused', 'SecurityError'); }"
    page = open_page(scripted=True, before=refuse)
    assert "This browser could not keep the chats" in page.evaluate("script.toasts.join()")
    ask(page, "hi")
    answer(page, "say", "Hello.")
    answer(page, "end")
    page.wait_for_selector(".meta")
    assert titles(page) == ["hi"]


def test_an_example_is_asked_with_a_click(page, answer):
    page.click("#examples button >> nth=0")
    until(lambda: page.evaluate("script.requests.length") == 1)
    assert page.evaluate("script.requests[0].messages[0].content") == "Name the capital of France."
    answer(page, "end")


def test_a_phone_has_everything_within_its_width(open_page, ask, answer):
    page = open_page(scripted=True, viewport={"width": 375, "height": 700}, has_touch=True, is_mobile=True)
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0
    assert not page.locator("#sidebar").is_visible()
    ask(page, "wide")
    answer(page, "say", f"{'word' * 60}\n\n```\n{'x' * 300}\n```\n\n| {'a | ' * 12}\n|{'--|' * 12}\n\n$${'x+' * 80}y$$")
    answer(page, "end")
    page.wait_for_selector(".meta")
    assert page.evaluate(overflow) <= 0
    assert page.evaluate("document.querySelector('#scroller').scrollWidth - innerWidth") <= 0
    page.click("#show-sidebar")
    page.click(TITLES)
    page.wait_for_selector("#sidebar", state="hidden")


def test_vendored_libraries_carry_name_version_and_licence():
    root = STATIC.parents[2]
    notice = (root / "NOTICE").read_text()
    vendor = STATIC / "vendor"
    for folder in vendor.iterdir():
        assert list(folder.glob("LICENSE*")), folder.name
    versions = {
        "marked": re.search(r"marked v([\d.]+)", (vendor / "marked/marked.esm.js").read_text())[1],
        "DOMPurify": re.search(r"DOMPurify ([\d.]+)", (vendor / "dompurify/purify.es.mjs").read_text())[1],
        "highlight.js": re.search(r"Highlight.js v([\d.]+)", (vendor / "highlight/highlight.min.js").read_text())[1],
        "KaTeX": re.search(r'version:"([\d.]+)"|="(0\.\d+\.\d+)"', (vendor / "katex/katex.min.js").read_text())[
            0
        ].split('"')[1],
    }
    for name, version in versions.items():
        assert f"{name} {version}" in notice
    for font in ("Inter", "Newsreader", "JetBrains Mono"):
        assert font in notice


def test_the_pages_own_files_stay_small_and_hold_no_address():
    for path in [*STATIC.glob("*.*"), *STATIC.glob("styles/*"), *STATIC.glob("lang/*")]:
        text = path.read_text()
        assert len(text.splitlines()) < 400, path.name
        addresses = set(re.findall(r"(?:https?:)?//[\w-]+\.\w[\w./-]*", text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), path.name
