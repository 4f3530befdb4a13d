"""Curves of a run: metrics.jsonl as one static HTML page, without a server, scripts or downloads.

Limits: at most 400 points per curve, each the mean of what lies between; values that are not finite leave a gap.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.outputs.whole import whole_file

CURVES = "curves.html"

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("loss", "i2t_loss", "t2i_loss")),
    ("Loss by source kind", ("loss.*",)),
    ("Recall on the dev split", ("dev.i2t.r1", "dev.t2i.r1", "dev.mean_recall")),
    ("Own key nearer than all negatives", ("i2t_accuracy", "t2i_accuracy")),
    ("Similarity to own key and to negatives", ("i2t_positive", "i2t_negative", "t2i_positive", "t2i_negative")),
    ("Spread of features (0: collapsed)", ("image_spread", "text_spread")),
    ("Query and stored key apart", ("image_stale", "text_stale", "image_drift", "text_drift")),
    ("Age of keys, steps", ("text_queue_age", "text_queue_oldest")),
    ("Queue filled; false negatives in it", ("text_queue_fill", "false_negatives")),
    ("Gradient norm", ("gradient_norm",)),
    ("Learning rate", ("lr",)),
    ("Samples a second", ("samples_per_second",)),
    ("Share of time waiting for data; MFU", ("waiting_for_data", "mfu")),
    ("Memory, GiB", ("memory_gib",)),
)
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
_POINTS = 400
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 200, 58, 24

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1480px; padding: 0 20px; color: #1f2328;
       background: #fff; }
h1 { font-size: 20px; margin: 0 0 2px; } .about { color: #57606a; margin: 0 0 20px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 20px 28px; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; display: block; }
.key { color: #57606a; font-size: 12.5px; min-height: 1.45em; } .key b { font-weight: 600; color: #1f2328; }
.key i { display: inline-block; width: 14px; height: 3px; vertical-align: middle; margin: 0 4px 0 10px; }
text { font: 11px system-ui, sans-serif; fill: #57606a; }
:root { color-scheme: light dark; }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3; } .key b { color: #e6edf3; }
  .about, .key { color: #9198a1; } text { fill: #9198a1; } }
"""

Series = list[tuple[float, float]]


def write_curves(out: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Write OUT/curves.html from the lines of metrics.jsonl; atomically, so that it can be read at any time."""
    names = {name for line in lines for name in line}
    figures = []
    for title, wanted in _GROUPS:
        matching = [n for w in wanted for n in sorted(names) if n == w or (w.endswith("*") and n.startswith(w[:-1]))]
        curves = {name: _series(lines, name) for name in matching}
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            figures.append(_figure(title, curves))
    last = max((line["step"] for line in lines), default=0)
    name = html.escape(out.resolve().name)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}: curves</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f'<h1>{name}</h1><p class="about">to step {last:,}, from metrics.jsonl</p>'
        f"<main>{''.join(figures)}</main></html>"
    )
    with whole_file(out / CURVES) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / CURVES


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> Series:
    points = [(float(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), (int, float))]
    size = math.ceil(len(points) / _POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _figure(title: str, curves: Mapping[str, Series]) -> str:
    every = [point for points in curves.values() for point in points]
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    low = 0.0 if 0 <= low < 0.5 * high else low
    high = high if high > low else low + (abs(low) or 1.0)

    def at(x: float, y: float) -> tuple[float, float]:
        right = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - low) / (high - low)
        return _LEFT + right * (_WIDTH - _LEFT - 8), 8 + (1 - up) * (_HEIGHT - _BOTTOM - 8)

    parts = []
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        y = at(x_low, value)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8c959f" opacity=".35"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        parts.append(f'<text x="{at(x, low)[0]:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{x:,.0f}</text>')
    keys = []
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(points) == 1:
            x, y = at(*points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
        keys.append(f'<i style="background:{colour}"></i>{html.escape(name)} <b>{points[-1][1]:.4g}</b>')
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f'<div class="key">{"".join(keys)}</div></figure>'
    )
