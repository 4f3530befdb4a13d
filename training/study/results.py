"""What the finished runs say: figures per arm at its chosen length, and which claims hold.

The length is chosen for each arm on the dev style: of the points that lie within the budget the one with the highest
mean over its seeds. The budget is N samples, or as many as cost what N samples of the base arm do. R@1 is the mean of
both directions.

A claim compares two arms on one gallery within one budget. It holds if the 95% interval of the difference, paired by
seed, lies above zero; it is refuted if it lies below; else the study does not show it. Nothing else words the page.

Limits: claims are tested one by one, without a correction for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from training.study.arms import Arm
from training.study.paired import Interval, difference, interval
from training.study.trial import SMALL_GALLERY, Point, Trial

Budget = Literal["samples", "compute"]
State = Literal["holds", "refuted", "not shown", "no runs"]

_STATES: Mapping[str, State] = {"above": "holds", "below": "refuted", "open": "not shown"}


def r1(point: Point, gallery: str) -> float:
    """R@1 of a gallery, both ways together. Raises KeyError where it was not measured."""
    return (point.i2t[gallery] + point.t2i[gallery]) / 2


@dataclass(frozen=True)
class Figures:
    """An arm with its finished runs. Methods return R@1 in [0, 1], by seed."""

    arm: Arm
    trials: tuple[Trial, ...]

    def chosen(self, budget: Budget) -> int:
        """Samples of the point that is best on the dev style within a budget. Raises ValueError without runs."""
        first = self.trials[0]
        most = first.samples * (first.ratio if budget == "compute" else 1.0) + self.arm.batch
        dev = "dev" if "dev" in first.points[0].i2t else "dev_small"
        lengths = [p.samples for p in first.points if p.samples <= most]
        return max(lengths, key=lambda n: fmean(r1(_at(trial, n), dev) for trial in self.trials))

    def by_seed(self, gallery: str, budget: Budget = "samples") -> dict[int, float]:
        """R@1 at the chosen length; empty where the gallery was not measured."""
        if not self.trials or gallery not in self.trials[0].points[0].i2t:
            return {}
        length = self.chosen(budget)
        return {trial.seed: r1(_at(trial, length), gallery) for trial in self.trials}

    def mean(self, gallery: str, budget: Budget = "samples") -> Interval | None:
        """Mean over the seeds with its interval."""
        values = list(self.by_seed(gallery, budget).values())
        return interval(values) if values else None

    def curve(self, gallery: str) -> list[tuple[int, float, float, float]]:
        """(samples, mean, lowest, highest over the seeds) at each point."""
        if not self.trials or gallery not in self.trials[0].points[0].i2t:
            return []
        rows = []
        for point in self.trials[0].points:
            values = [r1(_at(trial, point.samples), gallery) for trial in self.trials]
            rows.append((point.samples, fmean(values), min(values), max(values)))
        return rows

    @property
    def step_ms(self) -> float:
        """Mean processor milliseconds per step."""
        return fmean(trial.step_ms for trial in self.trials)

    @property
    def search_seconds(self) -> float:
        """Mean processor seconds per query over a small gallery."""
        return fmean(trial.search["seconds"] for trial in self.trials)

    def seconds(self, budget: Budget) -> float:
        """Mean processor seconds of training to the chosen length."""
        length = self.chosen(budget)
        return fmean(_at(trial, length).seconds for trial in self.trials)


def _at(trial: Trial, samples: int) -> Point:
    return next(point for point in trial.points if point.samples == samples)


@dataclass(frozen=True)
class Claim:
    """`better` is said to beat `other`; `says` is the sentence, without its verdict."""

    says: str
    better: str
    other: str
    gallery: str = "style"
    budget: Budget = "samples"


CLAIMS = (
    Claim("The queue beats in-batch CLIP at batch 16 on unseen styles, equal samples", "moco", "clip"),
    Claim(
        "The queue beats in-batch CLIP at batch 16 on unseen styles, equal compute", "moco", "clip", "style", "compute"
    ),
    Claim("The queue beats in-batch CLIP at batch 8 on unseen styles, equal samples", "moco-b8", "clip-b8"),
    Claim(
        "The queue beats in-batch CLIP at batch 8 on unseen styles, equal compute",
        "moco-b8",
        "clip-b8",
        "style",
        "compute",
    ),
    Claim("The queue beats in-batch CLIP at batch 64 on unseen styles, equal samples", "moco-b64", "clip-b64"),
    Claim("The queue beats in-batch CLIP at batch 16 on unseen names, equal samples", "moco", "clip", "names"),
    Claim(
        "The queue beats in-batch CLIP at batch 16 on unseen names, equal compute", "moco", "clip", "names", "compute"
    ),
    Claim("A queue of 1,024 beats the key towers with in-batch keys alone", "moco", "moco-k0"),
    Claim("A queue of 4,096 beats one of 1,024", "moco-k4096", "moco"),
    Claim("Momentum .99 beats no momentum", "moco", "moco-m0"),
    Claim("Momentum .999 beats .99", "moco-m0.999", "moco"),
    Claim("The queue beats the sigmoid loss", "moco", "siglip"),
    Claim("Soft targets and in-batch keys (albef) beat the plain queue", "albef", "moco"),
    Claim("The queue with batch 16 beats in-batch CLIP with batch 64", "moco", "clip-b64"),
    Claim(
        f"Two towers with the queue beat the single tower ({SMALL_GALLERY} candidates)",
        "moco",
        "single-tower",
        "style_small",
    ),
    Claim("Regions beat the whole picture alone, with the queue", "moco", "moco-whole"),
    Claim("Regions beat the whole picture alone, in-batch CLIP", "clip", "clip-whole"),
)
"""The first two are the paper's claim as the study puts it."""

HEADLINE = CLAIMS[:2]


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs say of it. `ours` and `theirs` are means of R@1; None without runs."""

    claim: Claim
    state: State
    gain: Interval | None
    ours: float | None
    theirs: float | None


def judge(claim: Claim, figures: Mapping[str, Figures]) -> Verdict:
    """The verdict that the figures imply."""
    if claim.better not in figures or claim.other not in figures:
        return Verdict(claim, "no runs", None, None, None)
    ours, theirs = (figures[name].by_seed(claim.gallery, claim.budget) for name in (claim.better, claim.other))
    gain = difference(ours, theirs)
    if gain is None:
        return Verdict(claim, "no runs", None, None, None)
    seeds = ours.keys() & theirs.keys()
    means = (fmean(values[seed] for seed in seeds) for values in (ours, theirs))
    return Verdict(claim, _STATES[gain.outcome], gain, *means)


def statement(verdicts: Sequence[Verdict]) -> str:
    """The paper's claim in one paragraph: what holds of it here, computed from the verdicts of HEADLINE."""
    samples, compute = verdicts
    if samples.gain is None or compute.gain is None:
        return "There are no runs yet of both the queue and in-batch CLIP."
    states = (samples.state, compute.state)
    if states == ("holds", "holds"):
        head = "The paper's claim holds here: the queue beats in-batch CLIP on unseen styles at batch 16"
    elif states == ("refuted", "refuted"):
        head = "The paper's claim does not hold here: in-batch CLIP beats the queue on unseen styles at batch 16"
    elif "holds" in states and "refuted" not in states:
        budget = "equal samples" if states[0] == "holds" else "equal compute"
        other = "equal compute" if states[0] == "holds" else "equal samples"
        head = f"Half of the paper's claim holds here: the queue beats in-batch CLIP at {budget}, at {other} it is open"
    elif "refuted" in states:
        budget = "equal samples" if states[0] == "refuted" else "equal compute"
        head = f"The paper's claim does not hold here: at {budget} in-batch CLIP beats the queue on unseen styles"
    else:
        head = "The study does not show that the queue beats in-batch CLIP on unseen styles: the intervals hold zero"
    return f"{head}. {_words('Equal samples', samples)} {_words('Equal compute', compute)}"


def _words(budget: str, verdict: Verdict) -> str:
    gain, ours, theirs = verdict.gain, verdict.ours, verdict.theirs
    assert gain is not None, "checked by the caller"
    bounds = "one seed, no interval"
    if gain.n > 1:
        bounds = f"{gain.n} seeds, 95% {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    against = f"R@1 {100 * (ours or 0):.1f} against {100 * (theirs or 0):.1f}"
    return f"{budget}: {against}, {100 * gain.mean:+.1f} ({bounds})."


def gather(arms: Sequence[Arm], trials: Callable[[Arm], list[Trial]]) -> dict[str, Figures]:
    """Figures of the arms that have runs, by name."""
    found = {arm.name: Figures(arm, tuple(trials(arm))) for arm in arms}
    return {name: figures for name, figures in found.items() if figures.trials}
