"""report.html of a corpus: one page, no script and no other file: what was kept, what was dropped, and why."""

import html
from pathlib import Path

from jinja2 import Environment

from qwq.data.documents import Document

TEMPLATE = Path(__file__).with_name("report.html.jinja")
KEPT = 2  # examples of each source
EXCERPT = 400  # characters
STAGES = {
    "clean": "normalised", "language": "language identified", "quality": "rules of quality", "harm": "signals of harm",
    "learned_quality": "classifier of quality", "personal": "personal data masked",
    "decontamination": "not in an evaluation set", "exact_dedup": "not seen before", "near_dedup": "no near-duplicate",
    "paragraph_dedup": "without repeated paragraphs", "heldout_overlap": "not in the held-out text",
}  # fmt: skip


class Kept:
    """What the report says of the documents kept: by language, by licence, and a few examples of each source."""

    def __init__(self) -> None:
        self.languages: dict[str, dict] = {}
        self.licenses: dict[str, dict] = {}
        self.examples: dict[str, list[dict]] = {}

    @property
    def documents(self) -> int:
        """How many were counted."""
        return sum(license["documents"] for license in self.licenses.values())

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(license["bytes"] for license in self.licenses.values())

    def __call__(self, document: Document, size: int) -> None:
        """Count a document of `size` bytes."""
        language = self.languages.setdefault(document.language, {"kept": 0, "bytes": 0, "dialogues": 0})
        license = self.licenses.setdefault(document.license, {"documents": 0, "bytes": 0, "sources": []})
        language["kept"] += 1
        language["bytes"] += size
        language["dialogues"] += document.kind == "dialogue"
        license["documents"] += 1
        license["bytes"] += size
        if document.source not in license["sources"]:
            license["sources"].append(document.source)
        # Those with the smallest hashes: a sample that is the same every time.
        examples = self.examples.get(document.source, [])
        if len(examples) < KEPT or document.hash < examples[-1]["hash"]:
            example = {"hash": document.hash, "language": document.language, "kind": document.kind}
            self._smallest(document.source, [example | {"meta": document.meta, "text": document.text[:EXCERPT]}])

    def add(self, other: "Kept") -> None:
        """What another one counted, too."""
        for language, counts in other.languages.items():
            mine = self.languages.setdefault(language, dict.fromkeys(counts, 0))
            mine.update({name: mine[name] + number for name, number in counts.items()})
        for license, counts in other.licenses.items():
            mine = self.licenses.setdefault(license, {"documents": 0, "bytes": 0, "sources": []})
            mine["documents"] += counts["documents"]
            mine["bytes"] += counts["bytes"]
            mine["sources"] += [source for source in counts["sources"] if source not in mine["sources"]]
        for source, examples in other.examples.items():
            self._smallest(source, examples)

    def _smallest(self, source: str, examples: list[dict]) -> None:
        found = sorted([*self.examples.get(source, []), *examples], key=lambda example: example["hash"])
        self.examples[source] = found[:KEPT]


def funnel(stages: dict[str, dict], width: int = 860) -> str:
    """An SVG: for each stage, a bar of the documents that came in; its light end is what was dropped there."""
    most = max([count["in"] for count in stages.values()] + [1])
    left, row, rows = 210, 34, []
    span = width - left - 150
    for number, (name, count) in enumerate(stages.items()):
        y, coming, staying = number * row, span * count["in"] / most, span * count["out"] / most
        lost = count["in"] - count["out"]
        worst = max(count["dropped"].items(), key=lambda item: item[1], default=("", 0))[0]
        said = f"{count['out']:,}" + (f"  (−{lost:,}, {worst.replace('_', ' ')})" if lost else "")
        x = left + span / 2
        rows.append(
            f'<text x="{left - 12}" y="{y + 21}" text-anchor="end">{html.escape(STAGES.get(name, name))}</text>'
            f'<rect x="{x - coming / 2:.1f}" y="{y + 5}" width="{coming:.1f}" height="24" rx="4" fill="#f0a58f"/>'
            f'<rect x="{x - staying / 2:.1f}" y="{y + 5}" width="{staying:.1f}" height="24" rx="4" fill="#3f5bd8"/>'
            f'<text x="{x}" y="{y + 21}" text-anchor="middle" class="on">{html.escape(said)}</text>'
        )
    size = f"0 0 {width} {row * len(stages)}"
    return f'<svg viewBox="{size}" role="img" aria-label="documents after each stage">{"".join(rows)}</svg>'


def write_report(path: Path, report: dict) -> None:
    """Render a build's report."""
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    path.write_text(page.render(report=report, names=STAGES, funnel=funnel(report["stages"])), encoding="utf-8")
