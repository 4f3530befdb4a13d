"""Judge screen: filters that run a model on pixels; each image is scored once per STORE.

A model costs tens of milliseconds where all of `measure` costs one, so it comes after dedup, when copies are gone, and
its scores are cached in STORE/features/<score-id>/ by the image's sha256 (`pipeline.model_runner`). A threshold may be
changed, and another build may hold the same pictures, and no model runs again.

An image on which a model fails, or that cannot be decoded again though `measure` could, is dropped as `unreadable`:
nothing tells what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.build import BuildSpec
from pipeline.curate.judging import KEEP, Judge, Verdict, Verdicts
from pipeline.errors import OURS, evidence
from pipeline.filters import Drop, PixelFilter, names_filter, pixel_filters
from pipeline.model_runner import Model, model_values
from pipeline.pictures.decode import Pixels
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import SCORE_SCHEMA
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.store import Store


def token(build: Build) -> Any:
    return [[f.identity(), f.score_id] for f in pixel_filters(build.spec)]


def when(spec: BuildSpec) -> bool:
    return names_filter(spec, PixelFilter)


def judge_pairs(build: Build, partition: str, rows: pa.Table) -> Verdicts:
    scorers = [_Scorer(f.score_id, f) for f in pixel_filters(build.spec)]
    images = dict.fromkeys(rows["sha256"].to_pylist())
    scored = model_values(build, partition, set(images), scorers)
    filters = [(own.filter, scored.values[own.id]) for own in scorers]  # an id takes reading a model: not per image
    drops = {sha256: judge(filters, sha256) for sha256 in images}
    for sha256, why in scored.undecodable.items():
        drops[sha256].append(Drop(DropReason.UNREADABLE, why))
    verdicts = {sha256: Verdict(tuple(of_image)) if of_image else KEEP for sha256, of_image in drops.items()}
    counts = {"images": len(images), "scored": len(scored.images)}
    return Verdicts([verdicts[sha256] for sha256 in rows["sha256"].to_pylist()], counts=counts)


def judge(filters: Sequence[tuple[PixelFilter, Mapping[str, float]]], sha256: str) -> list[Drop]:
    """Every reason to drop an image, in the order of the filters, each with its scores by sha256; empty to keep."""
    judged = (_judge(f, scores[sha256], sha256) for f, scores in filters if sha256 in scores)
    return [fault for fault in judged if fault is not None]


def _judge(pixel_filter: PixelFilter, score: float, sha256: str) -> Drop | None:
    """Returns a filter's fault for a score, or that the filter raised."""
    try:
        return pixel_filter.judge(score)
    except OURS:
        raise
    except Exception as e:
        return Drop(DropReason.UNREADABLE, f"{pixel_filter.plugin_name()}: {evidence(e, f'image {sha256}')}")


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


JUDGE = Judge("screen", "复审", judge_pairs, when, token)
