"""The study's page: one HTML file with all it needs in it, made of the records that are there at any time.

It states what the figures imply (training/study/results.py), shows a figure for every run, and makes no request.

Limits: English. Drawings are shown under the licences of their packages, which the page names.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InputError
from training.study import regions
from training.study.arms import Arm
from training.study.charts import Series, curves, forest
from training.study.drawings import NAMES, Part, raster, read_emoji
from training.study.results import CLAIMS, HEADLINE, Figures, gather, judge, r1, statement
from training.study.runs import Study, drawings_of, load_corpus, tarballs_of
from training.study.trial import SMALL_GALLERY

_TEMPLATE = Path(__file__).with_name("page.html")

_SHOWN = ("1f43c", "1f681", "1f349", "1f9d1-200d-1f680", "1f984", "1f9ef")
"""Emoji in the strip of examples, as far as they are drawn."""

_CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Objective", "batch 16", ("moco", "clip", "siglip", "albef", "moco-k0")),
    ("Batch", "queue against in-batch CLIP", ("moco-b8", "moco", "moco-b64", "clip-b8", "clip", "clip-b64")),
    ("Queue", "momentum .99, batch 16", ("moco-k0", "moco-k256", "moco", "moco-k4096")),
    ("Momentum", "queue 1,024, batch 16", ("moco-m0", "moco-m0.9", "moco", "moco-m0.999")),
)

_COLOURS = {"moco": 0, "clip": 1}

_LABELS = {
    "moco": "queue (moco)",
    "clip": "in-batch CLIP",
    "siglip": "SigLIP",
    "albef": "soft targets (albef)",
    "moco-whole": "queue, whole picture",
    "clip-whole": "CLIP, whole picture",
    "shuffled": "control: shuffled pairs",
    "single-tower": "single tower (matching)",
    "moco-cnn": "queue, CNN from scratch",
    "clip-cnn": "CLIP, CNN from scratch",
}


def label(arm: Arm) -> str:
    """An arm's name in words."""
    if arm.name in _LABELS:
        return _LABELS[arm.name]
    kind = "queue" if arm.objective == "moco" else "CLIP"
    differs = {"batch": f"B={arm.batch}", "queue": f"K={arm.queue:,}", "momentum": f"m={arm.momentum:g}"}
    if arm.factor in differs:
        note = ", in-batch keys only" if arm.factor == "queue" and not arm.queue else ""
        return f"{kind}, {differs[arm.factor]}{note}"
    return f"{kind}, B={arm.batch}, K={arm.queue:,}, m={arm.momentum:g}"


@dataclass(frozen=True)
class _Row:
    """One arm in the table of arms; figures as text, empty where there are none."""

    name: str
    cells: tuple[str, ...]
    base: bool


def write_page(study: Study) -> Path:
    """Make the page of a study from its records; returns its path. Raises InputError if its packages are not there."""
    import jinja2

    figures = gather(study.plan.arms, study.trials)
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    path = study.folder / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".index.html.{os.getpid()}")
    new.write_text(template.render(**_content(study, figures)), encoding="utf-8")
    new.replace(path)
    return path


def _content(study: Study, figures: Mapping[str, Figures]) -> dict[str, Any]:
    import markupsafe

    verdicts = [judge(claim, figures) for claim in CLAIMS]
    judged = [v for v in verdicts if v.gain is not None]
    # The axis is that of the large galleries: what reaches further is cut, with an arrow.
    wide = [abs(v.gain.mean) for v in judged if v.gain is not None and not v.claim.gallery.endswith("_small")]
    most = max(wide, default=0.01) * 1.6 + 0.005
    corpus = load_corpus(study.out, study.weights, study.plan.styles)
    galleries = [(g.name, len(g.pictures), len(g.emoji_M)) for g in corpus.galleries]
    chance = {name: 1 / names for name, _, names in galleries}
    charts = []
    for title, note, names in _CHARTS:
        shown = [n for n in names if n in figures]
        # The two bases keep their colours from chart to chart.
        free = iter(range(2, 8))
        colours = [_COLOURS[n] if n in _COLOURS else next(free) for n in shown]
        lines = [
            Series(label(figures[n].arm), c, figures[n].curve("style")) for n, c in zip(shown, colours, strict=True)
        ]
        if len(lines) > 1 and set(shown) - set(_COLOURS):
            charts.append(
                (title, note, markupsafe.Markup(curves(lines, study.plan.samples, chance.get("style"))), lines)
            )
    if "moco" in figures and "clip" in figures:
        pairs = [(n, g) for n in ("moco", "clip") for g in ("style", "train")]
        words = {"style": "unseen styles", "train": "a train style"}
        lines = [
            Series(f"{label(figures[n].arm)}, {words[g]}", c, figures[n].curve(g)) for c, (n, g) in enumerate(pairs)
        ]
        svg = curves(lines, study.plan.samples)
        charts.append(("Seen and unseen", "how much is memory", markupsafe.Markup(svg), lines))
    planned = sum(len(study.seeds(arm)) for arm in study.plan.arms)
    return {
        "statement": statement([judge(claim, figures) for claim in HEADLINE]),
        "verdicts": [(v, markupsafe.Markup(forest(v.gain, most)) if v.gain and v.gain.n > 1 else "") for v in judged],
        "charts": charts,
        "rows": [_row(f) for f in figures.values()],
        "runs": [_run(f, trial) for f in figures.values() for trial in f.trials],
        "search": _search(figures, galleries),
        "strip": _strip(study),
        "styles": study.plan.styles,
        "galleries": galleries,
        "training": len(corpus.select("train", "train")),
        "done": sum(len(f.trials) for f in figures.values()),
        "planned": planned,
        "plan": study.plan,
        "packages": sorted(path.name for path in tarballs_of(study.out).values()),
        "small": SMALL_GALLERY,
        "regions": regions.content(study.sources(), study.region_jobs()),
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _row(f: Figures) -> _Row:
    def cell(gallery: str, budget: Any = "samples") -> str:
        found = f.mean(gallery, budget)
        if found is None:
            return "–"
        return f"{100 * found.mean:.1f}" + (f" ± {100 * (found.high - found.mean):.1f}" if found.n > 1 else "")

    first = f.trials[0]
    return _Row(
        label(f.arm),
        (
            cell("style"),
            cell("style", "compute"),
            cell("names"),
            cell("train"),
            cell("style_small"),
            f"{first.temperature:g}" if f.arm.tempered else "–",
            f"{f.chosen('samples'):,}",
            f"{f.chosen('compute'):,}",
            f"{1 / first.ratio:.2f}",
            f"{f.step_ms:.1f}",
            f"{f.seconds('samples'):.0f}",
            str(len(f.trials)),
        ),
        not f.arm.base,
    )


def _run(f: Figures, trial: Any) -> tuple[str, ...]:
    """One line per run: R@1 by gallery at the arm's chosen length, and at the end."""
    length = f.chosen("samples")
    point = next(p for p in trial.points if p.samples == length)
    shown = [
        _percent(r1(point, g)) if g in point.i2t else "–" for g in ("style", "names", "train", "dev", "style_small")
    ]
    directions = [_percent(d.get("style", d.get("style_small"))) for d in (point.i2t, point.t2i)]
    return (label(f.arm), str(trial.seed), *shown, *directions, f"{point.loss:.3f}", f"{trial.points[-1].seconds:.0f}")


def _search(figures: Mapping[str, Figures], galleries: Sequence[tuple[str, int, int]]) -> dict[str, str] | None:
    """What a query costs with two towers and with the single one; None without both."""
    if "moco" not in figures or "single-tower" not in figures:
        return None
    two, one = figures["moco"], figures["single-tower"]
    pairs = one.trials[0].search["pairs"]
    candidates = max(pictures for name, pictures, _ in galleries if name == "style")
    return {
        "two": f"{1000 * two.search_seconds:.1f}",
        "one": f"{1000 * one.search_seconds:.1f}",
        "pairs": f"{pairs:.0f}",
        "factor": f"{one.search_seconds / max(two.search_seconds, 1e-9):,.0f}",
        "candidates": f"{candidates:,}",
        "gallery": f"{one.search_seconds * candidates / pairs:.1f}",
        "million": f"{one.search_seconds * 1e6 / pairs / 60:,.0f}",
    }


def _strip(study: Study) -> list[tuple[str, str, list[tuple[str, Part, str]]]]:
    """A few emoji in all styles: (name, keywords, [(style, part, data URI)])."""
    drawings, rows = drawings_of(study.out), []
    icons = {style: drawings.codes(style) for style in study.plan.styles}
    known = {emoji.code: emoji for emoji in read_emoji(tarballs_of(study.out)[NAMES])}
    for code in _SHOWN:
        if code not in known:
            continue
        pictures = []
        for style in study.plan.styles:
            if code in icons[style]:
                try:
                    png = raster(drawings.svg(style, icons[style][code]), 72)
                except InputError:
                    continue
                pictures.append((style.name, style.part, "data:image/png;base64," + base64.b64encode(png).decode()))
        rows.append((known[code].name, "、".join(known[code].keywords[:5]), pictures))
    return rows
