"""The ablation as a page: tables, what does not help in plain words, and a picture."""

import itertools
import math
import statistics
from pathlib import Path

BEGIN, END = "<!-- written by qwq bench ablation -->", "<!-- end of what is written -->"
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 95 % of Student's t, by number of seeds
COLOURS = {"equal tokens": "#2a6f97", "equal time": "#e07a5f"}


def write(page: Path, found: dict, ranges: tuple[int, ...]) -> None:
    """Put tables and picture between the two marks of `page`; the picture lies beside it."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    picture = page.with_suffix(".svg")
    picture.write_text(svg(found["parts"]), encoding="utf-8")
    blocks = [_parts(found), f"![What each part buys]({picture.name})", verdict(found["parts"])]
    body = "\n\n".join([*blocks, _depths(found), _ranges(found, ranges)])
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _gain(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Per cent fewer bits, paired by seed: the mean, and half of its 95 % interval (Student's t)."""
    gains = [100 * (1 - a / b) for a, b in zip(ours, theirs, strict=True)]
    if len(gains) == 1:
        return gains[0], math.inf
    return statistics.mean(gains), STUDENT.get(len(gains), 2.5) * statistics.stdev(gains) / math.sqrt(len(gains))


def verdict(parts: list[dict]) -> str:
    """One plain sentence a part."""
    lines = []
    for part in parts:
        words = []
        for reading, pair in part["readings"].items():
            mean, half = _gain(*pair)
            seen = "helps" if mean > half else "hurts" if mean < -half else "makes no difference that these runs show"
            words.append(f"at {reading} it {seen} ({mean:+.1f} %)")
        lines.append(f"- **{part['part']}**: {', '.join(words)}.")
    return "\n".join(lines)


def _runs(found: dict, arm: str) -> list[dict]:
    """The runs of an arm on as many tokens as all others."""
    return [r for r in found["runs"] if r["job"]["arm"] == arm and r["job"]["steps"] == found["steps"]]


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _table(*rows: list[str]) -> str:
    """Markdown; the first row is the header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _parts(found: dict) -> str:
    rows, seconds = [], found["step_seconds"]
    for part in found["parts"]:
        tokens, time = (_gain(*part["readings"][reading]) for reading in COLOURS)
        gains = [f"{mean:+.1f} % ± {half:.1f}" for mean, half in (tokens, time)]
        bits = map(_cell, part["readings"]["equal tokens"])
        rows.append([part["part"], *bits, gains[0], f"{seconds[part['on']] / seconds[part['off']]:.2f} x", gains[1]])
    header = ["part", "with", "without", "fewer bits at equal tokens", "time of a step", "fewer bits at equal time"]
    tokens, minutes = _runs(found, "dense")[0]["tokens"], found["steps"] * seconds["dense"] / 60
    intro = (
        f"Mean bits per byte of held-out English, Chinese and code; {found['seeds']} seeds, mean (least to most); "
        f"{found['steps']} steps, {tokens:,} tokens, {minutes:.1f} minutes of one core for the dense model "
        f"({seconds['dense']:.3f} s a step). ± is a 95 % interval over the seeds, paired."
    )
    return f"{intro}\n\n{_table(header, *rows)}"


def _depths(found: dict) -> str:
    """Bits per byte at the exits."""
    arms = ("dense", "exits", "extended")
    by = [_runs(found, arm) for arm in arms]
    rows = [
        [f"{depth} layer{'s' * (depth != '1')}", *(_cell([r["by_depth"][depth] for r in one]) for one in by)]
        for depth in by[0][0]["by_depth"]
    ]
    rows.append(["the end", *(_cell([r["bits_per_byte"]["mean"] for r in one]) for one in by)])
    intro = "The same runs at equal tokens, read where a reply may be left early."
    return f"## At the exits\n\n{intro}\n\n{_table(['left after', *arms], *rows)}"


def _ranges(found: dict, ranges: tuple[int, ...]) -> str:
    """Bits per byte on long documents, by position."""
    columns, rows = [f"{a:,} to {b:,}" for a, b in itertools.pairwise(ranges)], []
    for arm in ("dense", "extended"):
        by = [r["by_range"] for r in _runs(found, arm)]
        rows += [[arm, how, *(_cell([r[how][i] for r in by]) for i in range(len(columns)))] for how in by[0]]
    intro = (
        f"Held-out documents of more than {ranges[-1]:,} tokens, bits per byte by position, after training at "
        f"{ranges[1]}: in pieces of {ranges[1]} tokens as it was trained; whole; whole with YaRN switched on. Compare "
        "within a column: the text of two columns differs."
    )
    return f"## Length\n\n{intro}\n\n{_table(['model', 'read', *columns], *rows)}"


def svg(parts: list[dict]) -> str:
    """Per cent fewer bits of every part with its interval, at equal tokens and at equal time."""
    gains = [{reading: _gain(*pair) for reading, pair in part["readings"].items()} for part in parts]
    reach = max(1.0, *(abs(mean) + min(half, 2) for gain in gains for mean, half in gain.values()))
    left, width, row, top = 250, 420, 44, 46
    height = top + row * len(parts) + 60

    def x(value: float) -> float:
        return round(left + width * (0.5 + 0.5 * max(-1.0, min(1.0, value / reach))), 1)

    def text(at: float, y: float, words: str, anchor: str = "end") -> str:
        return f'<text x="{at}" y="{y}" text-anchor="{anchor}">{words}</text>'

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="#fff"/><path d="M{x(0)} {top - 8}V{height - 54}" stroke="#999"/>',
    ]
    for number, (reading, colour) in enumerate(COLOURS.items()):
        at = left + 140 * number
        out.append(f'<circle cx="{at}" cy="20" r="5" fill="{colour}"/>{text(at + 10, 24, reading, "start")}')
    for number, (part, gain) in enumerate(zip(parts, gains, strict=True)):
        y = top + row * number + 16
        out.append(text(left - 14, y + 4, part["part"]))
        for shift, (reading, colour) in zip((-6, 6), COLOURS.items(), strict=True):
            mean, half = gain[reading]
            line = f'<path d="M{x(mean - half)} {y + shift}H{x(mean + half)}" stroke="{colour}" stroke-width="2"/>'
            out.append(f'{line}<circle cx="{x(mean)}" cy="{y + shift}" r="5" fill="{colour}"/>')
    for value in (-reach, -reach / 2, 0.0, reach / 2, reach):
        out.append(text(x(value), height - 36, f"{value:+.1f} %", "middle"))
    return "\n".join([*out, text(x(0), height - 12, "fewer bits per byte", "middle"), "</svg>\n"])
