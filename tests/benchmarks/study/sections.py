"""Sections of the page on datasets of pairs: a table of each dataset and what its intervals imply, made of the records.

    real pairs     queue, key towers without it and in-batch CLIP on pairs out of packages (real.py)
    regions        the image tower with the whole picture, a grid, a detector's and the true boxes (regions.py)

Intervals of real pairs are over names as well as seeds (results.py).

Limits: intervals of regions are over the seeds, not over other pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from tests.benchmarks.study.paired import Array, Interval, difference, interval
from tests.benchmarks.study.regions import Run
from tests.benchmarks.study.results import STATES, Words, sums, wider
from tests.benchmarks.study.scenes import KINDS

Datasets = Mapping[str, Mapping[str, Any]]
"""By name: `content_digest`, and what else the page says of a dataset. `names`: the number of each val pair's name;
empty where runs were recorded without hits, at one rate for all arms."""

Names = Sequence[int]


@dataclass(frozen=True)
class Side:
    """One line of a table: R@1 and R@10 of val, and R@1 of train, by seed, at the length that is best on dev.

    `hits`: the hits behind r1 and r10 by seed, summed by name [1, F], where the records have them."""

    name: Words
    r1: Mapping[int, float]
    r10: Mapping[int, float]
    train: Mapping[int, float]
    hits: Mapping[str, Mapping[int, Array]]


def best_length(runs: Sequence[Run], most: float = math.inf) -> int:
    """Which point is best on dev of runs that differ in their seed alone, within `most` samples."""
    lengths = [i for i, samples in enumerate(runs[0].samples) if samples <= most]
    return max(lengths, key=lambda i: fmean(run.dev[i] for run in runs))


def side(name: Words, runs: Sequence[Run], names: Names = (), most: float = math.inf) -> Side:
    """Figures of the runs that differ in their seed alone, within `most` samples."""
    best = best_length(runs, most)
    kept = [run for run in runs if run.hits[best]] if names else []
    return Side(
        name,
        {run.seed: run.val[best] for run in runs},
        {run.seed: run.val10[best] for run in runs},
        {run.seed: run.train[best] for run in runs},
        {by: {run.seed: sums([run.hits[best][i]], [names]) for run in kept} for i, by in enumerate(("r1", "r10"))},
    )


@dataclass(frozen=True)
class Row:
    """One line of a table, as text."""

    name: Words
    r1: str
    gain: str
    state: str
    r10: str
    train: str
    n: int


@dataclass(frozen=True)
class Part:
    """One dataset on the page."""

    title: Words
    note: Words
    rows: tuple[Row, ...]
    says: tuple[Words, ...]


def part(
    title: Words,
    note: Words,
    sides: Mapping[str, Side],
    base: str,
    questions: Sequence[tuple[str, str]],
    names: Names = (),
) -> Part:
    """The table, each line against that of `base`, and the questions that have runs, answered from the intervals."""

    def gain_of(one: str, other: str, by: Literal["r1", "r10"]) -> Interval | None:
        ours, theirs = sides[one], sides[other]
        gain = difference(getattr(ours, by), getattr(theirs, by))
        return gain and wider(gain, (ours.hits[by], theirs.hits[by]), [names])

    says = []
    by: Literal["r1", "r10"]
    for by in ("r1", "r10"):
        for one, other in questions:
            if {one, other} <= sides.keys() and (gain := gain_of(one, other, by)):
                english, chinese = verdict(sides[one].name, sides[other].name, gain)
                says.append((f"R@{by[1:]}: {english}", f"R@{by[1:]}：{chinese}"))
    others = sides.keys() - {base} if base in sides else ()
    rows = [_row(own, gain_of(name, base, "r1") if name in others else None) for name, own in sides.items()]
    return Part(title, note, tuple(rows), tuple(says))


def _row(own: Side, gain: Interval | None) -> Row:
    r1, r10 = (_figure(interval(list(by_seed.values()))) for by_seed in (own.r1, own.r10))
    state = STATES[gain.outcome] if gain else ""
    return Row(own.name, r1, signed(gain), state, r10, f"{100 * fmean(own.train.values()):.1f}", len(own.r1))


def _figure(mean: Interval) -> str:
    return f"{100 * mean.mean:.1f}" + (f" ± {100 * (mean.high - mean.mean):.1f}" if mean.n > 1 else "")


def signed(gain: Interval | None) -> str:
    """A difference in points with its interval; empty where there is none."""
    if gain is None:
        return ""
    bounds = f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if math.isfinite(gain.low) else ""
    return f"{100 * gain.mean:+.1f}{bounds}"


def verdict(one: Words, other: Words, gain: Interval) -> Words:
    """The sentence that an interval of one - other implies."""
    verb, verb_zh = _VERBS[gain.outcome]
    english = f"{one[0][0].upper()}{one[0][1:]} {verb} {other[0]} ({signed(gain)})."
    return english, f"{one[1]}{verb_zh}{other[1]}（{signed(gain)}）。"


_VERBS: dict[str, Words] = {
    "above": ("beat", "优于"),
    "below": ("are worse than", "不如"),
    "open": ("are not shown to beat", "未显示优于"),
}


_SEEDS = ("; intervals over the seeds alone", "；区间只对种子而言")
_NAMES = (
    "; ± over the seeds, differences over names too, the wider at each end",
    "；± 对种子而言，差值的区间也对名称而言，每一端取较宽的",
)


def _note(what: Words, run: Run, more: Words = ("", ""), over: Words = _SEEDS) -> Words:
    train, dev, val = (f"{count:,}" for count in run.pairs)
    samples, chance = max(run.samples), f"{100 * run.chance:.2f}%"
    epochs = f"{samples / run.pairs[0]:.1f}"
    return (
        f"{what[0]}; {train} pairs to train, {dev} dev, {val} val; {samples:,} samples at batch 16 are {epochs} "
        f"epochs; chance {chance}{more[0]}{over[0]}",
        f"{what[1]}；训练 {train} 对，dev {dev}，val {val}；批大小 16，{samples:,} 个样本即 {epochs} 轮；"
        f"随机 {chance}{more[1]}{over[1]}",
    )


def sections(runs: Sequence[Run], datasets: Datasets) -> list[dict[str, Any]]:
    """Sections of the page that have runs."""
    by_source: dict[str, list[Run]] = {}
    for run in runs:
        by_source.setdefault(run.source, []).append(run)
    found = []
    if "packages" in by_source:
        found.append(_section(_REAL, [_real(by_source["packages"], datasets["packages"])]))
    if parts := [_regions(name, by_source[name], datasets[name]) for name in _SHOWN if name in by_source]:
        found.append(_section(_REGIONS, parts))
    return found


def _section(words: Mapping[str, Words], parts: Sequence[Part]) -> dict[str, Any]:
    """The section, with each dataset's first answer by R@1 and by R@10 for the top of the page."""
    firsts = [(p.title, p.rows[0].n, p.says[:: len(p.says) // 2][:2]) for p in parts if p.says]
    english = " ".join(f"{title[0]}, {n} seeds: {' '.join(says[0] for says in of)}" for title, n, of in firsts)
    chinese = "".join(f"{title[1]}，{n} 个种子：{''.join(says[1] for says in of)}" for title, n, of in firsts)
    return {**words, "parts": parts, "answer": (english, chinese)}


# --- real pairs

_REAL: dict[str, Words] = {
    "title": ("Real pairs", "真实图文对"),
    "what": ("arm", "组"),
    "against": ("against in-batch CLIP", "与批内 CLIP 之差"),
    "about": (
        "Drawings, icons, maps, units of a game and pictures of manuals with the Chinese names their packages have. "
        "Neither the pictures nor the names of val were trained on.",
        "图画、图标、地图、游戏单位和手册插图，配各软件包自带的中文名称。val 的图片和名称都没有训练过。",
    ),
}

_ARMS: dict[str, Words] = {
    "clip": ("in-batch CLIP", "批内 CLIP"),
    "moco-k0": ("key towers without a queue", "没有队列的动量塔"),
    "moco": ("towers with the queue", "带队列的双塔"),
}

_CLAIMS = (("moco", "clip"), ("moco", "clip-compute"), ("moco-k0", "clip"), ("moco", "moco-k0"))


def _real(runs: Sequence[Run], facts: Mapping[str, Any]) -> Part:
    of = {arm: [run for run in runs if run.arm == arm] for arm in _ARMS}
    first, total, names = of["moco"][0], sum(facts["splits"].values()), facts["names"]
    most = max(first.samples)
    sides = {
        "clip": side(("in-batch CLIP, equal samples", "批内 CLIP，样本数相等"), of["clip"], names, most),
        "clip-compute": side(("in-batch CLIP, equal compute", "批内 CLIP，计算量相等"), of["clip"], names),
        "moco-k0": side(_ARMS["moco-k0"], of["moco-k0"], names, most),
        "moco": side(_ARMS["moco"], of["moco"], names),
    }
    chosen = [(_ARMS[arm], f"{own[0].temperature:g}, {1e4 * own[0].rate:g}e-4") for arm, own in of.items()]
    more = (
        "; temperature and rate chosen on dev: " + "; ".join(f"{name[0]} {own}" for name, own in chosen),
        "；在 dev 上选定的温度和学习率：" + "；".join(f"{name[1]} {own}" for name, own in chosen),
    )
    sources = len(facts["sources"])
    what = (
        f"{total:,} pairs of {sources} sources in packages of Debian and npm",
        (f"取自 Debian 和 npm 软件包的 {sources} 个来源的 {total:,} 对"),
    )
    note = _note(what, first, more, _NAMES)
    return part(("Real pairs out of packages", "取自软件包的真实图文对"), note, sides, "clip", _CLAIMS, names)


# --- regions

_REGIONS: dict[str, Words] = {
    "title": ("Do regions help?", "区域有用吗？"),
    "what": ("what the image tower sees", "图像塔看到什么"),
    "against": ("against the whole picture", "与整图之差"),
    "about": (
        "The same towers with the queue, on pictures of more than one thing: what does the image tower gain from "
        "regions, and from a detector’s boxes instead of a grid’s? Val pairs; a hit is any pair of the same text.",
        "同样的双塔加队列，用不止一样东西的图片：区域给图像塔带来什么？检测框比网格好吗？"
        "在 val 的图文对上；文本相同的都算命中。",
    ),
}

_SHOWN: dict[str, tuple[Words, Words]] = {
    "howtocook": (("HowToCook", "HowToCook"), ("photo and name of the dish", "照片和菜名")),
    "scenes": (
        ("Scenes of stamps", "图章拼成的场景"),
        (
            f"two to four of {KINDS} stamps a picture, the caption names one",
            f"每张图有 {KINDS} 种图章中的二到四种，说明只说其中一种",
        ),
    ),
}

_SIGHTS: dict[str, Words] = {
    "whole": ("the whole picture", "整图"),
    "grid": ("the grid’s regions", "网格的区域"),
    "proposals": ("the detector’s boxes", "检测框"),
    "things": ("the true boxes", "真实框"),
}

_QUESTIONS = (
    ("proposals", "whole"), ("proposals", "grid"), ("things", "whole"), ("things", "grid"), ("grid", "whole"),
)  # fmt: skip
"""What is asked, in this order; the first, which is the paper's choice, is answered at the top of the page."""


def _regions(name: str, runs: Sequence[Run], facts: Mapping[str, Any]) -> Part:
    title, what = _SHOWN[name]
    of = {sight: [run for run in runs if run.sight == sight] for sight in _SIGHTS}
    sides = {sight: side(_SIGHTS[sight], own) for sight, own in of.items() if own}
    most = facts.get("ceiling")
    limit = (f"; a perfect guess {100 * most:.0f}%", f"；完美的猜测 {100 * most:.0f}%") if most else ("", "")
    return part(title, _note(what, runs[0], limit), sides, "whole", _QUESTIONS)
