"""Line plots for the documentation: standalone SVG that reads on light and dark pages, from the report's parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mull.report.svg import Frame, Point, join, line, picture, tag, ticks

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #555 } .title { font-weight: 600; fill: #222 }
.grid { stroke: #8884; stroke-width: 1 } .axis { stroke: #888; stroke-width: 1 }
path { stroke-width: 2 } .raw { stroke-width: 1; opacity: 0.45 }
.c0 { stroke: #0b6bcb } .c1 { stroke: #c2410c } .c2 { stroke: #15803d } .c3 { stroke: #7e22ce }
text.c0 { stroke: none; fill: #0b6bcb } text.c1 { stroke: none; fill: #c2410c }
text.c2 { stroke: none; fill: #15803d } text.c3 { stroke: none; fill: #7e22ce }
@media (prefers-color-scheme: dark) { text { fill: #aaa } .title { fill: #eee } .c0 { stroke: #60a5fa }
.c1 { stroke: #fb923c } text.c0 { fill: #60a5fa } text.c1 { fill: #fb923c } }
"""
WIDTH, HEIGHT = 420, 250


@dataclass(frozen=True)
class Panel:
    """One small plot: named lines over a common axis. Names that begin alike share a colour; `log` axes are base 2."""

    title: str
    x: str
    lines: Mapping[str, Sequence[Point]]
    log_x: bool = False
    from_zero: bool = True
    dots: bool = True


def draw(path: Path, panels: Sequence[Panel], about: str, across: int = 2) -> None:
    """Write the panels in rows of `across`. `about` is what a screen reader says."""
    rows = math.ceil(len(panels) / across)
    parts = [tag("style", Markup(STYLE))]
    for i, panel in enumerate(panels):
        body = _panel(panel)
        parts.append(tag("g", body, transform=f"translate({i % across * WIDTH} {i // across * HEIGHT})"))
    drawing = picture(WIDTH * min(across, len(panels)), HEIGHT * rows, about, join(parts))
    path.write_text(str(drawing) + "\n", encoding="utf-8")


def _panel(panel: Panel) -> Markup:
    points = [point for each in panel.lines.values() for point in each]
    place = math.log2 if panel.log_x else float
    across = sorted({x for x, _ in points})
    low = 0.0 if panel.from_zero else min(y for _, y in points)
    high = max(y for _, y in points)
    frame = Frame(
        64, 34, WIDTH - 20, HEIGHT - 44, (place(across[0]), place(across[-1])),
        (low - (0 if panel.from_zero else 0.04 * (high - low)), high + 0.06 * (high - low)),
    )  # fmt: skip
    marks = ticks(low, high, 4)
    feet = across if panel.log_x else ticks(across[0], across[-1], 5)
    parts = [
        tag("text", panel.title, x=64.0, y=18.0, class_="title"),
        frame.grid(marks, [f"{mark:,g}" for mark in marks]),
        frame.feet([place(foot) for foot in feet], [f"{foot:,g}" for foot in feet]),
        tag("text", panel.x, x=(64 + WIDTH - 20) / 2, y=HEIGHT - 8.0, text_anchor="middle"),
    ]
    kinds = list(dict.fromkeys(name.split(",")[0] for name in panel.lines))
    for name, each in panel.lines.items():
        colour = f"c{kinds.index(name.split(',')[0])}"
        at = frame.at([(place(x), y) for x, y in each])
        parts.append(line(at, class_=colour))
        if panel.dots:
            parts += [tag("circle", cx=x, cy=y, r=2.5, class_=colour, fill="none") for x, y in at]
    if len(kinds) > 1:
        for i, kind in enumerate(kinds):
            parts.append(tag("text", kind, x=WIDTH - 24.0, y=46.0 + 16 * i, class_=f"c{i}", text_anchor="end"))
    return join(parts)
