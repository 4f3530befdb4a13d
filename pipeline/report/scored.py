"""The pass over scored pairs: those that fit best and worst, and those nearest to the filters' limits.

The best and worst are taken as they came to the filters and as they left them, and at each limit the pairs that are
nearest to it on either side.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.shard import PAIR_SCORE
from pipeline.filters import PairFilter, pair_filters
from pipeline.filters.pair_score import PairScore
from pipeline.store import pair_scores
from pipeline.store.build import Build
from pipeline.store.pair_scores import UNITS, Cuts, Units, in_units
from pipeline.store.pairs import SCORES, pairs_before, reaching
from pipeline.store.partitions import Record

SHOWN, NEAREST = 12, 20
"""Pairs of a sheet of the best or worst, and pairs on each side of a limit."""

Mask = npt.NDArray[np.bool_]
Values = dict[str, Any]

COLUMNS = ["candidate_id", "fetch_id", "source", "page_url", "image_url", "texts", PAIR_SCORE.name]


@dataclass
class _Group:
    """The pairs with the smallest keys of all that are offered; of equal keys those with the smallest ids."""

    name: str
    limit: str
    count: int
    nearest: list[tuple[int, str, Values]] = field(default_factory=list)

    def offer(self, table: pa.Table, keys: Units, which: Mask, kept: Mask) -> None:
        """Look at the rows of a table that `which` picks."""
        rows = np.flatnonzero(which)
        if len(self.nearest) == self.count:
            rows = rows[keys[rows] <= self.nearest[-1][0]]
        if len(rows) > self.count:
            rows = rows[keys[rows] <= np.partition(keys[rows], self.count - 1)[self.count - 1]]
        new = [
            (int(key), row["candidate_id"], _row(row, bool(own)))
            for key, own, row in zip(keys[rows], kept[rows], table.take(pa.array(rows)).to_pylist(), strict=True)
        ]
        self.merge(new)

    def merge(self, nearest: Sequence[tuple[int, str, Values]]) -> None:
        self.nearest = heapq.nsmallest(self.count, [*self.nearest, *nearest], key=lambda entry: entry[:2])

    def value(self) -> Values:
        return {"name": self.name, "limit": self.limit, "rows": [dict(row) for _, _, row in self.nearest]}


def _row(row: Values, kept: bool) -> Values:
    """A pair as the page and report.json have it."""
    names = {"id": row["candidate_id"], "url": row["image_url"], "text": row["texts"][0]["text"][:200]}
    same = {name: row[name] for name in ("fetch_id", "source", "page_url")}
    return {
        **names,
        **same,
        "kept": kept,
        "stage": "curate",
        "duplicate_of": "",
        "score": round(row[PAIR_SCORE.name], 4),
    }


class ScoredPairs:
    """The pass. filters: of scores, where `choose` has applied them. cuts: where the shares that they take end."""

    def __init__(self, build: Build) -> None:
        self._on = build.spec.pair_score is not None and "curate.score" in build.fingerprints
        self.filters: Sequence[PairFilter] = ()
        if self._on and "curate.pair_score" in build.fingerprints:
            self.filters = pair_filters(build.spec)
        self.cuts: Cuts = pair_scores.read(build) if self.filters else []
        self._best, self._worst = (_Group(name, "", SHOWN) for name in ("best", "worst"))
        self._kept_best, self._kept_worst = (_Group(name, "", SHOWN) for name in ("best_kept", "worst_kept"))
        self._sides: list[tuple[_Group, _Group, Distance]] = []
        for f, of_filter in zip(self.filters, self.cuts, strict=True):
            for option, distance in _distances(f, of_filter):
                sides = _Group("just_dropped", option, NEAREST), _Group("just_kept", option, NEAREST)
                self._sides.append((*sides, distance))

    def add(self, build: Build, record: Record) -> None:
        for table, kept in _tables(build, record, bool(self.filters)) if self._on and record.stage == SCORES else ():
            units, there = in_units(table[PAIR_SCORE.name])
            self._best.offer(table, -units, there, kept)
            self._worst.offer(table, units, there, kept)
            self._kept_best.offer(table, -units, there & kept, kept)
            self._kept_worst.offer(table, units, there & kept, kept)
            for dropped_side, kept_side, distance in self._sides:
                far, beyond, within = distance(units, table["source"].to_pylist())
                dropped_side.offer(table, far, there & beyond & ~kept, kept)
                kept_side.offer(table, far, there & within & kept, kept)

    def _groups(self) -> list[_Group]:
        kept = [self._kept_best, self._kept_worst] if self.filters else []
        return [self._best, self._worst, *kept, *(group for side in self._sides for group in side[:2])]

    def state(self) -> dict[str, Any]:
        return {"groups": [group.nearest for group in self._groups()]}

    def merge(self, state: dict[str, Any]) -> None:
        for group, nearest in zip(self._groups(), state["groups"], strict=True):
            group.merge([(key, name, row) for key, name, row in nearest])

    def value(self) -> list[Values]:
        """The groups as report.json has them, but for pictures."""
        return [group.value() for group in self._groups()]


Distance = Callable[[Units, list[str]], tuple[Units, Mask, Mask]]
"""Of scores and sources: how far from a limit each is, whether it is beyond, and whether it is within."""


def _distances(f: PairFilter, of_filter: Mapping[str, pair_scores.Cut]) -> Iterator[tuple[str, Distance]]:
    """(option, distance from it) of what a filter limits."""
    if isinstance(f, PairScore) and f.min_score > -1:
        low = round(f.min_score * UNITS)
        yield "min_score", lambda units, _: (np.abs(units - low), units < low, units >= low)
    if isinstance(f, PairScore) and f.max_score < 1:
        high = round(f.max_score * UNITS)
        yield "max_score", lambda units, _: (np.abs(units - high), units > high, units <= high)
    if of_filter:

        def of_share(units: Units, sources: list[str]) -> tuple[Units, Mask, Mask]:
            ends = np.array([of_filter[s].units if s in of_filter else 2 * UNITS for s in sources], np.int64)
            passes = np.array([f.judge(u / UNITS) is None for u in units.tolist()], np.bool_)
            # those with exactly the last score are on both sides: which of them are kept, their ids say
            return np.abs(units - ends), passes & (units <= ends), passes & (units >= ends)

        yield "top_share", of_share


def _tables(build: Build, record: Record, judged: bool) -> Iterator[tuple[pa.Table, Mask]]:
    """(scored pairs, which of them the filters kept) of a partition."""
    table = pairs_before(build, record.partition, "pair_score", COLUMNS)
    kept = np.ones(table.num_rows, np.bool_)
    if judged:
        mask = reaching(build, record.partition, "pair_score")
        kept = reaching(build, record.partition, "semantic_dedup")[mask]
    if table.num_rows:
        yield table, kept
