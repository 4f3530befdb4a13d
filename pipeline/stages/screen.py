"""Screen: filters that need a model on pixels judge what dedup kept; an image is scored once in the life of a STORE.

A model costs tens of milliseconds where all of `measure` costs one, so it comes after dedup, when copies are gone, and
its scores are cached in STORE/features/<score-id>/ by the image's sha256 (`pipeline.stages._model_runner`). A threshold
may be changed, and another build may hold the same pictures, and no model runs again.

A leader that is dropped here takes its cluster with it: its copies were dropped in dedup, and none of them is called
back, since they show what it shows. For the same reason a later build drops copies of it as duplicates.

A spec that names no such filter has a stage without partitions, and what goes on is what dedup kept
(`pipeline.stages._survivors`).

An image on which a model fails, or that cannot be decoded again though `measure` could, is dropped as `unreadable`:
nobody knows what it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SPLITS
from pipeline.filters import Drop, PixelFilter, pixel_filters
from pipeline.pictures.decode import Pixels
from pipeline.records import SCORE_SCHEMA, Decision, DropReason, candidates_of, drop
from pipeline.stages._model_runner import Model, model_values
from pipeline.stages._survivors import SPLIT_FILES, split_file, survivors_in
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.stage import Stage
from pipeline.store.store import Store
from pipeline.unreadable import OURS, evidence

ROW_GROUP = 1_000


def token(build: Build) -> Any:
    return [[f.identity(), f.score_id] for f in pixel_filters(build.spec)]


def partitions(build: Build) -> list[str]:
    return build.stage("fetch").partitions() if pixel_filters(build.spec) else []


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split in a fetch partition's range, as dedup has them, and a Decision for each that fails."""
    scorers = [_Scorer(f.score_id, f) for f in pixel_filters(build.spec)]
    rows = {split: survivors_in(build, partition, split, before="screen") for split in SPLITS}
    images = {sha256 for table in rows.values() for sha256 in table["sha256"].to_pylist()}
    scored = model_values(build, partition, images, scorers)
    filters = [(own.filter, scored.values[own.id]) for own in scorers]  # an id takes reading a model: not per image
    drops = {sha256: judge(filters, sha256) for sha256 in images}
    for sha256, why in scored.undecodable.items():
        drops[sha256].append(Drop(DropReason.UNREADABLE, why))
    failed = pa.array([sha256 for sha256, of_image in drops.items() if of_image], pa.string())

    decisions, counts = list[Decision](), {"images": len(images), "scored": len(scored.images)}
    with build.stage("screen").attempt(partition) as attempt:
        for split, table in rows.items():
            failing = pc.is_in(table["sha256"], failed)
            decisions += _decisions(table.filter(failing), drops)
            kept = table.filter(pc.invert(failing))
            attempt.write_table(split_file(split), kept, row_group_size=ROW_GROUP)
            counts[split] = kept.num_rows
        attempt.decide(decisions)
        seen = sum(table.num_rows for table in rows.values())
        attempt.commit({"seen": seen, "kept": seen - len(decisions), "dropped": len(decisions), **counts})


def judge(filters: Sequence[tuple[PixelFilter, Mapping[str, float]]], sha256: str) -> list[Drop]:
    """Every reason to drop an image, in the order of the filters, each with its scores by sha256; empty to keep."""
    judged = (_judge(f, scores[sha256], sha256) for f, scores in filters if sha256 in scores)
    return [fault for fault in judged if fault is not None]


def _judge(pixel_filter: PixelFilter, score: float, sha256: str) -> Drop | None:
    """What a filter says of a score; a fault of its own if it raises."""
    try:
        return pixel_filter.judge(score)
    except OURS:
        raise
    except Exception as e:
        return Drop(DropReason.UNREADABLE, f"{pixel_filter.plugin_name()}: {evidence(e, f'image {sha256}')}")


def _decisions(failing: pa.Table, drops: Mapping[str, list[Drop]]) -> Iterator[Decision]:
    for sha256, candidate in zip(failing["sha256"].to_pylist(), candidates_of(failing), strict=True):
        of_image = drops[sha256]
        reasons = tuple(dict.fromkeys(d.reason.value for d in of_image))
        evidence = "; ".join(d.evidence for d in of_image)
        yield drop(candidate, "screen", of_image[0].reason, evidence, reasons=reasons)


@dataclass(frozen=True)
class _Scorer(Model[float]):
    """The model of a pixel filter. Its id, of version and weights, is all that a score depends on."""

    filter: PixelFilter = field(compare=False)

    @property
    def reduce_to(self) -> int:
        return self.filter.needs_side

    def cache(self, store: Store) -> Cache:
        return store.features(self.id)

    def load(self) -> Any:
        return self.filter.load()

    def run(self, state: Any, pictures: Sequence[Pixels]) -> list[float]:
        # as the cache returns them: an image is judged by one number in every build
        return [float(np.float32(score)) for score in self.filter.score(state, pictures)]

    def rows(self, values: Mapping[str, float]) -> pa.Table:
        return pa.table([pa.array(values), pa.array(values.values(), pa.float32())], schema=SCORE_SCHEMA)

    def values_of(self, rows: pa.Table) -> dict[str, float]:
        return dict(zip(*(rows[name].to_pylist() for name in SCORE_SCHEMA.names), strict=True))


STAGE = Stage(
    name="screen",
    zh="复审",
    folder="screened",
    inputs=("dedup",),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=SPLIT_FILES,
    rewrites_others=False,
)
