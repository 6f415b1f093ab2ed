"""The drawings of a report: how it learnt, from metrics.jsonl, and how good it is, from the exams.

Each function takes plain data and returns one SVG, or None where there is nothing to draw. A model has one colour
throughout, given to it by its place in the run (`Colours`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from mull.report import words
from mull.report.svg import Frame, Point, join, line, picture, rolling, tag, thin, ticks, titled

Line = Mapping[str, Any]  # of metrics.jsonl
WIDE, HALF, SMALL = 920, 460, 280
MOST_POINTS = 160  # per line; means of more
MOST_CELLS = 2400  # of a heat map
MOST_LAYERS = 8
COLOURS = 7  # as many as the page defines; more models begin again


@dataclass(frozen=True)
class Colours:
    """model -> CSS class. A stage that continues a model's training under a longer name shares its colour."""

    models: tuple[str, ...]

    def of(self, model: str) -> str:
        if model in self.models:
            return f"m{self.models.index(model) % COLOURS}"
        owner = next((m for m in self.models if m and model.startswith(f"{m}-")), None)
        return self.of(owner) if owner else f"m{COLOURS - 1}"


def durations(metrics: Sequence[Line]) -> dict[str, float]:
    """Seconds each training stage took by its own clock. A pause (another session) counts as a usual step."""
    times: dict[str, list[float]] = {}
    for row in metrics:
        if "loss" in row:
            times.setdefault(row["stage"], []).append(float(row["time"]))
    found = {}
    for stage, stamps in times.items():
        steps = [max(b - a, 0.0) for a, b in pairwise(stamps)]
        usual = sorted(steps)[len(steps) // 2] if steps else 0.0
        within = [step if step <= 30 * usual + 60 else usual for step in steps]
        found[stage] = sum(within) + usual  # the first step ended at the first stamp
    return found


def series(metrics: Sequence[Line], stage: str, name: str) -> list[Point]:
    rows = (row for row in metrics if row["stage"] == stage and isinstance(row.get(name), int | float))
    return [(float(row["step"]), float(row[name])) for row in rows if math.isfinite(row[name])]


@dataclass(frozen=True, slots=True)
class Band:
    """A stage's stretch of an axis that all stages share."""

    stage: str
    left: float
    right: float
    steps: float
    seconds: float


def bands(metrics: Sequence[Line], left: float, right: float) -> list[Band]:
    """Stages in order, as wide as the time they took; short ones wide enough to be read."""
    seconds = durations(metrics)
    total = sum(seconds.values()) or 1.0
    least = min(84.0, (right - left) / max(len(seconds), 1)) / (right - left)
    shares = {stage: max(took / total, least) for stage, took in seconds.items()}
    spare = sum(share - least for share in shares.values())
    surplus = sum(shares.values()) - 1
    found, x = [], left
    for stage, share in shares.items():
        fair = share - (share - least) / spare * surplus if spare > 0 else share / sum(shares.values())
        width = fair * (right - left)
        steps = max(row["step"] for row in metrics if row["stage"] == stage)
        found.append(Band(stage, x, x + width, float(steps), seconds[stage]))
        x += width
    return found


def _banners(found: Sequence[Band], colours: Colours, top: float, bottom: float, shade: bool = True) -> Markup:
    """The stretches, shaded in turn, with the stages' names above them and steps and time beneath."""
    parts: list[Markup] = []
    for i, band in enumerate(found):
        middle, width = (band.left + band.right) / 2, band.right - band.left
        room = max(3, int((width - 6) / 6.6))
        name = band.stage if len(band.stage) <= room else band.stage[: room - 1] + "…"
        told = f"{band.stage}: {band.steps:,.0f} steps in {words.clock(band.seconds)}"
        if shade:
            box = {"x": band.left, "y": top, "width": width, "height": bottom - top}
            parts.append(titled("rect", told, class_="band" if i % 2 else "band even", **box))
        parts.append(tag("text", name, x=middle, y=top - 8, class_=f"name {colours.of(band.stage)}",
                         text_anchor="middle"))  # fmt: skip
        steps = f"{band.steps:,.0f} steps" if width > 70 else f"{band.steps:,.0f}"
        parts.append(tag("text", steps, x=middle, y=bottom + 16, class_="tick", text_anchor="middle"))
        parts.append(tag("text", words.clock(band.seconds), x=middle, y=bottom + 30, class_="tick faint",
                         text_anchor="middle"))  # fmt: skip
    return join(parts)


def losses(metrics: Sequence[Line], colours: Colours) -> Markup | None:
    """The training objective of every stage, one after another."""
    found = bands(metrics, 44, WIDE - 4)
    lines = {band.stage: series(metrics, band.stage, "loss") for band in found}
    values = sorted(y for points in lines.values() for _, y in points)
    if not values:
        return None
    low, high = min(0.0, values[len(values) // 100]), values[-1 - len(values) // 500]
    frame = Frame(44, 28, WIDE - 4, 232, (0, 1), (low - 0.03 * (high - low), high + 0.04 * (high - low)))
    marks = ticks(low, high, 5)
    parts = [_banners(found, colours, 28, 232), frame.grid(marks, [f"{mark:g}" for mark in marks])]
    for band in found:
        width = band.right - band.left - 6
        points = [
            (band.left + 3 + width * step / band.steps, frame.y(min(max(value, low), high)))
            for step, value in thin(lines[band.stage], MOST_POINTS)
        ]
        last = lines[band.stage][-1][1]
        title = tag("title", f"{band.stage}: last loss {last:.4g}")
        parts.append(tag("g", title + line(points, class_="curve"), class_=colours.of(band.stage)))
    said = "; ".join(f"{b.stage} ends at {lines[b.stage][-1][1]:.3g}" for b in found)
    return picture(WIDE, 268, f"Training loss by stage. {said}.", join(parts))


def over_steps(
    points: Sequence[Point], colour: str, label: str, *, top: float | None = None, share: bool = False,
    width: int = HALF, height: int = 240,
) -> Markup | None:  # fmt: skip
    """One metric over one stage's steps: every step faint, their running mean firm."""
    if not points:
        return None
    high = top if top is not None else max(y for _, y in points) * 1.08
    low = min(0.0, min(y for _, y in points))
    frame = Frame(44, 14, width - 14, height - 30, (points[0][0], max(points[-1][0], points[0][0] + 1)), (low, high))
    marks = ticks(low, high, 4 if height > 150 else 2)
    feet = ticks(*frame.x_range, 4) if width > SMALL else [points[0][0], points[-1][0]]
    smooth = thin(rolling(points, max(3, len(points) // 15)), MOST_POINTS)
    write = words.percent if share else lambda value, _digits: f"{value:.3g}"
    first, last = (write(y, 0) for y in (smooth[0][1], smooth[-1][1]))
    title = tag("title", f"{label}: from {first} to {last} (running mean)")
    end_x, end_y = frame.x(smooth[-1][0]), frame.y(smooth[-1][1])
    parts = [
        frame.grid(marks, [write(mark, 0) for mark in marks]),
        frame.feet(feet, [f"{foot:,.0f}" for foot in feet]),
        tag("g", line(frame.at(thin(points, MOST_POINTS)), class_="curve raw") + title
            + line(frame.at(smooth), class_="curve"), class_=colour),
        tag("circle", cx=end_x, cy=end_y, r=3.0, class_=f"dot {colour}"),
        tag("text", last, x=end_x, y=end_y + (16 if end_y < 30 else -8), class_="value", text_anchor="end"),
    ]  # fmt: skip
    return picture(width, height, f"{label}, from {first} to {last} over {points[-1][0]:.0f} steps.", join(parts))


def expert_load(metrics: Sequence[Line], colours: Colours) -> Markup | None:
    """Per mixture layer a block, per expert a row, per record a column: how much more or less than an even share."""
    loads = [row for row in metrics if _is_load(row.get("expert_load"))]
    if not loads:
        return None
    found = bands(metrics, 44, WIDE - 4)
    layers = max(len(row["expert_load"]) for row in loads)
    experts = max(len(layer) for row in loads for layer in row["expert_load"])
    chosen = _spread(range(layers), MOST_LAYERS)
    columns = max(2, MOST_CELLS // (len(chosen) * experts) // len(found))
    cell = 9.0 if experts <= 16 else max(2.0, 144 / experts)
    block = cell * experts + 12
    top, parts = 28.0, []
    bottom = top + block * len(chosen) - 12
    parts.append(_banners(found, colours, top, bottom, shade=False))
    for k, layer in enumerate(chosen):
        y = top + k * block
        middle = y + (block - 12) / 2 + 4
        parts.append(tag("text", f"moe {layer + 1}", x=37, y=middle, class_="tick", text_anchor="end"))
        for band in found:
            rows = [row for row in loads if row["stage"] == band.stage and layer < len(row["expert_load"])]
            parts.append(_cells(rows, layer, band, y, cell, columns))
    worst = max(share * len(layer) for layer in loads[-1]["expert_load"] for share in layer)
    said = (
        f"Load of {experts} experts in {layers} mixture layers over training; "
        f"at the end the busiest has {worst:.2f} times its even share."
    )
    return picture(WIDE, bottom + 36, said, join(parts))


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, first and last among them, evenly apart."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _is_load(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(layer, list) and layer for layer in value)


def _cells(rows: Sequence[Line], layer: int, band: Band, top: float, cell: float, columns: int) -> Markup:
    """One layer in one stage. Where there are more records than columns, some are left out evenly."""
    if not rows:
        return Markup("")
    keep = _spread(rows, columns)
    width = (band.right - band.left - 2) / len(keep)
    parts: list[Markup] = []
    for c, row in enumerate(keep):
        shares = row["expert_load"][layer]
        for e, share in enumerate(shares):
            times = share * len(shares)
            told = f"{band.stage}, step {row['step']}, moe layer {layer + 1}, expert {e + 1}: {times:.2f} × even share"
            look = {
                "class_": "over" if times > 1 else "under",
                "fill_opacity": min(1.0, abs(math.log2(max(times, 0.25))) / 1.5),
            }
            x, y = band.left + 1 + c * width, top + e * cell
            parts.append(titled("rect", told, x=x, y=y, width=width + 0.3, height=cell - 1, **look))
    return join(parts)


def bar(row: Mapping[str, Any], colour: str) -> Markup | None:
    """An accuracy with its 95 % interval, to stand in a table beside its number. Stretches to the cell's width."""
    if row.get("accuracy") is None:
        return None
    value, (low, high) = 100 * row["accuracy"], (100 * bound for bound in row["ci95"])
    mode = "thinking" if row["thinking"] else "answering at once"
    said = f"{row['model']}, {mode}: {words.percent(row['accuracy'])}, 95 % interval {words.interval(row['ci95'])}"
    kind = "solid" if row["thinking"] else "hollow"
    parts = [
        tag("title", said),
        tag("rect", x=0, y=0, width=100, height=10, class_="track"),
        tag("rect", x=0, y=0, width=value, height=10, class_=f"bar {kind} {colour}"),
        tag("line", x1=low, x2=high, y1=5, y2=5, class_="halo"),
        tag("line", x1=low, x2=high, y1=5, y2=5, class_="whisker"),
        *(tag("line", x1=x, x2=x, y1=2.2, y2=7.8, class_="whisker") for x in (low, high)),
    ]
    return picture(100, 10, said, join(parts), preserveAspectRatio="none", class_="barline")


def stack(outcomes: Mapping[str, int], who: str) -> Markup | None:
    """How a set of answers came out, as shares of a whole."""
    total = sum(outcomes.values())
    if not total:
        return None
    parts, x = [], 0.0
    for name, number in outcomes.items():
        width = 100 * number / total
        told = f"{name}: {number:,} of {total:,} ({words.percent(number / total)})"
        parts.append(titled("rect", told, x=x, y=0, width=width, height=10, class_=f"o-{name}"))
        x += width
    said = f"{who}: " + ", ".join(f"{number} {name}" for name, number in outcomes.items())
    return picture(100, 10, said, join(parts), preserveAspectRatio="none", class_="barline tall")


def gap(row: Mapping[str, Any], reach: float) -> Markup:
    """A paired difference and its interval around zero; `reach` is the scale's end in either direction."""
    place = [50 + 50 * value / reach for value in (row["ci95"][0], row["difference"], row["ci95"][1])]
    low, middle, high = (min(max(x, 0.0), 100.0) for x in place)
    ends = " to ".join(words.points(end) for end in row["ci95"])
    said = f"difference {words.points(row['difference'])} points, 95 % interval {ends}"
    kind = {"better": "gain", "worse": "loss"}.get(row["verdict"], "even")
    parts = [
        tag("title", said),
        tag("line", x1=50, x2=50, y1=0, y2=10, class_="zero"),
        tag("line", x1=low, x2=high, y1=5, y2=5, class_=f"reach {kind}"),
        tag("line", x1=middle, x2=middle, y1=1.5, y2=8.5, class_=f"point {kind}"),
    ]
    return picture(100, 10, said, join(parts), preserveAspectRatio="none", class_="barline tall")


def frontier(rows: Sequence[Mapping[str, Any]], colours: Colours, cost: str = "usd_per_solved") -> Markup | None:
    """Money against accuracy; up and to the left is better. `cost` is the row's price: of a solved problem, or of an
    answer, where a line joins those that nobody beats in both.
    """
    rows = [row for row in rows if row[cost] and row["accuracy"] is not None]
    if len(rows) < 2:
        return None
    costs = [math.log10(1000 * row[cost]) for row in rows]
    frame = _money_frame(rows, costs)
    parts = [_money_axes(frame)]
    if cost == "usd_per_answer":
        parts.append(_undominated([(x, row["accuracy"]) for x, row in zip(costs, rows, strict=True)], frame))
    names, dots = [], []  # drawn over all intervals, and dots over names: no datum is hidden
    heights = _apart([frame.y(row["accuracy"]) for row in rows], 13.0)
    for row, price, height in zip(rows, costs, heights, strict=True):
        x, y = frame.x(price), frame.y(row["accuracy"])
        colour = colours.of(row["model"])
        told = f"{row['model']}, {words.mode(row['thinking'])}: {_priced(row, cost)}"
        ends = [frame.y(bound) for bound in row["ci95"]]
        parts.append(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_=f"reach {colour}"))
        kind = "dot" if row["thinking"] else "ring"
        dots.append(titled("circle", told, cx=x, cy=y, r=5.0, class_=f"{kind} {colour}"))
        names.append(_beside(row["model"], x, height + 4, colour))
    said = "; ".join(f"{row['model']} {_priced(row, cost)}" for row in rows)
    what = "answers" if cost == "usd_per_answer" else "solved problems"
    return picture(HALF, 262, f"Cost per thousand {what} against accuracy: {said}.", join([*parts, *names, *dots]))


def _money_frame(rows: Sequence[Mapping[str, Any]], costs: Sequence[float]) -> Frame:
    """Dots, not bars: the scale of accuracy need not start at 0."""
    floor = math.floor(10 * min(row["ci95"][0] for row in rows)) / 10
    ceiling = max(floor + 0.1, math.ceil(10 * max(row["ci95"][1] for row in rows)) / 10)
    return Frame(44, 14, HALF - 14, 232, (min(costs) - 0.12, max(costs) + 0.3), (floor, ceiling))


def _money_axes(frame: Frame) -> Markup:
    """Shares upwards; dollars per thousand along the foot, on a logarithmic scale."""
    (low, high), (floor, ceiling) = frame.x_range, frame.y_range
    marks = ticks(floor, ceiling, 4)
    digits = (1, 2, 5) if high - low > 0.8 else range(1, 10)
    exponents = [(m, e) for e in range(math.floor(low), math.ceil(high) + 1) for m in digits]
    named = [(math.log10(m) + e, words.money(m * 10.0**e)) for m, e in exponents]
    named = [(foot, price) for foot, price in named if low <= foot <= high]
    named = named[:: max(1, math.ceil(len(named) / 5))]
    return join([
        frame.grid(marks, [words.percent(mark, 0) for mark in marks]),
        tag("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="axis"),
        frame.feet([foot for foot, _ in named], [name for _, name in named]),
    ])  # fmt: skip


def _undominated(places: Sequence[Point], frame: Frame) -> Markup:
    """Steps through those that solve more than all that cost less."""
    steps: list[Point] = []
    for price, share in sorted(places, key=lambda place: (place[0], -place[1])):
        if not steps:
            steps.append((price, share))
        elif share > steps[-1][1]:
            steps += [(price, steps[-1][1]), (price, share)]
    steps.append((frame.x_range[1], steps[-1][1]))
    return line(frame.at(steps), class_="best")


def _beside(name: str, x: float, y: float, colour: str) -> Markup:
    """A dot's name, on the side where there is room for it."""
    if x + 9 + 6.6 * len(name) <= HALF:
        return tag("text", name, x=x + 9, y=y, class_=f"name clear {colour}")
    room = max(8, int((x - 9) / 6.6))
    name = name if len(name) <= room else f"{name[: room - 1]}…"
    return tag("text", name, x=x - 9, y=y, class_=f"name clear {colour}", text_anchor="end")


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Where labels go: moved down where they would cover one another."""
    found = dict.fromkeys(range(len(heights)), 0.0)
    last = -math.inf
    for place in sorted(found, key=lambda i: heights[i]):
        found[place] = last = max(heights[place], last + least)
    return list(found.values())


def _priced(row: Mapping[str, Any], cost: str) -> str:
    return f"{words.percent(row['accuracy'])} at {words.per_thousand(row[cost])}"


__all__ = [
    "Band", "Colours", "bands", "bar", "durations", "expert_load", "frontier", "gap", "losses", "over_steps", "series",
    "stack",
]  # fmt: skip
