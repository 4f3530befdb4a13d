"""Results of the finished runs: figures per arm at its chosen length, and which claims hold.

The length is chosen for each arm on dev styles and dev names: of the points that lie within the budget the one with the
highest mean over its seeds. The budget is N samples, or as many as cost what N samples of the base arm do, or as many
steps as the base arm takes; N is the arm's own, and of two arms that are compared the smaller one. R@1 is the mean of
both directions.

A claim compares two arms on one gallery within one budget. It holds if the 95% interval of the difference lies above
zero; it is refuted if it lies below; else the study does not show it. The interval is the wider, at each end, of
Student's over the seeds and the bootstrap over seeds, styles and families of names. Nothing else words the page.

Limits: claims are tested one by one, without a correction for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np

from tests.benchmarks.study.arms import BASE, Arm
from tests.benchmarks.study.paired import Array, Interval, crossed, difference, interval
from tests.benchmarks.study.trial import SMALL_GALLERY, Point, Trial, dev, unpacked

Budget = Literal["samples", "compute", "steps"]
BUDGETS: tuple[Budget, ...] = ("samples", "compute", "steps")

Families = Mapping[str, Sequence[Sequence[int]]]
"""By gallery: for each style the number of each name's family."""

SHORT = 40_000
"""N below which nothing is judged: the queue overtakes the others only after 20,000 to 60,000 samples."""

State = Literal["holds", "refuted", "not shown", "no runs"]

STATES: Mapping[str, State] = {"above": "holds", "below": "refuted", "open": "not shown"}


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
        """Samples of the point that is best on dev within a budget. Raises ValueError without runs."""
        first = self.trials[0]
        more = {"samples": 1.0, "compute": first.ratio, "steps": self.arm.batch / BASE.batch}[budget]
        most = (samples or first.samples) * more + self.arm.batch
        lengths = [p.samples for p in first.points if p.samples <= most]
        return max(lengths, key=lambda n: fmean(dev(_at(trial, n)) for trial in self.trials))

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

    def hits(self, gallery: str, families: Families, budget: Budget, samples: int = 0) -> dict[int, Array]:
        """Hits by seed at the chosen length, the mean of both ways: by style and family the sum over its names [Y, F].
        Without the seeds of which they were not kept."""
        if gallery not in families:
            return {}
        length, found = self.chosen(budget, samples), {}
        for trial in self.trials:
            styles = _at(trial, length).hits.get(gallery, [])
            if len(styles) != len(families[gallery]):
                continue
            found[trial.seed] = sums(styles, families[gallery])
        return found

    @property
    def step_ms(self) -> float:
        """Mean processor milliseconds per step."""
        return fmean(trial.step_ms for trial in self.trials)

    @property
    def search_seconds(self) -> float:
        """Mean processor seconds per query over a small gallery."""
        return fmean(trial.search["seconds"] for trial in self.trials)


def sums(hits: Sequence[str], families: Sequence[Sequence[int]]) -> Array:
    """Packed hits of each style, the mean of both ways, summed over the names of a family [Y, F]."""
    total = 1 + max(number for numbers in families for number in numbers)
    pairs = zip(hits, families, strict=True)
    return np.stack([np.bincount(f, unpacked(text, len(f)).mean(0), minlength=total) for text, f in pairs])


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


WITHIN: Mapping[Budget, Words] = {
    "samples": ("equal samples", "样本数相等"),
    "compute": ("equal compute", "计算量相等"),
    "steps": ("equal steps", "步数相等"),
}


def _queue_beats(other: str, name: Words, budget: Budget) -> Claim:
    within = WITHIN[budget]
    return Claim(
        (f"The queue beats {name[0]}, {within[0]}", f"{within[1]}：队列优于{name[1]}"), BASE.name, other, budget=budget
    )


def _queue_beats_clip(batch: int, gallery: str, budget: Budget) -> Claim:
    where = {"style": ("unseen styles", "没见过的画风"), "names": ("unseen names", "没见过的名称")}[gallery]
    within = WITHIN[budget]
    arm = "" if batch == 16 else f"-b{batch}"
    says = (
        f"The queue beats in-batch CLIP at batch {batch} on {where[0]}, {within[0]}",
        f"批大小 {batch}，{where[1]}，{within[1]}：队列优于批内 CLIP",
    )
    return Claim(says, f"moco{arm}", f"clip{arm}", gallery, budget)


_WITHOUT = ("the same key towers without a queue (K = 0)", "没有队列（K = 0）的同样的动量塔")
_LEARNED = ("in-batch CLIP with a learned temperature", "可学习温度的批内 CLIP")
_LARGE = ("in-batch CLIP at batch 64", "批大小 64 的批内 CLIP")

CONTROLS = (
    _queue_beats("moco-k0", _WITHOUT, "samples"),
    _queue_beats("moco-k0", _WITHOUT, "compute"),
    _queue_beats("clip-learned", _LEARNED, "samples"),
    _queue_beats("clip-learned", _LEARNED, "compute"),
    _queue_beats("clip-b64", _LARGE, "samples"),
    _queue_beats("clip-b64", _LARGE, "compute"),
    _queue_beats("clip-b64", _LARGE, "steps"),
)
"""Whether it is the queue, at batch 16 on unseen styles."""

CLAIMS = (
    _queue_beats_clip(16, "style", "samples"),
    _queue_beats_clip(16, "style", "compute"),
    _queue_beats_clip(8, "style", "samples"),
    _queue_beats_clip(8, "style", "compute"),
    *CONTROLS,
    Claim(
        ("Key towers without a queue beat in-batch CLIP, equal samples", "样本数相等：没有队列的动量塔优于批内 CLIP"),
        "moco-k0",
        "clip",
    ),
    Claim(
        ("A learned temperature helps in-batch CLIP, equal samples", "样本数相等：可学习的温度对批内 CLIP 有好处"),
        "clip-learned",
        "clip",
    ),
    _queue_beats_clip(64, "style", "samples"),
    _queue_beats_clip(16, "names", "samples"),
    _queue_beats_clip(16, "names", "compute"),
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
        (
            f"Two towers with the queue beat a single tower with a matching loss alone ({SMALL_GALLERY} candidates)",
            f"双塔加队列优于只有匹配损失的单塔（{SMALL_GALLERY} 个候选）",
        ),
        "moco",
        "single-tower",
        "style_small",
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


def judge(claim: Claim, figures: Mapping[str, Figures], families: Families | None = None) -> Verdict:
    """The verdict that the figures imply; without `families` the interval is that over the seeds."""
    if claim.better not in figures or claim.other not in figures:
        return Verdict(claim, "no runs", None, None, None)
    sides = figures[claim.better], figures[claim.other]
    samples = min(side.samples for side in sides)
    ours, theirs = (side.by_seed(claim.gallery, claim.budget, samples) for side in sides)
    gain = difference(ours, theirs)
    if gain is None:
        return Verdict(claim, "no runs", None, None, None)
    seeds = ours.keys() & theirs.keys()
    if families and len(seeds) > 1:
        hits = [side.hits(claim.gallery, families, claim.budget, samples) for side in sides]
        gain = wider(gain, hits, families.get(claim.gallery, ()))
    means = (fmean(values[seed] for seed in seeds) for values in (ours, theirs))
    return Verdict(claim, STATES[gain.outcome], gain, *means)


def wider(gain: Interval, hits: Sequence[Mapping[int, Array]], numbers: Sequence[Sequence[int]]) -> Interval:
    """The interval, at each end as far as that over seeds, styles and families reaches where hits [Y, F] are kept."""
    ours, theirs = hits
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return gain
    gains_SYF = np.stack([ours[seed] - theirs[seed] for seed in seeds])
    counts_YF = np.stack([np.bincount(own, minlength=gains_SYF.shape[2]) for own in numbers]).astype(np.float64)
    known = counts_YF.any(axis=0)
    low, high = crossed(gains_SYF[:, :, known], counts_YF[:, known])
    return replace(gain, low=min(gain.low, low), high=max(gain.high, high))


_SAYS: Mapping[tuple[str, Budget], Mapping[State, Words]] = {
    ("moco-k0", "samples"): {
        "holds": (
            "It is the queue: the same key towers without one (K = 0) fall behind",
            "起作用的是队列：没有队列（K = 0）的同样的动量塔落后",
        ),
        "refuted": (
            "It is not the queue: the same key towers without one (K = 0) are ahead",
            "起作用的不是队列：没有队列（K = 0）的同样的动量塔领先",
        ),
        "not shown": (
            "It is not shown to be the queue rather than the key towers (K = 0)",
            "没有显示起作用的是队列，而不是动量塔（K = 0）",
        ),
    },
    ("clip-learned", "compute"): {
        "holds": (
            "In-batch CLIP with a learned temperature, at equal compute, falls behind too",
            "计算量相等时，可学习温度的批内 CLIP 也落后",
        ),
        "refuted": (
            "In-batch CLIP with a learned temperature, at equal compute, is ahead",
            "计算量相等时，可学习温度的批内 CLIP 领先",
        ),
        "not shown": (
            "Against in-batch CLIP with a learned temperature, at equal compute, nothing is shown",
            "计算量相等时，与可学习温度的批内 CLIP 相比没有显示差别",
        ),
    },
    ("clip-b64", "steps"): {
        "holds": (
            "In-batch CLIP at batch 64 with as many steps, four times the samples, falls behind too",
            "批大小 64、步数相同（样本是四倍）的批内 CLIP 也落后",
        ),
        "refuted": (
            "In-batch CLIP at batch 64 with as many steps, four times the samples, is ahead",
            "批大小 64、步数相同（样本是四倍）的批内 CLIP 领先",
        ),
        "not shown": (
            "Against in-batch CLIP at batch 64 with as many steps, four times the samples, nothing is shown",
            "与批大小 64、步数相同（样本是四倍）的批内 CLIP 相比没有显示差别",
        ),
    },
}
"""How the controls that matter most are worded, by the control's arm and budget."""


def controls(figures: Mapping[str, Figures], families: Families) -> Words | None:
    """Whether it is the queue, in one paragraph; None before its controls have runs."""
    verdicts = [v for v in (judge(claim, figures, families) for claim in CONTROLS) if v.gain is not None]
    said = [(_SAYS[key][v.state], _words(v)) for v in verdicts if (key := (v.claim.other, v.claim.budget)) in _SAYS]
    english, chinese = ([f"{says[i]}{(': ', '：')[i]}{words[i]}" for says, words in said] for i in (0, 1))
    return (" ".join(english), "".join(chinese)) if said else None


def too_short(samples: int) -> Words:
    """The statement of a study whose N lies below SHORT."""
    return (
        f"Too short to judge: N is {samples:,} samples, and the queue overtakes the others only after 20,000 to "
        "60,000. This form shows that everything runs; `make study` judges.",
        f"太短，无法判断：N 只有 {samples:,} 个样本，而队列在 20,000 到 60,000 个样本之后才超过其他组。"
        "这种形式只说明一切都能运行；判断请用 `make study`。",
    )


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
