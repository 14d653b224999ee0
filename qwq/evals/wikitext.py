"""WikiText-2 (arXiv:1609.07843): what a byte of an encyclopaedia costs in bits, and the perplexity of its words."""

import math
import re
from pathlib import Path
from typing import Any

from qwq.evals.files import Rows, Source, read_text, some
from qwq.evals.task import Example, Split, Task

_TITLE = re.compile(r"^ = [^=].*[^=] = *$", re.MULTILINE)


class Wikitext(Task):
    """Articles one by one, in windows, their words counted by white space: as lm-evaluation-harness does.

    The text is taken as the file has it, without that harness's detokeniser: the spaces of words already split count.
    """

    name, kind = "wikitext", "rolling"
    metrics = {  # noqa: RUF012
        "bits_per_byte": lambda c: -c["nats"].sum() / c["bytes"].sum() / math.log(2),
        "word_perplexity": lambda c: math.exp(min(700.0, -c["nats"].sum() / c["words"].sum())),
    }

    def load(self, source: Source) -> Split:
        names = [f"wikitext2/{file}" for file in ("wiki.test.raw", "wiki.test.tokens", "test.txt")]
        official = source.find(*names) is not None
        names += [f"wikitext2/{file}" for file in ("wiki.valid.raw", "wiki.valid.tokens", "valid.txt")]
        hub = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test")
        rows, _ = source.rows(names, articles, hub)
        return Split([Example(str(i), row["page"]) for i, row in enumerate(rows, 1)], official)

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        page = example.prompt
        return {"nats": answer, "bytes": len(page.encode()), "words": len(page.split())}


def articles(path: Path) -> Rows:
    """A WikiText file as its articles, each from its title on."""
    text = read_text(path)
    starts = [match.start() for match in _TITLE.finditer(text)] or [0]
    pages = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    return some([{"page": page} for page in pages if page.strip()], path)
