"""The page's streaming Markdown, driven as a module with text that the test writes."""

import pytest

LONG_CODE = "```python\n" + "".join(f"def f{i}(x):\n    return x + {i}  # more\n\n" for i in range(120)) + "```"
SAMPLES = {
    "prose": "# One\n\nSome *text* with **bold** and `code`.\nA line.\n\n> quoted\n> more\n\n---\n\nEnd",
    "lists": "1. a\n\n2. b\n   - c\n   - d\n\n     more of d\n\n3. e\n\ntext\n\n- x\n- y\n\n\n- z\n\n* * *\n- [ ] to do\n- [x] done",
    "code": "Look:\n\n```js\nconst a = `$b`; // $x$\n\nif (a < 2) {}\n```\nafter\n\n    indented\n\n    more\n\n~~~\nplain\n~~~",
    "long code": f"before\n\n{LONG_CODE}\n\nafter",
    "code in a list": "1. First:\n   ```sh\n   ls -la\n   ```\n2. Second\n\n   ```\n   x\n   ```",
    "tables": "Before\n\n| a | b |\n|:--|--:|\n| 1 | $x$ |\n| 2 | `|` |\n\nAfter\nHead\n====\nx",
    "mathematics": "So $a_1*b$ and \\(c*d\\):\n$$\nx = \\frac{1}{2}\n\n+ y\n$$\nthen\n\\[\ny_1 *z*\n\\]\nend $5 and $6.",
    "links": "[a]: https://example.org/x\n\nSee [a] and [b](https://example.org) and https://example.org/y.\n\n![p](https://x.org/p.png)",
    "html": "a <b>b</b> <div onclick=x>c</div>\n\n<details>\n\n**d**\n\n</details>\n\n<br>x<sub>2</sub>",
    "chinese": "**“你好”**他说。\n\n- 一，**重点：**内容\n- 二\n\n数学$x$在中文里。\n\n~~删~~ ~5 到 ~10",
    "line ends": "a\r\nb\r\n\r\n- c\r\n- d\r\n",
}

RENDER = """async ([text, size]) => {
  const { StreamingMarkdown } = await import('/markdown.js');
  const root = document.createElement('div');
  root.className = 'prose';
  document.body.append(root);
  const stream = new StreamingMarkdown(root);
  for (let i = 0; i < text.length; i += size) {
    stream.push(text.slice(i, i + size));
    stream.render();
  }
  stream.finish();
  root.remove();
  return root.innerHTML;
}"""


@pytest.fixture(scope="module")
def render(shared):
    """render(text, size=whole) -> the HTML that text streamed in pieces of `size` characters leaves in the page."""
    page = shared.open()

    def render_(text: str, size: int = 10**9) -> str:
        return page.evaluate(RENDER, [text, size])

    render_.page = page
    return render_


def test_text_that_streams_ends_as_text_that_comes_at_once(render):
    for name, text in SAMPLES.items():
        whole = render(text)
        for size in (1, 3, 17) if len(text) < 1000 else (61,):
            assert render(text, size) == whole, (name, size)


def test_markdown_becomes_elements(render):
    html = render(SAMPLES["prose"] + "\n\n" + SAMPLES["lists"])
    for part in ("<h1>One</h1>", "<em>text</em>", "<strong>bold</strong>", "<code>code</code>", "<blockquote>", "<hr>"):
        assert part in html
    assert "<ol>" in html
    assert "<ul>" in html
    assert "☑" in html
    assert "☐" in html
    assert "A line" in html
    assert "<br>A line." in html.replace("\n", "")


def test_sealed_blocks_are_never_touched_again(render):
    page = render.page
    result = page.evaluate(
        """async () => {
          const { StreamingMarkdown } = await import('/markdown.js');
          const root = document.createElement('div');
          document.body.append(root);
          const stream = new StreamingMarkdown(root);
          stream.push('# Title\\n\\nFirst **paragraph**.\\n\\n```py\\nx = 1\\n```\\n\\n$$y$$\\n\\nThe tail');
          stream.render();
          const sealed = [...root.children].slice(0, -1);
          getSelection().selectAllChildren(sealed[1]);
          const changes = [];
          const observer = new MutationObserver((records) => changes.push(...records));
          sealed.forEach((node) => observer.observe(node, { attributes: true, childList: true, subtree: true, characterData: true }));
          for (const piece of [' goes', ' on.\\n\\n', '- a\\n', '- b\\n\\nEnd', ' **of** it.']) {
            stream.push(piece);
            stream.render();
          }
          stream.finish();
          observer.takeRecords().forEach((record) => changes.push(record));
          const same = sealed.every((node, i) => root.children[i] === node);
          return { count: sealed.length, same, changes: changes.length, selected: getSelection().toString(), text: root.innerText };
        }"""
    )
    assert (result["count"], result["same"], result["changes"]) == (4, True, 0)
    assert result["selected"].strip() == "First paragraph."
    assert "End of it." in result["text"]


def test_finished_items_of_a_list_that_still_grows_keep_their_elements(render):
    same = render.page.evaluate(
        """async () => {
          const { StreamingMarkdown } = await import('/markdown.js');
          const stream = new StreamingMarkdown(document.createElement('div'));
          stream.push('- one **1**\\n- two\\n- thr');
          stream.render();
          const [first, second] = stream.root.querySelectorAll('li');
          stream.push('ee\\n- four');
          stream.render();
          const now = stream.root.querySelectorAll('li');
          return now.length === 4 && now[0] === first && now[1] === second;
        }"""
    )
    assert same


def test_the_work_grows_with_the_text_and_not_with_its_square(render):
    parsed, total = render.page.evaluate(
        """async () => {
          const { StreamingMarkdown } = await import('/markdown.js');
          const stream = new StreamingMarkdown(document.createElement('div'));
          const text = 'A paragraph of some words, neither long nor short.\\n\\n'.repeat(400);
          for (let i = 0; i < text.length; i += 10) {
            stream.push(text.slice(i, i + 10));
            stream.render();
          }
          return [stream.parsedCharacters, text.length];
        }"""
    )
    assert parsed < 20 * total  # its square would be 1000 times


def test_code_has_a_language_colours_and_a_copy_button_even_before_it_ends(render):
    states = render.page.evaluate(
        """async () => {
          const { StreamingMarkdown } = await import('/markdown.js');
          const stream = new StreamingMarkdown(document.createElement('div'));
          const states = [];
          for (const piece of ['```python\\ndef f(', 'x):\\n    # **not bold** $x$\\n', '    return x\\n```\\nafter']) {
            stream.push(piece);
            stream.render();
            const { root } = stream;
            states.push([root.querySelectorAll('figure').length, root.querySelector('.language').textContent,
              root.querySelector('code').textContent, root.querySelectorAll('.hljs-keyword').length,
              root.querySelectorAll('.copy-code').length, root.querySelectorAll('strong, .katex').length]);
          }
          return states;
        }"""
    )
    assert states[0] == [1, "Python", "def f(", 1, 1, 0]
    assert states[-1] == [1, "Python", "def f(x):\n    # **not bold** $x$\n    return x", 2, 1, 0]


def test_mathematics_is_typeset_and_money_is_not(render):
    page = render.page
    html = render(SAMPLES["mathematics"])
    assert html.count('class="katex"') == 4
    assert html.count('class="math-block"') == 2
    assert "<em>" not in html
    assert "end $5 and $6." in html
    assert "style=" in html  # KaTeX's boxes, set through the CSSOM
    assert page.evaluate("script.violations") == []
    assert "katex" not in render("`$x$` and\n\n    $$y$$\n\n```\n\\(z\\)\n```")
    assert "katex" not in render("It costs $5, or $10 for two; US$3/A$4.")
    assert '<code class="math-source">' in render("$\\frac{1}{$")
    assert "<menclose" in render("$\\boxed{42}$")


def test_unsafe_styles_and_commands_of_tex_do_nothing(render):
    for tex in (
        r"\htmlStyle{position:fixed}{x}",
        r"\href{javascript:alert(1)}{x}",
        r"\includegraphics{https://x.org/a.png}",
    ):
        html = render(f"${tex}$")
        assert "fixed;" not in html
        assert "href" not in html.replace(r"\href", "")
        assert "<img" not in html


ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1><script>window.pwned=1</script></svg>",
    "<svg><animate onbegin=window.pwned=1 attributeName=x dur=1s>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<math><mtext></p><style><img src=x onerror=window.pwned=1></style></mtext></math>",
    "<a href='javascript:window.pwned=1' id=location>x</a>",
    "[x](javascript:window.pwned=1)",
    "[x](JaVaScRiPt&#58;window.pwned=1)",
    "[x](data:text/html,<script>window.pwned=1</script>)",
    "[x](vbscript:window.pwned=1)",
    "[x](/docs)",
    "[x][y]\n\n[y]: javascript:window.pwned=1",
    '[x](https://example.org "\\" onmouseover=window.pwned=1 ")',
    "![x](https://evil.example/pixel.png)",
    '![" onerror="window.pwned=1](https://evil.example/pixel.png)',
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "<https://evil.example/>",
    '```"><img src=x onerror=window.pwned=1>\ncode\n```',
    "`<img src=x onerror=window.pwned=1>`",
    "$<img src=x onerror=window.pwned=1>$",
    "$$\\text{<script>window.pwned=1</script>}$$",
    "<form action=https://evil.example><input name=a><button>x</button></form>",
    "<style>body{display:none}</style><link rel=stylesheet href=https://evil.example/a.css>",
    "<base href=https://evil.example/><meta http-equiv=refresh content=0;url=https://evil.example/>",
    "<b onclick=window.pwned=1>x</b><br onload=window.pwned=1>",
    "<div style='background:url(https://evil.example/a.png)'>x</div>",
    '<span class="katex" data-style="background:url(https://evil.example/)" style="position:fixed">x</span>',
    "| <img src=x onerror=window.pwned=1> |\n|--|\n| <script>window.pwned=1</script> |",
]


@pytest.mark.parametrize("size", [1, 10**9])
def test_what_a_model_writes_cannot_run_load_or_lead_astray(render, size):
    page = render.page
    for attack in ATTACKS:
        page.evaluate(
            """async ([text, size]) => {
              const { StreamingMarkdown } = await import('/markdown.js');
              const root = document.createElement('div');
              root.className = 'prose attack';
              document.body.append(root);
              const stream = new StreamingMarkdown(root);
              for (let i = 0; i < text.length; i += size) { stream.push(text.slice(i, i + size)); stream.render(); }
              stream.finish();
            }""",
            [attack, size],
        )
    found = page.evaluate(
        """() => {
          const all = [...document.querySelectorAll('.attack *')];
          const outside = all.filter((node) => !node.closest('.katex, .copy-code'));
          return {
            tags: [...new Set(outside.map((node) => node.localName))],
            handlers: all.flatMap((node) => [...node.attributes].filter((a) => a.name.startsWith('on')).map((a) => a.name)),
            ids: all.filter((node) => node.id || node.getAttribute('name')).length,
            links: [...document.querySelectorAll('.attack a')].map((a) => [a.protocol, a.target, a.rel]),
            pwned: window.pwned ?? null,
          };
        }"""
    )
    forbidden = {"script", "img", "svg", "iframe", "style", "link", "form", "input", "base", "meta", "object", "math"}
    assert not forbidden & set(found["tags"])
    assert (found["handlers"], found["ids"], found["pwned"]) == ([], 0, None)
    assert found["links"]
    assert {tuple(link) for link in found["links"]} == {("https:", "_blank", "noopener noreferrer nofollow")}


def test_the_sanitizer_alone_lets_nothing_through(open_page):
    """The renderer already shows foreign tags as text; were it to fail, this is what remains of them. (The browser
    checks them against the policy when DOMPurify reads them, in a document of its own.)"""
    page = open_page()
    page.watched.expected.append("violates the following Content Security Policy")
    left = page.evaluate(
        """async (attacks) => {
          const { sanitize } = await import('/sanitize.js');
          const root = document.createElement('div');
          root.append(...attacks.map((attack) => sanitize(attack.replaceAll('style=', 'data-style='))));
          document.body.append(root);
          return [...root.querySelectorAll('*')].flatMap((node) =>
            [node.localName, ...[...node.attributes].map((a) => `${a.name}=${a.value}`)]);
        }""",
        [attack for attack in ATTACKS if attack.startswith("<")],
    )
    assert not {"script", "img", "iframe", "style", "link", "form", "input", "base", "meta", "animate"} & set(left)
    assert [item for item in left if "=" in item and item.split("=")[0] not in {"class", "target", "rel", "href"}] == []
    assert [item for item in left if item.startswith("href=") and not item.startswith("href=https:")] == []
    assert page.evaluate("window.pwned ?? null") is None
    page.evaluate("script.violations.length = 0")


def test_tags_that_are_no_formatting_are_shown_as_they_were_written(render):
    html = render("Use <div class='x'> and <script>alert(1)</script>, H<sub>2</sub>O<br>next")
    assert "&lt;div class='x'&gt;" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<sub>2</sub>O<br>next" in html


def test_pictures_are_links_and_only_links(render):
    html = render("![A cat](https://example.org/cat.png)")
    assert "<img" not in html
    assert 'href="https://example.org/cat.png"' in html
    assert ">A cat</a>" in html


def test_chinese_emphasis_and_single_tildes(render):
    html = render(SAMPLES["chinese"])
    assert "<strong>“你好”</strong>他说" in html
    assert "<strong>重点：</strong>内容" in html
    assert "<del>删</del>" in html
    assert "~5 到 ~10" in html
