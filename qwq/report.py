"""report.html: one page, no script, no other file, with what a training run read, did and learned."""

import html
import json
import math
from pathlib import Path

from jinja2 import Environment

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(path: Path, report: dict, metrics: Path) -> Path:
    """Render `report` (see quickstart.py) with the loss curve of a metrics.jsonl; report.json holds the numbers."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    points = [(row["step"], row["loss"]) for row in rows if "loss" in row and "grad_norm" in row]
    environment = Environment(autoescape=True)
    environment.filters["add_one"] = lambda layer: layer + 1  # people count layers from 1
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    bits = math.log2(max(1, len(report["experts"]["domains"])))
    recipe_json = json.dumps(report["recipe"], indent=1, ensure_ascii=False)
    path.write_text(
        page.render(curve=curve(points), recipe_json=recipe_json, log2_domains=bits, **report), encoding="utf-8"
    )
    text = json.dumps(report, indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path


def curve(points: list[tuple[int, float]], width: int = 820, height: int = 280) -> str:
    """An SVG of (step, loss): every step faintly, and their running mean."""
    if not points:
        return "<p>no steps were taken</p>"
    left, right, top, bottom = 44, width - 12, 12, height - 30
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    low, high = min(losses), max(losses)
    span = max(high - low, 1e-9)

    def place(step: float, loss: float) -> str:
        x = left + (right - left) * (step - steps[0]) / max(steps[-1] - steps[0], 1)
        return f"{x:.1f},{bottom - (bottom - top) * (loss - low) / span:.1f}"

    smooth, mean = [], losses[0]
    for step, loss in points:
        mean += 0.1 * (loss - mean)
        smooth.append(place(step, mean))
    ticks = [low + span * i / 4 for i in range(5)]
    lines = "".join(
        f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#8884" />'
        f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
        for tick in ticks
        for y in [place(steps[0], tick).split(",")[1]]
    )
    label = html.escape(f"step {steps[-1]:,}")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss by step">{lines}'
        f'<polyline fill="none" stroke="#8da2fb" stroke-opacity=".45" points="{" ".join(place(*p) for p in points)}" />'
        f'<polyline fill="none" stroke="#3f5bd8" stroke-width="2" points="{" ".join(smooth)}" />'
        f'<text x="{right}" y="{height - 8}" text-anchor="end">{label}</text>'
        f'<text x="{left}" y="{height - 8}">nats a token</text></svg>'
    )
