"""The ablation as a page: tables, what does not help in plain words, and a picture."""

import itertools
import math
import statistics
from pathlib import Path

BEGIN, END = "<!-- written by qwq bench ablation -->", "<!-- end of what is written -->"
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 95 % of Student's t, by number of seeds
READINGS = ("equal tokens", "equal time")
COLOURS = {"equal tokens": "#2a6f97", "equal time": "#e07a5f"}


def write(page: Path, found: dict, parts: dict[str, tuple[str, str]], ranges: tuple[int, ...]) -> None:
    """Put tables and picture between the two marks of `page`; the picture lies beside it."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    gains = {part: {r: _gain(found, *arms, r) for r in READINGS} for part, arms in parts.items()}
    picture = page.with_suffix(".svg")
    picture.write_text(svg(gains), encoding="utf-8")
    blocks = [_parts(found, parts, gains), f"![What each part buys]({picture.name})", verdict(gains)]
    blocks += [_depths(found), _ranges(found, ranges)]
    body = "\n\n".join(blocks)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def _runs(found: dict, arm: str, reading: str) -> list[dict]:
    """The runs of an arm at a reading, by seed."""
    steps = found["steps"][reading][arm]
    chosen = [r for r in found["runs"] if r["job"]["arm"] == arm and r["job"]["steps"] == steps]
    return sorted(chosen, key=lambda r: r["job"]["seed"])


def _gain(found: dict, on: str, off: str, reading: str) -> tuple[float, float]:
    """Per cent fewer bits with the part, paired by seed: mean and half of its 95 % interval (Student's t)."""
    pairs = zip(_runs(found, on, reading), _runs(found, off, reading), strict=True)
    gains = [100 * (1 - a["bits_per_byte"]["mean"] / b["bits_per_byte"]["mean"]) for a, b in pairs]
    if len(gains) == 1:
        return gains[0], math.inf
    half = STUDENT.get(len(gains), 2.5) * statistics.stdev(gains) / math.sqrt(len(gains))
    return statistics.mean(gains), half


def verdict(gains: dict[str, dict[str, tuple[float, float]]]) -> str:
    """One plain sentence a part."""
    lines = []
    for part, readings in gains.items():
        words = []
        for reading, (mean, half) in readings.items():
            seen = "helps" if mean > half else "hurts" if mean < -half else "makes no difference that three runs show"
            words.append(f"at {reading} it {seen} ({mean:+.1f} %)")
        lines.append(f"- **{part}**: {', '.join(words)}.")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _parts(found: dict, parts: dict[str, tuple[str, str]], gains: dict) -> str:
    names = [f"fewer bits at {reading}" for reading in READINGS]
    lines = [f"| part | with | without | {names[0]} | time of a step | {names[1]} |", "|---" * 6 + "|"]
    for part, (on, off) in parts.items():
        bits = [_cell([r["bits_per_byte"]["mean"] for r in _runs(found, arm, READINGS[0])]) for arm in (on, off)]
        time = found["step_seconds"][on] / found["step_seconds"][off]
        cells = [f"{mean:+.1f} % ± {half:.1f}" for mean, half in gains[part].values()]
        lines.append(f"| {part} | {bits[0]} | {bits[1]} | {cells[0]} | {time:.2f} x | {cells[1]} |")
    steps, seconds = found["steps"]["equal tokens"]["dense"], found["step_seconds"]["dense"]
    tokens = _runs(found, "dense", READINGS[0])[0]["tokens"]
    intro = (
        f"Mean bits per byte of held-out English, Chinese and code; {found['seeds']} seeds, mean (least to most). The "
        f"dense model takes {steps} steps, {tokens:,} tokens, in {found['minutes']:g} minutes of one core "
        f"({seconds:.3f} s a step); fewer bits are better, and ± is a 95 % interval over the seeds, paired."
    )
    return intro + "\n\n" + "\n".join(lines)


def _depths(found: dict) -> str:
    """Bits per byte at the exits."""
    arms = ("dense", "exits", "extended")
    by = {arm: _runs(found, arm, READINGS[0]) for arm in arms}
    depths = list(by["dense"][0]["by_depth"])
    lines = [f"| left after | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for depth in depths:
        cells = [_cell([r["by_depth"][depth] for r in by[arm]]) for arm in arms]
        lines.append(f"| {depth} layer{'s' * (depth != '1')} | {' | '.join(cells)} |")
    cells = [_cell([r["bits_per_byte"]["mean"] for r in by[arm]]) for arm in arms]
    lines.append(f"| the end | {' | '.join(cells)} |")
    return "## At the exits\n\nThe same runs at equal tokens, read where a reply may be left early.\n\n" + "\n".join(
        lines
    )


def _ranges(found: dict, ranges: tuple[int, ...]) -> str:
    """Bits per byte on long documents, by position."""
    columns = [f"{a:,} to {b:,}" for a, b in itertools.pairwise(ranges)]
    lines = [f"| model | read | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for arm in ("dense", "extended"):
        by = [r["by_range"] for r in _runs(found, arm, READINGS[0])]
        for reading in by[0]:
            cells = [_cell([r[reading][i] for r in by]) for i in range(len(columns))]
            lines.append(f"| {arm} | {reading} | {' | '.join(cells)} |")
    intro = (
        f"Held-out documents of more than {ranges[-1]:,} tokens, bits per byte by position, after training at "
        f"{ranges[1]}: in pieces of {ranges[1]} tokens as it was trained; whole; whole with YaRN switched on. Compare "
        "within a column: the text of two columns differs."
    )
    return f"## Length\n\n{intro}\n\n" + "\n".join(lines)


def svg(gains: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Per cent fewer bits of every part with its interval, at equal tokens and at equal time."""
    reach = max(1.0, max(abs(mean) + min(half, 4) for part in gains.values() for mean, half in part.values()))
    left, width, row, top = 250, 420, 44, 46
    height = top + row * len(gains) + 40

    def x(value: float) -> float:
        return left + width * (0.5 + 0.5 * max(-1.0, min(1.0, value / reach)))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="#fff"/><path d="M{x(0)} {top - 8}V{height - 34}" stroke="#999"/>',
    ]
    for number, (reading, colour) in enumerate(COLOURS.items()):
        at = left + 140 * number
        out.append(f'<circle cx="{at}" cy="20" r="5" fill="{colour}"/><text x="{at + 10}" y="24">{reading}</text>')
    for number, (part, readings) in enumerate(gains.items()):
        y = top + row * number + 16
        out.append(f'<text x="{left - 14}" y="{y + 4}" text-anchor="end">{part}</text>')
        for shift, (reading, (mean, half)) in zip((-6, 6), readings.items(), strict=True):
            colour, at = COLOURS[reading], y + shift
            out.append(
                f'<path d="M{x(mean - half):.1f} {at}H{x(mean + half):.1f}" stroke="{colour}" stroke-width="2"/>'
                f'<circle cx="{x(mean):.1f}" cy="{at}" r="5" fill="{colour}"/>'
            )
    for value in (-reach, -reach / 2, 0.0, reach / 2, reach):
        out.append(f'<text x="{x(value):.1f}" y="{height - 16}" text-anchor="middle" fill="#555">{value:+.1f} %</text>')
    out.append(
        f'<text x="{left - 14}" y="{height - 16}" text-anchor="end" fill="#555">fewer bits per byte</text></svg>'
    )
    return "\n".join(out) + "\n"
