"""What the limits of filters keep out: by measure, what was kept and what was dropped, and what other limits let in.

A filter says which of its options is a limit on which measure (`pipeline.filters.Limit`). What it dropped is measured
again here: texts from the decisions of `admit`, pictures from the rows of `measure`. What later stages leave out,
copies above all, has passed every limit and is not counted. Files are read one by one into fixed bins.

Of a limit on texts, the texts nearest to it on either side are shown: those just dropped for it, and those just kept.

"Let in" counts what was dropped for that limit alone and would pass the other one. It is a floor: a candidate with
several texts is judged by its first. `wenlan-data try` says what a changed spec makes of the whole dataset.

Limits: decisions hold 200 characters of a text, so a longer one that was dropped counts as one of 200.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from pipeline.filters import Limit, image_filters, text_filters
from pipeline.records import DropReason
from pipeline.report.figures import Histogram, Numbers
from pipeline.report.measures import MEASURES, Measure
from pipeline.store.build import Build
from pipeline.store.pairs import PAIRS, primary_texts, survivors
from pipeline.store.partitions import DECISIONS, Record
from pipeline.texts.chunks import CHUNK, announce

Mask = npt.NDArray[np.bool_]

PASSED = frozenset({DropReason.SAME_CANDIDATE.value, DropReason.CAP_PER_IMAGE_URL.value, DropReason.FORGOTTEN.value})
"""Reasons of `admit` that are no judgement of a text."""

MOST_STEPS = 6
"""Other limits that are listed for each limit."""

EXAMPLES = 20
"""Texts that are shown on each side of a limit."""


class _Nearest:
    """The EXAMPLES different texts whose values are nearest to a limit, those equally near by their code points."""

    def __init__(self) -> None:
        self._nearest: list[tuple[float, str]] = []

    def add(self, distances: Numbers, texts: Sequence[str]) -> None:
        farthest = self._nearest[-1][0] if len(self._nearest) == EXAMPLES else np.inf
        near = np.flatnonzero(distances <= farthest)
        if len(near) > 4 * EXAMPLES:  # a few more than wanted, since texts may repeat
            near = near[distances[near] <= np.partition(distances[near], 4 * EXAMPLES)[4 * EXAMPLES]]
        new = {(float(distances[row]), texts[row]) for row in near.tolist()}
        self._nearest = sorted({*self._nearest, *new})[:EXAMPLES]

    def merge(self, nearest: Sequence[Sequence[Any]]) -> None:
        """Add what `state` returned."""
        self._nearest = sorted({*self._nearest, *((distance, text) for distance, text in nearest)})[:EXAMPLES]

    def state(self) -> list[tuple[float, str]]:
        return self._nearest

    def texts(self) -> list[str]:
        """The texts, nearest first."""
        return [text for _, text in self._nearest]


@dataclass(eq=False)
class _Tally:
    """Counts of one limit: what was dropped for it, what for it alone, and what of that passes each step."""

    filter: str
    limit: Limit
    measure: Measure
    steps: list[float] = field(init=False)
    dropped: int = 0
    alone: int = 0
    would: npt.NDArray[np.int64] = field(init=False)
    just_dropped: _Nearest = field(default_factory=_Nearest)
    just_kept: _Nearest = field(default_factory=_Nearest)

    def __post_init__(self) -> None:
        bound = self._bound
        outer = [s for s in self.measure.steps if (s < bound if self._is_least else s > bound)]
        self.steps = sorted(outer, key=lambda step: abs(step - bound))
        self.would = np.zeros(len(self.steps), np.int64)

    @property
    def _is_least(self) -> bool:
        return self.limit.least > -np.inf

    @property
    def _bound(self) -> float:
        return self.limit.least if self._is_least else self.limit.most

    def keeps_out(self, values: Numbers) -> Mask:
        """Which of the values are beyond the limit."""
        values = self._measured(values)
        return values < self._bound if self._is_least else values > self._bound

    def add(self, values: Numbers, own: Mask, alone: Mask, texts: Sequence[str] = ()) -> None:
        """Count dropped ones. own, alone: those that were dropped for this limit, and for nothing else."""
        self.dropped += int(own.sum())
        if texts:
            self._show(self.just_dropped, values, own, texts)
        values = self._measured(values)[own & alone]
        self.alone += len(values)
        for i, step in enumerate(self.steps):
            self.would[i] += int((values >= step if self._is_least else values <= step).sum())

    def keep(self, values: Numbers, texts: Sequence[str]) -> None:
        """Look at kept texts."""
        self._show(self.just_kept, values, ~self.keeps_out(values), texts)

    def _show(self, nearest: _Nearest, values: Numbers, which: Mask, texts: Sequence[str]) -> None:
        rows = np.flatnonzero(which)
        nearest.add(np.abs(values[rows] - self._bound), [texts[row] for row in rows.tolist()])

    def _measured(self, values: Numbers) -> Numbers:
        return np.maximum(values, 1 / np.maximum(values, 1e-9)) if self.limit.mirrored else values

    def state(self) -> dict[str, Any]:
        counts = {"dropped": self.dropped, "alone": self.alone, "would": self.would.tolist()}
        return {**counts, "just_dropped": self.just_dropped.state(), "just_kept": self.just_kept.state()}

    def merge(self, state: dict[str, Any]) -> None:
        self.dropped += state["dropped"]
        self.alone += state["alone"]
        self.would += np.array(state["would"], np.int64)
        self.just_dropped.merge(state["just_dropped"])
        self.just_kept.merge(state["just_kept"])

    def value(self) -> dict[str, Any]:
        """As report.json has it. at: where the limit is drawn, in bins from the left."""
        bound = self._bound
        at = [bound + 1 if self.measure.whole and not self._is_least else bound]
        if self.limit.mirrored:
            at.insert(0, 1 / bound)
        would: list[dict[str, float]] = []
        before = 0
        for step, count in zip(self.steps, self.would.tolist(), strict=True):
            if count > before and len(would) < MOST_STEPS:
                would.append({"value": step, "count": count})
                before = count
        return {
            "filter": self.filter,
            "option": self.limit.option,
            "reason": self.limit.reason.value,
            "value": bound,
            "keeps": "from" if self._is_least else "to",
            "at": [round(self.measure.place(value), 3) for value in at],
            "dropped": self.dropped,
            "alone": self.alone,
            "would": would,
            "just_dropped": self.just_dropped.texts(),
            "just_kept": self.just_kept.texts(),
        }


class _Chart:
    """One measure: dropped for a limit of it, and for another reason, by bin."""

    def __init__(self, measure: Measure, tallies: list[_Tally]) -> None:
        self.measure, self.tallies = measure, tallies
        self.own, self.other = (np.zeros(len(measure.edges), np.int64) for _ in range(2))
        self.kept = Histogram(measure.name, measure.title, measure.title_zh, measure.edges, measure.labels)

    def state(self) -> dict[str, Any]:
        bins = {"own": self.own.tolist(), "other": self.other.tolist(), "kept": self.kept.counts.tolist()}
        return {**bins, "tallies": [tally.state() for tally in self.tallies]}

    def merge(self, state: dict[str, Any]) -> None:
        self.own += np.array(state["own"], np.int64)
        self.other += np.array(state["other"], np.int64)
        self.kept.counts += np.array(state["kept"], np.int64)
        for tally, own in zip(self.tallies, state["tallies"], strict=True):
            tally.merge(own)

    def value(self, kept: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """As report.json has it. kept: histograms of the samples by name, of which one may be this measure's."""
        histogram = kept.get(self.measure.name) or self.kept.value()
        bins = zip(histogram["bins"], self.own.tolist(), self.other.tolist(), strict=True)
        return {
            **histogram,
            "bins": [{**bin, "own": own, "other": other} for bin, own, other in bins],
            "limits": [tally.value() for tally in self.tallies],
        }


class Charts:
    """The pass over what filters dropped, and what was kept: the charts of every measure that the filters of a spec
    limit. known: names of histograms that the samples have anyway (`figures.Figures`)."""

    def __init__(self, spec: BuildSpec, known: Collection[str]) -> None:
        limits = [(f.plugin_name(), limit) for f in image_filters(spec) for limit in f.limits()]
        limits = [*limits_of_texts(spec), *limits]
        self._charts = list[_Chart]()
        for measure in MEASURES.values():
            own = [_Tally(name, limit, measure) for name, limit in limits if limit.measure == measure.name]
            if own:
                self._charts.append(_Chart(measure, own))
        self._of_texts = [chart for chart in self._charts if chart.measure.of_text]
        self._of_pictures = [chart for chart in self._charts if chart.measure.of_pictures]
        self._of_kept = [chart for chart in self._charts if chart.measure.name not in known]

    def add(self, build: Build, record: Record) -> None:
        if record.stage == "admit" and self._of_texts and DECISIONS in record.files:
            _add_texts(build, record, self._of_texts)
        if record.stage == "filter" and self._of_pictures and DECISIONS in record.files:
            _add_pictures(build, record, self._of_pictures)
        if record.stage == PAIRS and self._of_kept:
            _add_kept(build, record, self._of_kept)

    def state(self) -> dict[str, Any]:
        return {"charts": [chart.state() for chart in self._charts]}

    def merge(self, state: dict[str, Any]) -> None:
        for chart, own in zip(self._charts, state["charts"], strict=True):
            chart.merge(own)

    def value(self, histograms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The charts as report.json has them. histograms: of the samples kept (`figures.Figures`)."""
        kept = {h["name"]: h for h in histograms}
        return [chart.value(kept) for chart in self._charts]


def limits_of_texts(spec: BuildSpec) -> list[tuple[str, Limit]]:
    """(filter, limit) of the text filters; where sources have limits of their own the widest, which holds for all."""
    of_sources = [
        {
            (i, f.plugin_name(), limit.option): limit
            for i, f in enumerate(text_filters(spec, source))
            for limit in f.limits()
        }
        for source in spec.sources
    ]
    shared = [key for key in of_sources[0] if all(key in own for own in of_sources)]
    widest = []
    for key in shared:
        limits = [own[key] for own in of_sources]
        least, most = min(limit.least for limit in limits), max(limit.most for limit in limits)
        widest.append((key[1], replace(limits[0], least=least, most=most)))
    return widest


def _count(
    charts: Sequence[_Chart], values: Sequence[Numbers], reasons: Sequence[Sequence[str]], texts: Sequence[str] = ()
) -> None:
    """Count dropped ones in every chart. values: of each chart's measure; reasons: every one to drop, of each row.

    Two filters may drop for one reason (too few pixels, too few bytes), so what was dropped for a limit alone has one
    reason, and is beyond no other limit of that reason.
    """
    tallies = [(tally, of_chart) for chart, of_chart in zip(charts, values, strict=True) for tally in chart.tallies]
    named = {r: np.array([r in own for own in reasons], np.bool_) for r in {t.limit.reason.value for t, _ in tallies}}
    own = [tally.keeps_out(of_chart) & named[tally.limit.reason.value] for tally, of_chart in tallies]
    single = np.array([len(of_row) == 1 for of_row in reasons], np.bool_)
    times = np.sum(own, axis=0) if own else single
    for (tally, of_chart), mask in zip(tallies, own, strict=True):
        tally.add(of_chart, mask, single & (times == 1), texts)
    for chart, of_chart in zip(charts, values, strict=True):
        mine = np.zeros(len(reasons), np.bool_)
        for (tally, _), mask in zip(tallies, own, strict=True):
            mine |= mask if tally in chart.tallies else False
        bins = chart.measure.bins(of_chart)
        chart.own += np.bincount(bins[mine], minlength=len(chart.own))
        chart.other += np.bincount(bins[~mine], minlength=len(chart.own))


def _add_texts(build: Build, record: Record, charts: Sequence[_Chart]) -> None:
    """Texts that `admit` dropped, as the decisions have them."""
    rows = build.stage("admit").table(record, DECISIONS, ["text", "reasons"])
    judged = [r for r in rows.to_pylist() if r["text"] and not PASSED.intersection(r["reasons"])]
    texts = [row["text"] for row in judged]
    _count(charts, _values(charts, texts), [row["reasons"] for row in judged], texts)


def _values(charts: Sequence[_Chart], texts: Sequence[str]) -> list[Numbers]:
    """What the measure of each chart says of some texts."""
    measures = [chart.measure.of_text for chart in charts if chart.measure.of_text]
    values = [list[float]() for _ in measures]
    for start in range(0, len(texts), CHUNK):
        announce(chunk := texts[start : start + CHUNK])
        for own, of_text in zip(values, measures, strict=True):
            own += map(of_text, chunk)
    return [np.array(own, np.float64) for own in values]


def _add_pictures(build: Build, record: Record, charts: Sequence[_Chart]) -> None:
    """Pictures that `filter` dropped, with what `measure` knew of them: partitions of the two have one name."""
    fetch, measure = build.stage("fetch"), build.stage("measure")
    wanted = sorted({column for chart in charts for column in chart.measure.columns})
    dropped = build.stage("filter").table(record, DECISIONS, ["fetch_id", "reasons"])
    if not dropped.num_rows:
        return
    part = record.partition
    images = fetch.table(fetch.record(part), columns=["fetch_id", "sha256"])
    features = measure.table(measure.record(part), columns=["sha256", *wanted])
    sha256 = images["sha256"].take(pc.index_in(dropped["fetch_id"], images["fetch_id"]))
    place = pc.index_in(sha256, features["sha256"])  # null for a row that a takedown removed
    rows, dropped = features.take(place.drop_null()), dropped.filter(place.is_valid())
    columns = {name: rows[name].to_numpy() for name in wanted}
    values = [chart.measure.of_pictures(columns) for chart in charts if chart.measure.of_pictures]
    _count(charts, values, dropped["reasons"].to_pylist())


def _add_kept(build: Build, record: Record, charts: Sequence[_Chart]) -> None:
    """What was kept, of measures of which the shards' rows say nothing: from the last stage before packing."""
    wanted = {column for chart in charts if chart.measure.of_pictures for column in chart.measure.columns}
    rows = survivors(build, record.partition, ["texts", *sorted(wanted)])
    texts, columns = primary_texts(rows), {column: rows[column].to_numpy() for column in wanted}
    of_texts = [chart for chart in charts if chart.measure.of_text]
    for chart, values in zip(of_texts, _values(of_texts, texts), strict=True):
        chart.kept.add(values)
        for tally in chart.tallies:
            tally.keep(values, texts)
    for chart in charts:
        if chart.measure.of_pictures is not None:
            chart.kept.add(chart.measure.of_pictures(columns))
