"""Counts by source and score, and the cuts, of the judge `pair_score`, for its passes and for the report.

A score, a cosine or a chance, has four decimals. Counted as whole ten-thousandths, a source
has at most 20,001 different ones: counts of them are exact, add up over partitions, and say where a share ends, so that
the driver holds nothing that grows with the pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import PAIR_SCORE
from pipeline.store.build import Build
from pipeline.store.pairs import PAIRS, SCORES, columns_of
from pipeline.store.partitions import read_at_once

UNITS = 10_000
"""Units of a score of 1."""

CUTS = "curate.cuts"
"""The pass that reduces counts to the cuts of each filter by source."""

UNSCORED = "not scored: a tower failed on its image or text"

Units = npt.NDArray[np.int64]
Counts = dict[str, Counter[int]]
"""Source -> score in units -> pairs."""


@dataclass(frozen=True, slots=True)
class Cut:
    """End of a share of a source: the last pair that it keeps. Of equal scores the smaller id comes first."""

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


def summed(build: Build) -> Counts:
    """Counts of all scored pairs. Some partitions are read at once: in an object store each is two requests."""

    def count(partition: str) -> pa.Table:
        scores = columns_of(build, SCORES, partition)[PAIR_SCORE.name]
        pairs = build.stage(PAIRS)
        sources = pairs.table(pairs.record(partition), columns=["source"])["source"]
        units, there = in_units(scores)
        rows = pa.table({"source": sources, "units": pa.array(units, mask=~there)}).drop_null()
        return rows.group_by(["source", "units"]).aggregate([([], "count_all")])

    counts, partitions = Counts(), build.stage(SCORES).partitions()
    for table in read_at_once(count, partitions):
        for row in table.to_pylist():
            counts.setdefault(row["source"], Counter())[row["units"]] += row["count_all"]
    return counts


def end_of_share(counts: Mapping[int, int], share: float) -> tuple[int, int]:
    """(score in units, pairs with exactly this score that are still within) where a share of pairs ends.

    At least one pair is kept. counts: pairs by score, at least one.
    """
    wanted = max(1, round(share * sum(counts.values())))
    for units in sorted(counts, reverse=True):
        if wanted <= counts[units]:
            return units, wanted
        wanted -= counts[units]
    raise AssertionError("a share cannot exceed 1")


def as_json(cuts: Cuts) -> Any:
    """The cuts as the pass reduces to them."""
    return [{source: [cut.units, cut.candidate_id] for source, cut in own.items()} for own in cuts]


def read(build: Build) -> Cuts:
    """The cuts as the driver left them."""
    return [{source: Cut(*cut) for source, cut in own.items()} for own in build.stage(CUTS).reduced()]


def in_words(counts: Counts, source: str, score: float | None) -> str:
    """Describes, for people, a score among those of its source."""
    if score is None:
        return UNSCORED
    own, units = counts.get(source, Counter()), round(score * UNITS)
    below, total = sum(n for other, n in own.items() if other < units), own.total()
    rank = f", better than {below / total:.0%} of the {total:,} pairs of {source}" if total else ""
    return f"pair score {score:.4f}{rank}"
