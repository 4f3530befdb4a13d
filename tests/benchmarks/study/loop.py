"""`python -m tests.benchmarks.study.loop`: does the loop of model and data help? Its runs and figures.

    OUT/packages/, OUT/features/    shared with the study (runs.py)
    OUT/loop/seed0.json ...         one record per seed (curation.py)
    OUT/loop/loop.json              means with their intervals, and whether each bar is reached; also printed

What is there is not done again; a record of other packages or another VERSION is.

Limits: works in the root of a checkout, as `make study` does, which installs the weights.
"""

from __future__ import annotations

import argparse
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
from tests.benchmarks.study.drawings import STYLES
from tests.benchmarks.study.paired import difference, interval, share
from tests.benchmarks.study.runs import PLANS, WEIGHTS, Study, Workers, load_corpus, prepare, tarballs_of
from training.errors import TrainingError

SEEDS = (0, 1, 2, 3, 4)

AUC_BAR, WAY_BAR = 0.9, 0.5
"""Bars: area under the curve, and share of the way from `all` to `oracle`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are not done, then say what they say; an error is one line on stderr and status 1."""
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
        found = judged([_do((study, key, seed)) for seed in range(options.seeds)])
        (study.out / "loop" / "loop.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        sys.stderr.write("".join(f"{line}\n" for line in lines(found)))
    except TrainingError as e:
        sys.stderr.write(f"wenlan study: {e}\n")
        return 1
    return 0


def key_of(study: Study) -> str:
    """Dependencies of a record, beside the code of a VERSION."""
    tarballs = tarballs_of(study.out)
    made_of = [features.key_of(style, tarballs, study.weights) for style in STYLES]
    return hashlib.sha256(json.dumps([curation.VERSION, made_of]).encode()).hexdigest()[:16]


def _do(job: tuple[Study, str, int]) -> Outcome:
    study, key, seed = job
    known = curation.known(study.out / "loop", key, seed)
    if known is not None:
        return known
    inputs = Inputs.of(load_corpus(study.out, study.weights, study.plan.styles, False))
    return record(study.out / "loop", inputs, key, seed)


def _work(job: tuple[Study, str, int]) -> float:
    began = time.monotonic()
    _do(job)
    return time.monotonic() - began


def judged(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means with intervals over the seeds, and whether each bar is reached."""
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


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures in words, a line each."""
    arms = [f"R@1 of {arm}: {_percent(own)}" for arm, own in found["recall"].items()]
    more = {"loop over all": found["loop_minus"]["all"], "way from all to oracle": found["way"]}
    more["shuffled pairs found, area under the curve"] = found["auc"][-1]
    bars = [f"{name}: {'reached' if holds else 'not reached'}" for name, holds in found["bars"].items()]
    return [*arms, *(f"{name}: {_percent(own)}" for name, own in more.items()), *bars]


def _percent(own: Mapping[str, float]) -> str:
    return f"{100 * own['mean']:.1f}% ({100 * own['low']:.1f} to {100 * own['high']:.1f})"


if __name__ == "__main__":
    raise SystemExit(main())
