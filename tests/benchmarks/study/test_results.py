"""Verdicts are what the figures imply, either way; lengths are chosen on the dev style alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.benchmarks.study.arms import ARMS, Setting, chosen
from tests.benchmarks.study.results import BUDGETS, HEADLINES, Claim, Figures, judge, statement
from tests.benchmarks.study.trial import Point, Trial, packed


def trial(arm: str, seed: int, style: Sequence[float], dev: Sequence[float] | None = None, ratio: float = 1.0) -> Trial:
    """A trial with a point for each figure of the unseen styles; N is 3,000 samples."""
    dev = style if dev is None else dev
    points = [
        Point(
            1000 * (i + 1),
            1.0 * (i + 1),
            0.5,
            {"style": s, "dev": d, "dev_names": d, "style_small": s},
            {"style": s, "dev": d, "dev_names": d, "style_small": s},
            {},
        )
        for i, (s, d) in enumerate(zip(style, dev, strict=True))
    ]
    return Trial(arm, seed, Setting(), 3000, ratio, 9.0, tuple(points), {"pairs": 64.0, "seconds": 0.001})


def figures(name: str, *trials: Trial) -> Figures:
    return Figures(chosen([name], ARMS)[0], tuple(trials))


def both(queue: Sequence[float], clip: Sequence[float], later: float = 0.0) -> dict[str, Figures]:
    """Seeds of both arms, the same at every point; in-batch CLIP gains `later` where equal compute lets it go on."""
    return {
        "moco": figures("moco", *(trial("moco", i, [v] * 3) for i, v in enumerate(queue))),
        "clip": figures("clip", *(trial("clip", i, [v] * 3 + [v + later], ratio=1.34) for i, v in enumerate(clip))),
    }


def said(found: dict[str, Figures]) -> str:
    return statement(16, [judge(claim, found) for claim in HEADLINES[16]])[0]


def test_the_claim_holds_where_the_queue_is_better_by_more_than_seeds_differ():
    text = said(both([0.20, 0.22, 0.21], [0.10, 0.11, 0.10]))
    assert text.startswith("The paper's claim holds here")
    assert "Equal samples: R@1 21.0 against 10.3, +10.7 (3 seeds" in text


def test_the_claim_does_not_hold_where_clip_is_better():
    assert said(both([0.10, 0.11, 0.10], [0.20, 0.22, 0.21])).startswith("The paper's claim does not hold here")


def test_equal_compute_counts_the_steps_that_clip_has_left():
    found = both([0.20, 0.22, 0.21], [0.10, 0.11, 0.10], later=0.3)
    samples, compute = (judge(claim, found) for claim in HEADLINES[16])
    assert (samples.state, compute.state) == ("holds", "refuted")
    assert said(found).startswith(
        "The paper's claim does not hold here: at equal compute in-batch CLIP beats the queue"
    )
    half = both([0.20, 0.22, 0.21], [0.10, 0.11, 0.10], later=0.11)
    assert judge(HEADLINES[16][1], half).state == "not shown"
    assert said(half).startswith("Half of the paper's claim holds here: the queue beats in-batch CLIP on unseen styles")
    assert "at equal samples, at equal compute it is open" in said(half)


def test_the_length_is_the_one_that_is_best_on_dev_by_the_mean_over_seeds():
    arm = figures(
        "moco",
        trial("moco", 0, [0.1, 0.5, 0.9], dev=[0.1, 0.6, 0.2]),
        trial("moco", 1, [0.2, 0.4, 0.9], dev=[0.1, 0.3, 0.5]),
    )
    assert arm.chosen("samples") == 2000
    assert arm.by_seed("style") == {0: 0.5, 1: 0.4}
    assert [row[0] for row in arm.curve("style")] == [1000, 2000, 3000]


def test_arms_of_unlike_lengths_are_compared_at_the_shorter_one():
    longer = figures("moco", *(trial("moco", i, [0.1, 0.2, 0.9 + i / 100]) for i in range(3)))
    shorter = [replace(trial("siglip", i, [0.1, 0.15 + i / 100, 0.0]), samples=2000) for i in range(3)]
    shorter = [replace(t, points=t.points[:2]) for t in shorter]
    found = {"moco": longer, "siglip": figures("siglip", *shorter)}
    verdict = judge(Claim(("x", "x"), "moco", "siglip"), found)
    assert (verdict.ours, verdict.theirs) == (pytest.approx(0.2), pytest.approx(0.16))
    assert longer.by_seed("style")[0] == 0.9, "at its own length"


def test_a_gain_of_all_seeds_on_one_name_alone_is_not_shown():
    """Seeds agree, so Student's interval is narrow; the bootstrap over families sees that one of four names gains."""
    families = {"style": [[0, 1, 2, 3]]}

    def arm(name, found):
        trials = [trial(name, seed, [sum(found) / 4 + seed / 1000]) for seed in range(3)]
        text = packed(np.array([found, found], bool))
        pointed = [replace(t, points=tuple(replace(p, hits={"style": [text]}) for p in t.points)) for t in trials]
        return figures(name, *(replace(t, samples=1000) for t in pointed))

    found = {"moco": arm("moco", [1, 1, 0, 0]), "clip": arm("clip", [0, 1, 0, 0])}
    claim = Claim(("x", "x"), "moco", "clip")
    assert judge(claim, found).state == "holds"
    wide = judge(claim, found, families)
    assert wide.state == "not shown"
    assert wide.gain is not None
    assert wide.gain.mean == pytest.approx(0.25)
    assert wide.gain.high >= 0.5
    fourth = replace(found["moco"].trials[0], seed=3)  # kept without its hits, and of no arm beside
    bare = replace(fourth, points=tuple(replace(p, hits={}) for p in fourth.points))
    more = replace(found["moco"], trials=(*found["moco"].trials, bare))
    assert judge(claim, {**found, "moco": more}, families) == wide


def test_equal_steps_of_a_larger_batch_are_as_many_samples_more():
    large = figures("clip-b64", *(replace(trial("clip-b64", s, [0.1, 0.2, 0.3, 0.4]), samples=1000) for s in range(2)))
    assert [large.chosen(budget) for budget in BUDGETS] == [1000, 1000, 4000]
