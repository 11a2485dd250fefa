"""Draws curves as SVG that a page can hold: axes with round numbers, a line a series, values where the mouse points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_MOST_POINTS = 600  # of a line; more are thinned out, since no screen shows them


@dataclasses.dataclass(frozen=True)
class Series:
    """Holds one curve.

    Attributes:
      label: shown where the mouse points.
      colour: of CSS.
      points: (step, value), ascending; values that are not finite break the line.
      markers: whether every point has a dot, as evaluations have.
    """

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    markers: bool = False


def chart(title: str, series: Sequence[Series]) -> str:
    """Returns an SVG element with all series in one frame."""
    points = [point for line in series for point in line.points if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = ticks(*_range(x for x, _ in points)), ticks(*_range(y for _, y in points))
    x_of = _scale(xs[0], xs[-1], _LEFT, WIDTH - _RIGHT)
    y_of = _scale(ys[0], ys[-1], HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in ys:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y_of(y) + 4:.1f}">{short(y)}</text>')
    for x in xs:
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x_of(x):.1f}" y="{HEIGHT - _BOTTOM + 16}">{short(x)}</text>'
        )
    parts.append(f'<text class="tick" text-anchor="middle" x="{WIDTH / 2}" y="{HEIGHT - 3}">step</text>')
    for line in series:
        parts += _line(line, x_of, y_of)
    return "\n".join([*parts, "</svg>"])


def _line(line: Series, x_of, y_of) -> list[str]:
    parts, colour = [], escape(line.colour)
    for piece in _finite_pieces(_thinned(line.points)):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in piece)
        parts.append(f'<polyline stroke="{colour}" points="{path}"/>')
        radius = 3 if line.markers or len(piece) == 1 else 0
        for x, y in piece:
            where = f'cx="{x_of(x):.1f}" cy="{y_of(y):.1f}"'
            if radius:
                parts.append(f'<circle {where} r="{radius}" fill="{colour}"/>')
            about = escape(f"{line.label}, step {short(x)}: {y:.6g}")
            parts.append(f'<circle class="hover" {where} r="6"><title>{about}</title></circle>')
    return parts


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Leaves out points evenly, but neither the first nor the last."""
    if len(points) <= _MOST_POINTS:
        return points
    every = (len(points) - 1) / (_MOST_POINTS - 1)
    return [points[round(i * every)] for i in range(_MOST_POINTS)]


def _finite_pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _range(values) -> tuple[float, float]:
    values = list(values)
    return min(values), max(values)


def _scale(low: float, high: float, start: float, end: float):
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers, evenly spaced, from at most `low` to at least `high`."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """Writes a number for an axis: 0.25, 1,500, 3e-06."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.3g}"
