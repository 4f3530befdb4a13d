"""Counts by source and score, and the cuts, that the judge `pair_score` leaves for its passes and for the report.

A score is the cosine of an image's and a text's features to four decimals. Kept as whole ten-thousandths, a source has
at most 20,001 different ones: counts of them are exact, add up over partitions, and say where a share ends, so that the
driver holds nothing that grows with the pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.build import Build
from pipeline.store.partitions import Record, StageDir

UNITS = 10_000
"""Of a score of 1."""

COUNTS, COUNTS_SCHEMA = "scores", pa.schema([("source", pa.string()), ("units", pa.int32()), ("pairs", pa.int64())])
"""Suffix of the file of counts, and its rows: the pairs of a source with each score that occurs, in ten-thousandths."""

CUTS = "curate.cuts"
"""The pass that reduces the counts to the cuts of each filter by source."""

UNSCORED = "not scored, since a tower failed on its image or its text"

READ_AT_ONCE = 16

Units = npt.NDArray[np.int64]
Counts = dict[str, Counter[int]]
"""Source -> score in units -> pairs."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a share of a source ends: the last pair that it keeps. Of equal scores the smaller id comes first."""

    units: int
    candidate_id: str

    @property
    def score(self) -> float:
        return self.units / UNITS

    def keeps(self, units: int, candidate_id: str) -> bool:
        return units > self.units or (units == self.units and candidate_id <= self.candidate_id)


Cuts = list[dict[str, Cut]]
"""For each pair filter of the spec, in its order: source -> cut; empty for a filter that keeps all."""


def in_units(scores: pa.ChunkedArray) -> tuple[Units, npt.NDArray[np.bool_]]:
    """(scores in units, 0 where there is none; whether there is one)."""
    there = np.asarray(pc.is_valid(scores).to_numpy(), np.bool_)
    values = np.asarray(pc.fill_null(scores, 0.0).to_numpy(), np.float64)
    return np.rint(values * UNITS).astype(np.int64), there


def counted(sources: Iterable[str], units: Iterable[int]) -> pa.Table:
    """COUNTS_SCHEMA of pairs, sorted."""
    counts = sorted(Counter(zip(sources, units, strict=True)).items())
    columns = [[source for (source, _), _ in counts], [unit for (_, unit), _ in counts], [n for _, n in counts]]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, COUNTS_SCHEMA, strict=True)], schema=COUNTS_SCHEMA)


def summed(build: Build) -> Counts:
    """The counts of all partitions."""
    directory, counts = build.stage("curate.score"), Counts()
    for table in _of_each(directory, lambda record: directory.table(record, COUNTS)):
        for source, units, pairs in zip(*(column.to_pylist() for column in table.columns), strict=True):
            counts.setdefault(source, Counter())[units] += pairs
    return counts


def _of_each(directory: StageDir, read: Callable[[Record], pa.Table]) -> Iterator[pa.Table]:
    """What is read of each partition of a stage, in their order, some at once: in an object store each is a request."""
    records = directory.records()
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        for start in range(0, len(records), READ_AT_ONCE):
            yield from threads.map(read, records[start : start + READ_AT_ONCE])


def end_of_share(counts: Mapping[int, int], share: float) -> tuple[int, int]:
    """(score in units, pairs with exactly this score that are still within) where a share of pairs ends.

    At least one pair is kept. counts: pairs by score, at least one.
    """
    wanted = max(1, round(share * sum(counts.values())))
    for units in sorted(counts, reverse=True):
        if wanted <= counts[units]:
            return units, wanted
        wanted -= counts[units]
    raise AssertionError("a share is no more than all")


def as_json(cuts: Cuts) -> Any:
    """The cuts as the pass reduces to them."""
    return [{source: [cut.units, cut.candidate_id] for source, cut in own.items()} for own in cuts]


def read(build: Build) -> Cuts:
    """The cuts as the driver left them."""
    return [{source: Cut(*cut) for source, cut in own.items()} for own in build.stage(CUTS).reduced()]


def in_words(counts: Counts, source: str, score: float | None) -> str:
    """What a score is among those of its source, for people."""
    if score is None:
        return UNSCORED
    own, units = counts.get(source, Counter()), round(score * UNITS)
    below, total = sum(n for other, n in own.items() if other < units), own.total()
    rank = f", better than {below / total:.0%} of the {total:,} pairs of {source}" if total else ""
    return f"cosine of picture and text {score:.4f}{rank}"
