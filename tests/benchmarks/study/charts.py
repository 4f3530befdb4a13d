"""Charts of the study's page as inline SVG: curves over the samples, and intervals of differences.

Colours and fonts are the page's (classes `s0` to `s7`), so that both its themes serve. Every mark has a <title>, which
a browser shows and a screen reader reads.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.study.paired import Interval

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 12, 34

_STEPS = tuple(digit * 10**power for power in range(1, 8) for digit in (1, 2, 5))
"""Distances between the marks of the axis of samples."""


@dataclass(frozen=True)
class Series:
    """A line of a chart: (x, mean, low, high) by x, in ascending order. `colour`: number of its class."""

    name: str
    colour: int
    rows: Sequence[tuple[int, float, float, float]]


def curves(series: Sequence[Series], mark: int, chance: float | None = None) -> str:
    """Lines with bands, R@1 in percent over thousands of samples. `mark`: N of equal samples, a dashed line."""
    series = [s for s in series if s.rows]
    if not series:
        return ""
    most_x = max(row[0] for s in series for row in s.rows)
    most_y = _round_up(max(row[3] for s in series for row in s.rows))

    def at(x: float, y: float) -> str:
        return f"{_x(x, most_x):.1f},{_y(y, most_y):.1f}"

    parts = [_axes(most_x, most_y), _line_at(_x(mark, most_x))]
    if chance is not None:
        y = _y(chance, most_y)
        parts.append(f'<line class="chance" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for s in series:
        band = [at(x, high) for x, _, _, high in s.rows] + [at(x, low) for x, _, low, _ in reversed(s.rows)]
        line = " ".join(at(x, mean) for x, mean, _, _ in s.rows)
        parts.append(f'<polygon class="band s{s.colour}" points="{" ".join(band)}"/>')
        parts.append(f'<polyline class="line s{s.colour}" points="{line}"/>')
        for x, mean, low, high in s.rows:
            told = html.escape(f"{s.name}: {100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f}) after {x:,} samples")
            cx, cy = at(x, mean).split(",")
            place = f'class="dot s{s.colour}" cx="{cx}" cy="{cy}" r="2.6"'
            parts.append(f"<circle {place}><title>{told}</title></circle>")
    names = ", ".join(s.name for s in series)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(f"R@1 by samples: {names}")}">'
        f"{''.join(parts)}</svg>"
    )


def forest(gain: Interval, most: float) -> str:
    """A difference with its interval on an axis from -most to most; what reaches further is cut with an arrow."""
    width, height = 180, 22

    def x(value: float) -> float:
        return width / 2 + max(-1.0, min(1.0, value / most)) * (width / 2 - 8)

    told = f"{100 * gain.mean:+.1f}, 95% {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    arrows = "".join(
        f'<path class="stem" d="M{x(end):.1f} 11 l{-5 * side} -4 m{5 * side} 4 l{-5 * side} 4"/>'
        for end, side in ((gain.low, -1), (gain.high, 1))
        if abs(end) > most
    )
    return (
        f'<svg class="forest {gain.outcome}" viewBox="0 0 {width} {height}" role="img" aria-label="{told}">'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="1" y2="{height - 1}"/>'
        f'<line class="stem" x1="{x(gain.low):.1f}" x2="{x(gain.high):.1f}" y1="11" y2="11"/>{arrows}'
        f'<circle cx="{x(gain.mean):.1f}" cy="11" r="4"><title>{told}</title></circle></svg>'
    )


def _axes(most_x: int, most_y: float) -> str:
    parts = []
    for i in range(5):
        value = most_y * i / 4
        y = _y(value, most_y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.3g}%</text>')
    step = next((s for s in _STEPS if most_x / s <= 6), most_x)
    for value in range(0, most_x + 1, step):
        at = f'x="{_x(value, most_x):.1f}" y="{_HEIGHT - 14}"'
        parts.append(f'<text {at} text-anchor="middle">{value / 1000:g}k</text>')
    return "".join(parts)


def _line_at(x: float) -> str:
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'


def _x(value: float, most: float) -> float:
    return _LEFT + value / most * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, most: float) -> float:
    return _HEIGHT - _BOTTOM - value / most * (_HEIGHT - _TOP - _BOTTOM)


def _round_up(value: float) -> float:
    """The least of 1, 2, 4, 8, 10, 20, 40 ... percent that is not below a share."""
    for step in (0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.28, 0.4, 0.6, 0.8):
        if value <= step:
            return step
    return 1.0
