"""One page for a model: every benchmark of the requirements, claims beside measurements, and what was not measured."""

from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment
from rich.table import Table

from qwq.evals.glue import GLUE

TEMPLATE = Path(__file__).with_name("scorecard.html.jinja")
# What the system was said to reach: it stands beside what is measured, and proves nothing.
CLAIMS = {"GLUE": "85.2%", "HumanEval": "72%", "VQA": "65.2%"}
ROWS = {
    "GLUE": GLUE,
    "LAMBADA": ("lambada",),
    "SQuAD": ("squad", "xquad-en"),
    "DSTC": ("dstc",),
    "HumanEval": ("humaneval",),
    "VQA": ("vqa", "easy-vqa"),
    "Multilingual": ("xquad-zh", "xquad-es", "xquad-de", "cmrc2018", "ocnli"),
    "Mathematics": ("gsm8k",),
    "Text": ("wikitext",),
}
COLUMNS = ("row", "task", "metric", "score", "interval", "n", "label", "shots", "claim", "note")


def lines(result: dict[str, Any], *, everything: bool = True) -> list[dict[str, str]]:
    """The page's lines, each with some of `COLUMNS`: scores, the mean of GLUE's, and why there is no score.

    `everything`: also the tasks that were not asked for.
    """
    page: list[dict[str, str]] = []
    known = {name for names in ROWS.values() for name in names}
    others = tuple(name for name in (*result["tasks"], *result["not_measured"]) if name not in known)
    for row, names in {**ROWS, "Other": others}.items():
        found = [result["tasks"][name]["metrics"] for name in names if name in result["tasks"]]
        begin = len(page)
        if row == "GLUE" and found:
            mean = f"{fmean(next(iter(metrics.values()))['value'] for metrics in found):.1%}"
            note = f"of the first metric of {len(found)} of the nine tasks"
            page.append({"task": "glue", "metric": "mean", "score": mean, "note": note})
        for name in names:
            entry = result["tasks"].get(name)
            if entry is None and (everything or name in result["not_measured"]):
                reason = result["not_measured"].get(name, "not asked for")
                page.append({"task": name, "note": f"not measured: {reason}"})
            for metric, score in entry["metrics"].items() if entry else ():
                low, high = (_shown(metric, bound) for bound in score["interval"])
                facts = {"n": str(entry["n"]), "label": entry["label"], "shots": str(entry["fewshot"])}
                shown = {"score": _shown(metric, score["value"]), "interval": f"{low} to {high}", "note": entry["note"]}
                page.append({"task": name, "metric": metric, **shown, **facts})
        if len(page) > begin:
            page[begin] |= {"row": row, "claim": CLAIMS.get(row, "")}
    return page


def _shown(metric: str, value: float | None) -> str:
    plain = metric in ("perplexity", "word_perplexity", "bits_per_byte")
    return "-" if value is None else f"{value:,.3g}" if plain else f"{value:.1%}"


def table(result: dict[str, Any], *, everything: bool = True) -> Table:
    """The page for a terminal."""
    view = Table(title=f"{'Scorecard of ' if everything else ''}{result['model']}")
    for column in COLUMNS:
        number = column in ("score", "interval", "n", "shots", "claim")
        view.add_column({"row": "", "interval": "95 %"}.get(column, column), justify="right" if number else "left")
    for line in lines(result, everything=everything):
        view.add_row(*(line.get(column, "") for column in COLUMNS))
    return view


def write(result: dict[str, Any], path: Path) -> None:
    """The page as one HTML file that needs no other."""
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    path.write_text(page.render(model=result["model"], lines=lines(result)) + "\n", encoding="utf-8")
