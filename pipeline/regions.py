"""Detect: boxes of interest in every image that was kept so far, from a cache that all builds share.

What a detector gives for an image depends on the image's bytes and the detector's id alone, so the raw boxes lie in
STORE/regions/<detector-id>/ under the image's sha256 and no image is looked at twice by one detector, in any build.
What the contract asks (data_specs/shard.py: clipped, sorted, capped) is done on the way out, so that another cap does
not run a detector again. An image that several detectors lack is decoded once.

A box that covers the whole picture is left out, since training appends that one itself. Limits: an image that was
measured but cannot be decoded at full size gets no regions, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import REGION_SCHEMA, SPLITS
from pipeline import screen
from pipeline.detectors import Boxes, Detector, Picture, detectors_of
from pipeline.errors import DetectorError
from pipeline.pictures import PictureError, decode
from pipeline.store import Build

log = logging.getLogger("wenlan")

VERSION = 1
INPUTS: tuple[str, ...] = ("screen",)

SCHEMA = pa.schema([field for field in REGION_SCHEMA if field.name != "key"])
"""sha256, boxes (R x 4 flattened), scores, labels: of the cache (raw) and of the stage's files (clean)."""

BATCH, BATCH_PIXELS = 16, 32_000_000
"""A batch is handed to the detectors when it holds so many pictures, or so many pixels."""


def token(build: Build) -> Any:
    ids = [d.detector_id for d in detectors_of(build.spec)]
    return {"detectors": ids, "max_boxes": build.spec.regions.max_boxes}


def partitions(build: Build) -> list[str]:
    return build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """One file a detector, `{detector_id}.parquet`: SCHEMA rows of the images kept in the partition, by sha256."""
    kept = _kept(build, partition)
    sides: dict[str, tuple[int, int]] = {
        s: (w, h) for s, w, h in zip(*(kept[c].to_pylist() for c in ("sha256", "width", "height")), strict=True)
    }
    detectors = {d.detector_id: d for d in detectors_of(build.spec)}
    raw, missing = dict[str, dict[str, Boxes]](), dict[str, set[str]]()
    for name in detectors:
        rows = build.store.regions(name).get(sides)
        raw[name] = {} if rows is None else boxes_of(rows)
        missing[name] = set(sides) - set(raw[name])
    cached = sum(len(found) for found in raw.values())
    unseen = _detect(build, partition, detectors, missing, sides, raw)
    regions = 0
    with build.stage("detect").attempt(partition) as attempt:
        for name in detectors:
            none = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
            clean = {s: cleaned(raw[name].get(s, none), *sides[s], build.spec.regions.max_boxes) for s in sorted(sides)}
            regions += sum(len(scores) for _, scores, _ in clean.values())
            attempt.write_table(f"{name}.parquet", rows_of(clean))
        attempt.commit(
            {
                "seen": kept.num_rows,
                "kept": kept.num_rows,
                "dropped": 0,
                "images": len(sides),
                "cached": cached,
                "undecodable": unseen,
                "regions": regions,
            }
        )


def _kept(build: Build, partition: str) -> pa.Table:
    """sha256, width, height of the pairs that go on, in the partition's range of order keys."""
    columns = ["sha256", "width", "height"]
    return pa.concat_tables([screen.rows_in(build, partition, split, columns) for split in SPLITS])


def _detect(
    build: Build,
    partition: str,
    detectors: Mapping[str, Detector],
    missing: Mapping[str, set[str]],
    sides: Mapping[str, tuple[int, int]],
    raw: dict[str, dict[str, Boxes]],
) -> int:
    """Fill `raw`, and the cache, with what is missing; gives the number of images that could not be decoded."""
    looking = [name for name in detectors if missing[name] and detectors[name].NEEDS_PIXELS]
    states = {name: detectors[name].load() for name in detectors if missing[name]}

    def detect(names: Iterable[str], pictures: Mapping[str, Picture]) -> None:
        for name in names:
            asked = [sha256 for sha256 in pictures if sha256 in missing[name]]
            if asked:
                found = look(detectors[name], states[name], [pictures[sha256] for sha256 in asked])
                raw[name].update(zip(asked, found, strict=True))

    detect((name for name in states if name not in looking), {s: blank(*sides[s]) for s in sides})
    unseen = 0
    for batch, faults in _pictures(build, partition, {s for name in looking for s in missing[name]}):
        detect(looking, batch)
        unseen += faults
    for name in states:
        new = {sha256: raw[name][sha256] for sha256 in sorted(missing[name]) if sha256 in raw[name]}
        build.store.regions(name).put(rows_of(new))
    return unseen


def _pictures(build: Build, partition: str, wanted: set[str]) -> Iterator[tuple[dict[str, Picture], int]]:
    """Batches of the wanted images by sha256, each decoded once; and how many could not be."""
    batch, pixels, faults = dict[str, Picture](), 0, 0
    if not wanted:
        return
    for _, sha256, data in build.images(partition, wanted):
        if sha256 not in wanted:
            continue
        wanted.discard(sha256)  # the same image under another URL is not even read
        try:
            batch[sha256] = decode(data, build.spec.fetch.max_pixels).pixels
        except PictureError as e:
            log.warning("detect: image %s cannot be decoded at full size, it gets no regions: %s", sha256, e)
            faults += 1
            continue
        pixels += batch[sha256].size // 3
        if len(batch) >= BATCH or pixels >= BATCH_PIXELS:
            yield batch, faults
            batch, pixels, faults = {}, 0, 0
    yield batch, faults


def blank(width: int, height: int) -> Picture:
    """One byte, seen as a picture of any size: a detector that needs no pixels costs no decoding."""
    return np.broadcast_to(np.uint8(0), (height, width, 3))


def look(detector: Detector, state: Any, pictures: Sequence[Picture]) -> Sequence[Boxes]:
    """Raw boxes of each picture, of the right shapes. Raises DetectorError that names the detector."""
    name, found = detector.detector_id, detector.detect(state, pictures)
    if len(found) != len(pictures):
        raise DetectorError(name, f"gave boxes of {len(found)} pictures for {len(pictures)}")
    for boxes, scores, labels in found:
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(scores) == len(labels):
            shapes = f"{boxes.shape}, {scores.shape}, {labels.shape}"
            raise DetectorError(name, f"gave boxes, scores, labels of shapes {shapes}; they are [R, 4], [R], [R]")
    return found


def cleaned(raw: Boxes, width: int, height: int, max_boxes: int) -> Boxes:
    """What the contract asks of the boxes of a picture [R, 4]: finite, inside it, at least a pixel wide and high,
    none twice (the best score stays), not the whole picture, scores descending, at most max_boxes.

    Equal scores are ordered by place from the top left, so that the result does not depend on the raw order.
    """
    boxes, scores, labels = raw
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    boxes, scores, labels = boxes[finite], scores[finite].astype(np.float32), labels[finite].astype(np.int32)
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    sound = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    sound &= (boxes != np.array([0, 0, width, height], np.float32)).any(axis=1)
    boxes, scores, labels = boxes[sound], scores[sound], labels[sound]
    order = np.lexsort((labels, boxes[:, 2], boxes[:, 3], boxes[:, 0], boxes[:, 1], -scores))
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    _, first = np.unique(boxes, axis=0, return_index=True)
    stay = np.sort(first)[:max_boxes]
    return boxes[stay], scores[stay], labels[stay]


def rows_of(found: Mapping[str, Boxes]) -> pa.Table:
    """SCHEMA rows, in the mapping's order."""
    return pa.table(
        {
            "sha256": pa.array(list(found), pa.string()),
            "boxes": pa.array([boxes.ravel() for boxes, _, _ in found.values()], SCHEMA.field("boxes").type),
            "scores": pa.array([scores for _, scores, _ in found.values()], SCHEMA.field("scores").type),
            "labels": pa.array([labels for _, _, labels in found.values()], SCHEMA.field("labels").type),
        },
        schema=SCHEMA,
    )


def boxes_of(rows: pa.Table) -> dict[str, Boxes]:
    """Boxes by sha256, of a table with at least SCHEMA's columns."""
    found: dict[str, Boxes] = {}
    for sha256, boxes, scores, labels in zip(*(rows[name] for name in SCHEMA.names), strict=True):
        found[sha256.as_py()] = (
            _array(boxes, np.float32).reshape(-1, 4),
            _array(scores, np.float32),
            _array(labels, np.int32),
        )
    return found


def _array(values: Any, kind: type[Any]) -> Any:
    return pc.cast(values.values, pa.from_numpy_dtype(kind)).to_numpy(zero_copy_only=False)
