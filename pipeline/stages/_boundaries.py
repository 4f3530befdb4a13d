"""Shard boundaries: a shard ends after `samples_per_shard` samples or before it would exceed `bytes_per_shard`.

A shard holds one sample at the least. Boundaries follow from the rows in their order, never from how many workers pack
them. The limit counts fetched bytes, since these are known before a byte is moved: texts and headers come on top, and
what is re-encoded has another size.

The plan is what the pass shard.plan reduces to: the driver makes it once, tasks read it (`read`).

Limits: the driver holds one entry per shard; with `bytes_per_shard` it reads one column of numbers of all that is
packed, and holds that of READ_AT_ONCE partitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from data_specs.shard import SPLITS
from pipeline.store.build import Build, Pass, no_partitions, no_run
from pipeline.store.commits import Record
from pipeline.store.pairs import PAIRS, SELECTION, SURVIVORS, survivors
from pipeline.store.partitions import read_at_once

NAME = "shard.plan"


@dataclass(frozen=True, slots=True)
class Cut:
    """One shard: its split, and its rows as (partition, first survivor of the split in it, end)."""

    split: str
    runs: tuple[tuple[str, int, int], ...]


def plan_shards(build: Build) -> list[Any]:
    """Name and cut of every shard, in order of split and number."""
    return [[f"{split}-{k:06d}", asdict(cut)] for split in SPLITS for k, cut in enumerate(_cuts(build, split))]


def names(build: Build) -> list[str]:
    """Names of the shards as they were planned."""
    return [name for name, _ in build.stage(NAME).reduced()]


def read(build: Build, name: str) -> Cut:
    """One shard as it was planned."""
    cut = dict(build.stage(NAME).reduced())[name]
    return Cut(cut["split"], tuple((partition, low, high) for partition, low, high in cut["runs"]))


def _token(build: Build) -> Any:
    return [build.spec.shards.samples_per_shard, build.spec.shards.bytes_per_shard]


PASS = Pass(
    name=NAME,
    over=no_partitions,
    reads=SURVIVORS,
    run=no_run,
    token=_token,
    reduce=plan_shards,
)


def _cuts(build: Build, split: str) -> Iterator[Cut]:
    """Fill one shard after the other as far as the limits let it be."""
    most, limit = build.spec.shards.samples_per_shard, build.spec.shards.bytes_per_shard
    runs, rows, size = list[tuple[str, int, int]](), 0, 0
    for record, sizes in _sizes(build, split):
        ends = np.concatenate([[0], np.cumsum(sizes)])  # bytes before each row, and after the last one
        at, count = 0, record.counts[split]
        while at < count:
            end = min(count, at + most - rows)
            if limit:
                fits = int(np.searchsorted(ends, ends[at] + limit - size, side="right")) - 1
                end = min(end, max(fits, at if rows else at + 1))
                size += int(ends[end] - ends[at])
            if end > at:
                runs.append((record.partition, at, end))
            rows, at = rows + end - at, end
            if at < count or rows == most:
                yield Cut(split, tuple(runs))
                runs, rows, size = [], 0, 0
    if runs:
        yield Cut(split, tuple(runs))


def _sizes(build: Build, split: str) -> Iterator[tuple[Record, npt.NDArray[np.int64]]]:
    """Records of what is packed, in order, with the fetched bytes of each row of the split where they are asked for."""
    records = build.records(SELECTION if SELECTION in build.passes else PAIRS)
    if not build.spec.shards.bytes_per_shard:
        yield from ((record, np.empty(0, np.int64)) for record in records)
        return

    def sizes(record: Record) -> npt.NDArray[np.int64]:
        rows = survivors(build, record.partition, ["bytes", "split"])
        return np.asarray(rows.filter(pc.field("split") == split)["bytes"].to_numpy(), np.int64)

    yield from zip(records, read_at_once(sizes, records), strict=True)
