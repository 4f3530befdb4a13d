"""`python -m tests.benchmarks.study.loop`: does the loop of model and data help? Its runs, and its page.

    OUT/packages/, OUT/features/    shared with the study (tests/benchmarks/study/runs.py)
    OUT/loop/seed0.json ...         one record per seed (tests/benchmarks/study/curation.py)
    OUT/loop/index.html, loop.json  the page, and its figures

What is there is not done again; a record of other packages or another VERSION is.

Limits: works in the root of a checkout, as `make study` does, which installs the weights.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.study import curation, features
from tests.benchmarks.study.curation import ARMS, Inputs, Outcome, record
from tests.benchmarks.study.drawings import STYLES, Drawings, raster
from tests.benchmarks.study.paired import difference, interval, share
from tests.benchmarks.study.runs import PLANS, WEIGHTS, Study, Workers, load_corpus, prepare, tarballs_of
from training.errors import TrainingError
from training.outputs.whole import whole_file

SEEDS = (0, 1, 2, 3, 4)

AUC_BAR, WAY_BAR = 0.9, 0.5
"""What the page holds the loop to: area under the curve, and share of the way from `all` to `oracle`."""

_TEMPLATE = Path(__file__).with_name("loop.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are not done, then make the page; an error is one line on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.study.loop", description="does the loop help?")
    parser.add_argument("--out", type=Path, default=Path("demo/study"), help="where all of it is kept")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="ImageNet weights of the backbone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds, 2 at least")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds: an interval needs 2 seeds at least")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("wenlan").setLevel(logging.INFO)
    try:
        study = Study(replace(PLANS["hour"], photos=0, scenes=0), options.out, options.weights)
        prepare(study, options.jobs)
        key = key_of(study)
        with Workers(options.jobs) as workers:
            for _ in workers.all(_work, [(study, key, seed) for seed in range(options.seeds)]):
                pass
        outcomes = [_do((study, key, seed)) for seed in range(options.seeds)]
        sys.stderr.write(f"wenlan study: the page is {write_page(study, outcomes)}\n")
    except TrainingError as e:
        sys.stderr.write(f"wenlan study: {e}\n")
        return 1
    return 0


def key_of(study: Study) -> str:
    """What a record depends on, beside the code of a VERSION."""
    tarballs = tarballs_of(study.out)
    made_of = [features.key_of(style, tarballs, study.weights) for style in STYLES]
    return hashlib.sha256(json.dumps([curation.VERSION, made_of]).encode()).hexdigest()[:16]


def _do(job: tuple[Study, str, int]) -> Outcome:
    study, key, seed = job
    known = curation.known(study.out / "loop", key, seed)
    if known is not None:
        return known
    inputs = Inputs.of(load_corpus(study.out, study.weights, study.plan.styles))
    return record(study.out / "loop", inputs, key, seed)


def _work(job: tuple[Study, str, int]) -> float:
    began = time.monotonic()
    _do(job)
    return time.monotonic() - began


def judged(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the figures say: means with intervals over the seeds, and whether each bar is reached."""
    by_arm: dict[str, dict[int, float]] = {a: {o.seed: o.recall[a]["mean"] for o in outcomes} for a in ARMS}
    rounds = range(len(outcomes[0].rounds))
    auc = [interval([o.rounds[r].auc for o in outcomes]) for r in rounds]
    gains = {a: difference(by_arm["loop"], by_arm[a]) for a in ARMS if a != "loop"}
    over_all, room = gains["all"], difference(by_arm["oracle"], by_arm["all"])
    assert over_all is not None, "every seed has every arm"
    assert room is not None, "every seed has every arm"
    seeds = sorted(by_arm["all"])
    gained, possible = ([by_arm[a][s] - by_arm["all"][s] for s in seeds] for a in ("loop", "oracle"))
    way = share(gained, possible)
    return {
        "seeds": len(outcomes),
        "auc": [asdict(own) for own in auc],
        "cosine_auc": [asdict(interval([o.rounds[r].cosine_auc for o in outcomes])) for r in rounds],
        "seen_auc": asdict(interval([o.seen for o in outcomes])),
        "wrong": fmean(o.wrong for o in outcomes),
        "kept_wrong": asdict(interval([o.kept_wrong for o in outcomes])),
        "recall": {a: asdict(interval(list(own.values()))) for a, own in by_arm.items()},
        "galleries": {a: {g: fmean(o.recall[a][g] for o in outcomes) for g in outcomes[0].recall[a]} for a in ARMS},
        "loop_minus": {a: asdict(own) for a, own in gains.items() if own is not None},
        "oracle_minus_all": asdict(room),
        "way": asdict(way),
        "bars": {
            "auc": auc[-1].mean >= AUC_BAR,
            "above_all": over_all.outcome == "above",
            "half_way": way.mean >= WAY_BAR,
        },
    }


def write_page(study: Study, outcomes: Sequence[Outcome]) -> Path:
    """Write loop.json and index.html; returns the latter's path."""
    import jinja2

    found = judged(outcomes)
    folder = study.out / "loop"
    with whole_file(folder / "loop.json") as new:
        new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["plus"] = lambda value: f"{100 * value:+.1f}"
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        found=found,
        first=outcomes[0],
        curation=curation,
        bars={"auc": AUC_BAR, "way": WAY_BAR},
        histogram=_histogram(outcomes[0].scores),
        forest=_forest(found["recall"]),
        examples=_pictured(study, outcomes[0].examples),
        per_seed=outcomes,
        arms=ARMS,
    )
    page = folder / "index.html"
    with whole_file(page) as new:
        new.write_text(html, encoding="utf-8")
    return page


def _histogram(scores: Mapping[str, Sequence[float]], width: int = 520, height: int = 170) -> str:
    """SVG: pairs by their place among all, right captions with the shuffled ones on top."""
    totals = [right + wrong for right, wrong in zip(scores["right"], scores["wrong"], strict=True)]
    step, top = width / len(totals), max(totals) or 1
    parts = []
    for at, (right, wrong) in enumerate(zip(scores["right"], scores["wrong"], strict=True)):
        tall, more = (height * n / top for n in (right, wrong))
        told = f"{at * 5} to {at * 5 + 5}%: {right:.0f} right, {wrong:.0f} shuffled"
        box = f'x="{at * step + 1:.1f}" width="{step - 2:.1f}"'
        parts.append(
            f'<g><title>{told}</title><rect class="s1" {box} y="{height - tall:.1f}" height="{tall:.1f}"/>'
            f'<rect class="s0" {box} y="{height - tall - more:.1f}" height="{more:.1f}"/></g>'
        )
    cut = width * (1 - curation.KEEP)
    parts.append(f'<line class="mark" x1="{cut:.1f}" x2="{cut:.1f}" y1="0" y2="{height}"/>')
    parts.append(
        f'<text x="0" y="{height + 16}">worst</text><text x="{width}" y="{height + 16}" text-anchor="end">best</text>'
    )
    label = "Pairs by their score, right and shuffled ones"
    return f'<svg viewBox="0 0 {width} {height + 22}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _forest(recall: Mapping[str, Mapping[str, float]], width: int = 520) -> str:
    """SVG: the mean R@1 of each arm and its interval."""
    top = max(own["high"] for own in recall.values())
    low = min(own["low"] for own in recall.values())
    span = (top - low) or 1.0

    def x(value: float) -> float:
        return 90 + (width - 150) * (value - low) / span

    parts = []
    for row, (name, own) in enumerate(recall.items()):
        y = 22 + 34 * row
        told = f"{name}: {100 * own['mean']:.1f} ({100 * own['low']:.1f} to {100 * own['high']:.1f})"
        parts.append(
            f'<g class="arm {name}"><title>{told}</title><text x="0" y="{y + 4}">{name}</text>'
            f'<line x1="{x(own["low"]):.1f}" x2="{x(own["high"]):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{x(own["mean"]):.1f}" cy="{y}" r="5"/>'
            f'<text x="{width}" y="{y + 4}" text-anchor="end">{100 * own["mean"]:.1f}</text></g>'
        )
    height = 22 + 34 * len(recall)
    label = "Mean R@1 of each arm with its 95% interval"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _pictured(study: Study, examples: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The examples, each with its drawing as a data: URI."""
    drawings = Drawings(tarballs_of(study.out))
    style_of = {style.name: style for style in STYLES}
    return {
        kind: [
            {**row, "picture": "data:image/png;base64," + base64.b64encode(png).decode()}
            for row in rows
            if (
                png := raster(
                    drawings.svg(style_of[row["style"]], drawings.codes(style_of[row["style"]])[row["code"]]), 64
                )
            )
        ]
        for kind, rows in examples.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
