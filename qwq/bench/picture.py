"""A picture of lines on logarithmic axes, as SVG."""

import math
from collections.abc import Mapping, Sequence

COLOURS = ("#6c757d", "#e07a5f", "#2a6f97", "#3d8b5f")
LEFT, TOP, WIDTH, HEIGHT = 78, 44, 560, 320


def log_log(title: str, x_name: str, y_name: str, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """Each of `series` over `x`; both axes logarithmic, a line of the grid for every x and every power of ten of y."""
    values = [value for ys in series.values() for value in ys]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def at_x(value: float) -> float:
        return round(LEFT + WIDTH * math.log(value / x[0]) / math.log(x[-1] / x[0]), 1)

    def at_y(value: float) -> float:
        return round(TOP + HEIGHT * (high - math.log10(value)) / (high - low), 1)

    def text(left: float, top: float, words: str, anchor: str) -> str:
        return f'<text x="{left}" y="{top}" text-anchor="{anchor}">{words}</text>'

    bottom = TOP + HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 170} {bottom + 58}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<title>{title}</title><rect width="100%" height="100%" fill="#fff"/>{text(LEFT, 22, title, "start")}',
    ]
    for value in x:
        words = f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"
        out.append(f'<path d="M{at_x(value)} {TOP}V{bottom}" stroke="#eee"/>')
        out.append(text(at_x(value), bottom + 20, words, "middle"))
    for power in range(low, high + 1):
        y = at_y(10.0**power)
        out.append(
            f'<path d="M{LEFT} {y}H{LEFT + WIDTH}" stroke="#ddd"/>{text(LEFT - 8, y + 4, f"{10.0**power:g}", "end")}'
        )
    for colour, ys in zip(COLOURS, series.values(), strict=False):
        points = [(at_x(a), at_y(b)) for a, b in zip(x, ys, strict=True)]
        line = " ".join(f"{a},{b}" for a, b in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{a}" cy="{b}" r="4" fill="{colour}"/>' for a, b in points]
    place = -math.inf
    for name in sorted(series, key=lambda name: -series[name][-1]):  # from the highest, none on top of another
        place = max(place + 16, at_y(series[name][-1]) + 4)
        out.append(text(LEFT + WIDTH + 10, place, name, "start"))
    out.append(text(LEFT + WIDTH / 2, bottom + 44, x_name, "middle"))
    out.append(text(LEFT - 8, TOP - 8, y_name, "end"))
    return "\n".join([*out, "</svg>\n"])
