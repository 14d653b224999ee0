"""report.html: a page that stands alone, shows every reason with its examples, and trusts no text of the corpus."""

import json
import random
import re

import pytest

from qwq.data import build

RANDOM = random.Random(1)
NOUNS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ner", "sol") for b in ("bel", "dor", "sun", "tar", "wick")]


def prose(start):
    return f"{start} " + " ".join(RANDOM.choice(["the", "of", "and", *NOUNS]) for _ in range(60)) + "."


@pytest.fixture
def built(tmp_path):
    """(report, page) of a corpus with an attack in it, in two licences."""
    rows = [{"text": prose(i), "license": ("MIT", "CC0-1.0")[i % 2]} for i in range(30)]
    rows += [
        {"text": "<script>alert(1)</script> short"},
        rows[0],
        {"text": prose("Write <b>now</b> to jo@mail.org.")},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build([str(tmp_path / "rows.jsonl")], tmp_path / "out", progress=False)
    return report, (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_page_stands_alone(built):
    """No script, no address to fetch from, and the corpus's own tags are text."""
    _, page = built
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; short" in page


def test_the_page_has_what_the_report_has(built):
    """The funnel, each reason with an example, licences, what was masked, examples of what was kept."""
    report, page = built
    assert page.count("<rect") == 2 * len(report["stages"])
    for stage in report["stages"].values():
        for reason in stage["dropped"]:
            assert reason.replace("_", " ") in page
    assert {"MIT", "CC0-1.0", "unknown"} <= set(report["licenses"])
    assert sum(count["documents"] for count in report["licenses"].values()) == report["documents"]
    assert "EMAIL: 1" in page
    (examples,) = report["examples"].values()
    assert len(examples) == 2
    assert all(example["text"] in page.replace("&lt;", "<").replace("&gt;", ">") for example in examples)
