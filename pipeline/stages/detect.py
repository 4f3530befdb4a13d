"""Stage detect: finds boxes of interest in every image kept so far, with a cache shared by all builds.

What a detector returns for an image depends on the image's bytes and the detector's id alone, so the raw boxes are
cached in STORE/regions/<detector-id>/ under the image's sha256, and no detector sees an image twice, in any build
(`pipeline.model_runner`). What the contract asks (data_specs/shard.py: clipped, sorted, capped) is done on the
way out, so that another cap does not run a detector again. An image that several detectors lack is decoded once.

Two kinds of detectors see no picture: those that need its shape only, and `given`, whose boxes came with the sources.

A box that covers the whole picture is left out, since training appends that one itself. An image that was measured but
cannot be decoded at full size, or on which a detector fails, is kept without regions, with a warning, and counted as
`undecodable`; many of them are a fault of ours (`publish.max_unreadable`). Where faces are blurred, such an image gets
the box UNSEEN instead, which tells `shard` that its faces were not looked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.pictures.boxes import cleaned
from pipeline.detectors import NONE, Boxes, Detector, Picture, detectors_of, face_detector
from pipeline.detectors._boxes import BOX_CAP, blank, boxes_of, max_boxes, raw_boxes, rows_of, unseen_row
from pipeline.detectors.given import Given
from pipeline.model_runner import Model, model_values
from pipeline.rows.records import BOX_SCHEMA, SOURCE_BOXES
from pipeline.stages import _sort
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.cache import Cache
from pipeline.store.pairs import SURVIVORS, survivors
from pipeline.store.ranges import KeyRange
from pipeline.store.store import Store

log = logging.getLogger("wenlan")


Sides = Mapping[str, tuple[int, int]]
"""Width and height of each image, by sha256."""


def token(build: Build) -> Any:
    ids = [d.detector_id for d in detectors_of(build.spec)]
    return {"detectors": ids, "max_boxes": build.spec.regions.max_boxes, "faces": build.spec.shards.faces}


def partitions(build: Build) -> list[str]:
    return build.stage("fetch").partitions()


def resources(spec: BuildSpec) -> dict[str, float]:
    """A CPU of a task for each thread of the greediest detector, and GPUs of a process with detectors on a GPU."""
    detectors = detectors_of(spec)
    threads = max((getattr(detector, "threads", 1) for detector in detectors), default=1)
    return {"num_cpus": threads, "num_gpus": max((_gpus(spec, detector) for detector in detectors), default=0.0)}


def _gpus(spec: BuildSpec, detector: Detector) -> float:
    return spec.regions.num_gpus if detector.NEEDS_PIXELS and detector.ON_GPU else 0.0


def run_partition(build: Build, partition: str) -> None:
    """One file per detector, `{detector_id}.parquet`: BOX_SCHEMA rows of the partition's kept images, by sha256."""
    kept = survivors(build, partition, ["fetch_id", "sha256", "width", "height"])
    sides: dict[str, tuple[int, int]] = {
        s: (w, h) for s, w, h in zip(*(kept[c].to_pylist() for c in ("sha256", "width", "height")), strict=True)
    }
    detectors = {d.detector_id: d for d in detectors_of(build.spec)}
    models = [
        _BoxModel(name, detector, gpus=_gpus(build.spec, detector))
        for name, detector in detectors.items()
        if detector.NEEDS_PIXELS
    ]
    detected = model_values(build, partition, sides, models)
    for sha256, why in detected.undecodable.items():
        log.warning("detect: image %s gets no regions: %s", sha256, why)
    raw, cached, computed = detected.values, detected.cached, detected.computed
    for name, detector in detectors.items():
        if detector.OF_SOURCES:
            raw[name] = _from_sources(build, partition, kept)
        elif not detector.NEEDS_PIXELS:
            raw[name], new = _from_sides(build, detector, sides)
            cached, computed = cached + len(sides) - new, computed + new

    hidden = face_detector(build.spec)
    regions = 0
    with build.stage("detect").attempt(partition) as attempt:
        for name, detector in detectors.items():
            most = max_boxes(detector, build.spec)
            clean = {s: cleaned(raw[name].get(s, NONE), *sides[s], most) for s in sorted(sides)}
            if hidden is not None and name == hidden.detector_id:
                clean |= {s: unseen_row(*sides[s]) for s in sides if s not in raw[name] or len(clean[s][1]) == BOX_CAP}
            regions += sum(len(scores) for _, scores, _ in clean.values())
            attempt.write_table(f"{name}.parquet", rows_of(clean))
        attempt.commit(
            {
                "seen": kept.num_rows,
                "kept": kept.num_rows,
                "dropped": 0,
                "images": len(sides),
                "cached": cached,
                "detected": computed,
                "undecodable": len(detected.undecodable),
                "regions": regions,
            }
        )


def _from_sources(build: Build, partition: str, kept: pa.Table) -> dict[str, Boxes]:
    """Boxes that came with the rows of the kept images."""
    low, high = KeyRange.of_partition(partition).bounds
    by_url = dict[str, Boxes]()
    for rows in _sort.rows_between(build, SOURCE_BOXES, low, high, ["fetch_id", "boxes"]):
        for fetch_id, boxes in zip(rows["fetch_id"].to_pylist(), rows["boxes"].to_pylist(), strict=True):
            by_url.setdefault(fetch_id, Given.ranked(boxes))
    # in falling order, so that of several URLs with the same bytes the smallest fetch_id decides
    images = sorted(zip(kept["fetch_id"].to_pylist(), kept["sha256"].to_pylist(), strict=True), reverse=True)
    return {sha256: by_url[fetch_id] for fetch_id, sha256 in images if fetch_id in by_url}


def _from_sides(build: Build, detector: Detector, sides: Sides) -> tuple[dict[str, Boxes], int]:
    """Raw boxes of a detector that needs no pixels, from cache or computed and cached; and how many were computed.

    Nothing is claimed: two builds at once may both compute a few.
    """
    cache = build.store.regions(detector.detector_id)
    rows = cache.get(sides)
    raw = {} if rows is None else boxes_of(rows)
    missing = [sha256 for sha256 in sides if sha256 not in raw]
    if missing:
        state = detector.load()
        new = dict(zip(missing, raw_boxes(detector, state, [blank(*sides[s]) for s in missing]), strict=True))
        cache.put(rows_of(new))
        raw |= new
    return raw, len(missing)


@dataclass(frozen=True)
class _BoxModel(Model[Boxes]):
    """A detector that looks at pixels, at full size."""

    detector: Detector

    def cache(self, store: Store) -> Cache:
        return store.regions(self.id)

    def load(self) -> Any:
        return self.detector.load(self.gpus > 0)

    def run(self, state: Any, pictures: Sequence[Picture]) -> Sequence[Boxes]:
        return raw_boxes(self.detector, state, pictures)

    def rows(self, values: Mapping[str, Boxes]) -> pa.Table:
        return rows_of(values)

    def values_of(self, rows: pa.Table) -> dict[str, Boxes]:
        return boxes_of(rows)


STAGE = Stage(
    name="detect",
    zh="检测",
    folder="regions",
    passes=(
        Pass(
            name="detect",
            over=partitions,
            reads=("extract", _sort.NAME, "fetch", *SURVIVORS),
            run=run_partition,
            token=token,
            version=2,
            resources=resources,
            files=(PassFile("*.parquet", BOX_SCHEMA, "sha256"),),
        ),
    ),
)
