"""How a stage's cost grows with the candidates of a build, as measured: growth.json, which bench_estimate writes.

Between two measured sizes cost follows the line between them in logarithms. Beyond the largest it goes on as over the
last two sizes, though never slower than the candidates do, and just as they do where it is within EVEN of that: what is
smaller lies in the noise of one measurement, and would be magnified. Below the smallest it goes on as over the first
two, never faster than the candidates: what a stage costs at least, it costs there, too.

Limits: measured on drawn pictures and captions, of which a known share are copies; the growth is theirs.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EVEN = 0.05
"""Difference of an exponent from 1 that is disregarded."""

LEAST = 1e-3
"""Of a figure, so that it has a logarithm: a millisecond."""

PEAK = "peak_bytes"
"""The figure that need not grow at all."""


@dataclass(frozen=True)
class Growth:
    """Measured figures of stages: `stages[NAME][FIGURE][i]` at `sizes[i]` candidates, sizes ascending."""

    sizes: Sequence[int]
    stages: Mapping[str, Mapping[str, Sequence[float]]]

    def at(self, stage: str, figure: str, candidates: float) -> float:
        """A figure of a stage at so many candidates; 0 where it had none there."""
        values = self.stages.get(stage, {}).get(figure, ())
        measured = [(size, value) for size, value in zip(self.sizes, values, strict=False) if value > 0]
        if not measured or (candidates < measured[0][0] and measured[0][0] > self.sizes[0]):
            return 0.0  # a stage that begins with a size
        points = [(math.log(size), math.log(max(LEAST, value))) for size, value in measured]
        return math.exp(_line(points, math.log(candidates), 0.0 if figure == PEAK else 1.0))

    def ratio(self, stage: str, figure: str, before: float, after: float) -> float:
        """The figure at `after` candidates over that at `before`; that of the candidates where it was not measured."""
        own = self.at(stage, figure, before)
        return self.at(stage, figure, after) / own if own else after / before


def _line(points: Sequence[tuple[float, float]], x: float, slowest: float) -> float:
    """The value at x on the line through points by x, and beyond them by the rules of this file."""
    if len(points) == 1:
        return points[0][1] + slowest * (x - points[0][0])
    if x > points[-1][0]:
        slope = max(slowest, _slope(*points[-2:]))
        return points[-1][1] + (1.0 if abs(slope - 1) < EVEN else slope) * (x - points[-1][0])
    if x < points[0][0]:
        return points[0][1] + min(1.0, max(0.0, _slope(*points[:2]))) * (x - points[0][0])
    after = next(number for number, point in enumerate(points) if number and x <= point[0])
    one, other = points[after - 1 : after + 1]
    return one[1] + _slope(one, other) * (x - one[0])


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


@functools.cache
def measured_growth() -> Growth:
    """The growth that comes with the package."""
    stored = json.loads(importlib.resources.files("pipeline.report").joinpath("growth.json").read_text("utf-8"))
    return Growth(stored["sizes"], stored["stages"])
