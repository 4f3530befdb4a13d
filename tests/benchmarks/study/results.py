"""Results of the finished runs: figures per arm at its chosen length, and which claims hold.

The length is chosen for each arm on the dev style: of the points that lie within the budget the one with the highest
mean over its seeds. The budget is N samples, or as many as cost what N samples of the base arm do; N is the arm's own,
and of two arms that are compared the smaller one. R@1 is the mean of both directions.

A claim compares two arms on one gallery within one budget. It holds if the 95% interval of the difference, paired by
seed, lies above zero; it is refuted if it lies below; else the study does not show it. Nothing else words the page.

Limits: claims are tested one by one, without a correction for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from tests.benchmarks.study.arms import Arm
from tests.benchmarks.study.paired import Interval, difference, interval
from tests.benchmarks.study.trial import SMALL_GALLERY, Point, Trial

Budget = Literal["samples", "compute"]
State = Literal["holds", "refuted", "not shown", "no runs"]

_STATES: Mapping[str, State] = {"above": "holds", "below": "refuted", "open": "not shown"}


def r1(point: Point, gallery: str) -> float:
    """R@1 of a gallery, both ways together. Raises KeyError where it was not measured."""
    return (point.i2t[gallery] + point.t2i[gallery]) / 2


@dataclass(frozen=True)
class Figures:
    """An arm with its finished runs. Methods return R@1 in [0, 1], by seed; `samples`: N, if not the arm's own."""

    arm: Arm
    trials: tuple[Trial, ...]

    @property
    def samples(self) -> int:
        """The arm's own N."""
        return self.trials[0].samples

    def chosen(self, budget: Budget, samples: int = 0) -> int:
        """Samples of the point that is best on the dev style within a budget. Raises ValueError without runs."""
        first = self.trials[0]
        most = (samples or first.samples) * (first.ratio if budget == "compute" else 1.0) + self.arm.batch
        dev = "dev" if "dev" in first.points[0].i2t else "dev_small"
        lengths = [p.samples for p in first.points if p.samples <= most]
        return max(lengths, key=lambda n: fmean(r1(_at(trial, n), dev) for trial in self.trials))

    def by_seed(self, gallery: str, budget: Budget = "samples", samples: int = 0) -> dict[int, float]:
        """R@1 at the chosen length; empty where the gallery was not measured."""
        if not self.trials or gallery not in self.trials[0].points[0].i2t:
            return {}
        length = self.chosen(budget, samples)
        return {trial.seed: r1(_at(trial, length), gallery) for trial in self.trials}

    def mean(self, gallery: str, budget: Budget = "samples", samples: int = 0) -> Interval | None:
        """Mean over the seeds with its interval."""
        values = list(self.by_seed(gallery, budget, samples).values())
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

    def seconds(self, budget: Budget, samples: int = 0) -> float:
        """Mean processor seconds of training to the chosen length."""
        length = self.chosen(budget, samples)
        return fmean(_at(trial, length).seconds for trial in self.trials)


def _at(trial: Trial, samples: int) -> Point:
    return next(point for point in trial.points if point.samples == samples)


Words = tuple[str, str]
"""In English and in Chinese."""


@dataclass(frozen=True)
class Claim:
    """`better` is said to beat `other`; `says` is the sentence, without its verdict."""

    says: Words
    better: str
    other: str
    gallery: str = "style"
    budget: Budget = "samples"


def _queue_beats_clip(batch: int, gallery: str, budget: Budget) -> Claim:
    where = {"style": ("unseen styles", "没见过的画风"), "names": ("unseen names", "没见过的名称")}[gallery]
    within = {"samples": ("equal samples", "样本数相等"), "compute": ("equal compute", "计算量相等")}[budget]
    arm = "" if batch == 16 else f"-b{batch}"
    says = (
        f"The queue beats in-batch CLIP at batch {batch} on {where[0]}, {within[0]}",
        f"批大小 {batch}，{where[1]}，{within[1]}：队列优于批内 CLIP",
    )
    return Claim(says, f"moco{arm}", f"clip{arm}", gallery, budget)


CLAIMS = (
    _queue_beats_clip(16, "style", "samples"),
    _queue_beats_clip(16, "style", "compute"),
    _queue_beats_clip(8, "style", "samples"),
    _queue_beats_clip(8, "style", "compute"),
    _queue_beats_clip(32, "style", "samples"),
    _queue_beats_clip(64, "style", "samples"),
    _queue_beats_clip(16, "names", "samples"),
    _queue_beats_clip(16, "names", "compute"),
    Claim(
        ("A queue of 1,024 beats the key towers with in-batch keys alone", "1,024 的队列优于只用批内键的动量塔"),
        "moco",
        "moco-k0",
    ),
    Claim(("A queue of 4,096 beats one of 1,024", "4,096 的队列优于 1,024 的队列"), "moco-k4096", "moco"),
    Claim(("Momentum .99 beats no momentum", "动量 .99 优于没有动量"), "moco", "moco-m0"),
    Claim(("Momentum .999 beats .99", "动量 .999 优于 .99"), "moco-m0.999", "moco"),
    Claim(("The queue beats the sigmoid loss", "队列优于 sigmoid 损失"), "moco", "siglip"),
    Claim(
        ("Soft targets and in-batch keys (albef) beat the plain queue", "软目标加批内键（albef）优于普通队列"),
        "albef",
        "moco",
    ),
    Claim(
        ("The queue with batch 16 beats in-batch CLIP with batch 64", "批大小 16 的队列优于批大小 64 的批内 CLIP"),
        "moco",
        "clip-b64",
    ),
    Claim(
        (
            f"Two towers with the queue beat the single tower ({SMALL_GALLERY} candidates)",
            f"双塔加队列优于单塔（{SMALL_GALLERY} 个候选）",
        ),
        "moco",
        "single-tower",
        "style_small",
    ),
    Claim(("Regions beat the whole picture alone, with the queue", "用队列时，区域优于整图"), "moco", "moco-whole"),
    Claim(
        ("Regions beat the whole picture alone, in-batch CLIP", "用批内 CLIP 时，区域优于整图"), "clip", "clip-whole"
    ),
)
"""The first two are the paper's claim as the study puts it, and the next two the same at a smaller batch."""

HEADLINES = {16: CLAIMS[:2], 8: CLAIMS[2:4]}
"""The claims at equal samples and at equal compute, by batch."""


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
    sides = figures[claim.better], figures[claim.other]
    samples = min(side.samples for side in sides)
    ours, theirs = (side.by_seed(claim.gallery, claim.budget, samples) for side in sides)
    gain = difference(ours, theirs)
    if gain is None:
        return Verdict(claim, "no runs", None, None, None)
    seeds = ours.keys() & theirs.keys()
    means = (fmean(values[seed] for seed in seeds) for values in (ours, theirs))
    return Verdict(claim, _STATES[gain.outcome], gain, *means)


def statement(batch: int, verdicts: Sequence[Verdict]) -> Words:
    """The paper's claim at a batch in one paragraph: what holds of it here, computed from the verdicts of HEADLINES."""
    samples, compute = verdicts
    if samples.gain is None or compute.gain is None:
        return (
            f"There are no runs yet of both the queue and in-batch CLIP at batch {batch}.",
            f"批大小为 {batch} 时，队列和批内 CLIP 还没有都跑过。",
        )
    head = _head(batch, samples.state, compute.state)
    return (
        f"{head[0]}. Equal samples: {_words(samples)[0]} Equal compute: {_words(compute)[0]}",
        f"{head[1]}。样本数相等：{_words(samples)[1]}计算量相等：{_words(compute)[1]}",
    )


def _head(batch: int, samples: State, compute: State) -> Words:
    """The sentence before the figures."""
    states, budgets = (samples, compute), (("equal samples", "样本数相等"), ("equal compute", "计算量相等"))
    where = (f"on unseen styles at batch {batch}", f"批大小为 {batch} 时，在没见过的画风上，")
    if states == ("holds", "holds"):
        return (
            f"The paper's claim holds here: the queue beats in-batch CLIP {where[0]}",
            f"论文的说法在这里成立：{where[1]}队列优于批内 CLIP",
        )
    if states == ("refuted", "refuted"):
        return (
            f"The paper's claim does not hold here: in-batch CLIP beats the queue {where[0]}",
            f"论文的说法在这里不成立：{where[1]}批内 CLIP 优于队列",
        )
    if "refuted" in states:
        at = budgets[states.index("refuted")]
        return (
            f"The paper's claim does not hold here: at {at[0]} in-batch CLIP beats the queue {where[0]}",
            f"论文的说法在这里不成立：{where[1]}{at[1]}时批内 CLIP 优于队列",
        )
    if "holds" in states:
        at, other = budgets if states[0] == "holds" else budgets[::-1]
        return (
            f"Half of the paper's claim holds here: the queue beats in-batch CLIP {where[0]} at {at[0]}, at {other[0]} "
            "it is open",
            f"论文的说法在这里成立一半：{where[1]}{at[1]}时队列优于批内 CLIP，{other[1]}时没有定论",
        )
    return (
        f"The study does not show that the queue beats in-batch CLIP {where[0]}: the intervals hold zero",
        f"本研究没有显示队列优于批内 CLIP：{where[1]}差值的区间包含零",
    )


def _words(verdict: Verdict) -> Words:
    gain, ours, theirs = verdict.gain, verdict.ours, verdict.theirs
    assert gain is not None, "checked by the caller"
    bounds = ("one seed, no interval", "一个种子，没有区间")
    if gain.n > 1:
        ends = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        bounds = (f"{gain.n} seeds, 95% {ends}", f"{gain.n} 个种子，95% 区间 {ends.replace(' to ', ' 至 ')}")
    figures = f"{100 * (ours or 0):.1f}", f"{100 * (theirs or 0):.1f}", f"{100 * gain.mean:+.1f}"
    return (
        f"R@1 {figures[0]} against {figures[1]}, {figures[2]} ({bounds[0]}).",
        f"R@1 {figures[0]} 对 {figures[1]}，{figures[2]}（{bounds[1]}）。",
    )


def gather(arms: Sequence[Arm], trials: Callable[[Arm], list[Trial]]) -> dict[str, Figures]:
    """Figures of the arms that have runs, by name."""
    found = {arm.name: Figures(arm, tuple(trials(arm))) for arm in arms}
    return {name: figures for name, figures in found.items() if figures.trials}
