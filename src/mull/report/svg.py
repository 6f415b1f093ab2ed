"""A little SVG: elements, axes and lines as strings, drawn here so that a report needs no library and no network.

Text is escaped where it enters (`tag`), so nothing a model or a user wrote can become markup. Colours are CSS classes
and variables of the page, never numbers here: one drawing serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]


def tag(name: str, body: str | Markup = "", **attributes: float | str | None) -> Markup:
    """`class_` becomes class, `stroke_width` stroke-width; None leaves an attribute out. A plain str body is text."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{escape(body)}</{name}>" if body else f"<{name}{written}/>")


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def join(parts: Iterable[str]) -> Markup:
    return Markup("").join(parts)


def titled(name: str, says: str, **attributes: float | str) -> Markup:
    """An element that says so when pointed at."""
    return tag(name, tag("title", says), **attributes)


def picture(width: float, height: float, label: str, body: Markup, **attributes: str) -> Markup:
    """The drawing itself; `label` is what a screen reader says of it."""
    box = f"0 0 {_number(float(width))} {_number(float(height))}"
    return tag("svg", body, viewBox=box, role="img", aria_label=label, xmlns="http://www.w3.org/2000/svg", **attributes)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high], roughly `about` of them."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def line(points: Sequence[Point], **attributes: str) -> Markup:
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("path", d=path, fill="none", **attributes)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: means of equal runs, so that noise becomes a line and a drawing stays small."""
    if len(points) <= most:
        return list(points)
    means = []
    for i in range(most):
        part = points[i * len(points) // most : (i + 1) * len(points) // most]
        means.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return means


def rolling(points: Sequence[Point], width: int) -> list[Point]:
    """Centred moving average; at the ends over what there is."""
    half = width // 2
    smooth = []
    for i, (x, _) in enumerate(points):
        part = points[max(0, i - half) : i + half + 1]
        smooth.append((x, sum(y for _, y in part) / len(part)))
    return smooth


@dataclass(frozen=True, slots=True)
class Frame:
    """A plotting area inside a drawing, and the data range it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: Point
    y_range: Point

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / ((high - low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / ((high - low) or 1.0) * (self.bottom - self.top)

    def at(self, points: Iterable[Point]) -> list[Point]:
        return [(self.x(x), self.y(y)) for x, y in points]

    def grid(self, values: Sequence[float], names: Sequence[str]) -> Markup:
        """Horizontal lines with their values at the left."""
        parts: list[Markup] = []
        for value, name in zip(values, names, strict=True):
            y = self.y(value)
            kind = "axis" if value == 0 else "grid"
            parts.append(tag("line", x1=self.left, x2=self.right, y1=y, y2=y, class_=kind))
            parts.append(tag("text", name, x=self.left - 7, y=y + 4, class_="tick", text_anchor="end"))
        return join(parts)

    def feet(self, values: Sequence[float], names: Sequence[str]) -> Markup:
        """Values along the bottom."""
        return join(
            tag("text", name, x=self.x(value), y=self.bottom + 17, class_="tick", text_anchor="middle")
            for value, name in zip(values, names, strict=True)
        )


__all__ = ["Frame", "Point", "join", "line", "picture", "rolling", "tag", "thin", "ticks", "titled"]
