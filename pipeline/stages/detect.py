"""Detect: boxes of interest in every image that was kept so far, from a cache that all builds share.

What a detector gives for an image depends on the image's bytes and the detector's id alone, so the raw boxes lie in
STORE/regions/<detector-id>/ under the image's sha256 and no image is looked at twice by one detector, in any build.
What the contract asks (data_specs/shard.py: clipped, sorted, capped) is done on the way out, so that another cap does
not run a detector again. An image that several detectors lack is decoded once.

A box that covers the whole picture is left out, since training appends that one itself. Limits: an image that was
measured but cannot be decoded at full size gets no regions, with a warning.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.build import BuildSpec
from data_specs.shard import REGION_SCHEMA, SPLITS
from pipeline.detectors import NONE, Boxes, Detector, Picture, detectors_of
from pipeline.detectors.given import Given
from pipeline.errors import DetectorError, StoreError
from pipeline.pictures.decode import PictureError, decode
from pipeline.stages import screen
from pipeline.stages.extract import BOXES
from pipeline.store.build import Build
from pipeline.store.claims import claim
from pipeline.store.images import range_of
from pipeline.store.stage import Stage, StageFile
from pipeline.store.store import Store

log = logging.getLogger("wenlan")

VERSION = 1
INPUTS: tuple[str, ...] = ("screen",)

SCHEMA = pa.schema([field for field in REGION_SCHEMA if field.name != "key"])
"""sha256, boxes (R x 4 flattened), scores, labels: of the cache (raw) and of the stage's files (clean)."""

BATCH, BATCH_PIXELS = 16, 32_000_000
"""A batch is handed to the detectors when it holds so many pictures, or so many pixels."""

SAVE = 2_000
"""New images of a detector after which they go into the cache: more than that no kill can lose of a partition."""

WAIT_S = 0.5
"""Between two looks at whether another build's worker is done with what we need too."""


def token(build: Build) -> Any:
    ids = [d.detector_id for d in detectors_of(build.spec)]
    return {"detectors": ids, "max_boxes": build.spec.regions.max_boxes}


def partitions(build: Build) -> list[str]:
    return build.stage("fetch").partitions()


def resources(spec: BuildSpec) -> dict[str, float]:
    """What a worker takes: a CPU for each thread of the greediest detector, and the spec's share of a GPU."""
    threads = max((getattr(detector, "threads", 1) for detector in detectors_of(spec)), default=1)
    return {"num_cpus": threads, **({"num_gpus": spec.regions.num_gpus} if spec.regions.num_gpus else {})}


def run_partition(build: Build, partition: str) -> None:
    """One file a detector, `{detector_id}.parquet`: SCHEMA rows of the images kept in the partition, by sha256."""
    kept = _kept(build, partition)
    sides: dict[str, tuple[int, int]] = {
        s: (w, h) for s, w, h in zip(*(kept[c].to_pylist() for c in ("sha256", "width", "height")), strict=True)
    }
    detectors = {d.detector_id: d for d in detectors_of(build.spec)}
    given = {name: _of_sources(build, partition, kept) for name, d in detectors.items() if d.OF_SOURCES}
    raw = {name: _cached(build, name, sides) for name in detectors if name not in given}
    cached = sum(len(found) for found in raw.values())
    raw |= {name: dict.fromkeys(sides, NONE) | found for name, found in given.items()}
    detected, unseen = _complete(build, partition, detectors, sides, raw)
    regions = 0
    with build.stage("detect").attempt(partition) as attempt:
        for name in detectors:
            clean = {s: cleaned(raw[name].get(s, NONE), *sides[s], build.spec.regions.max_boxes) for s in sorted(sides)}
            regions += sum(len(scores) for _, scores, _ in clean.values())
            attempt.write_table(f"{name}.parquet", rows_of(clean))
        attempt.commit(
            {
                "seen": kept.num_rows,
                "kept": kept.num_rows,
                "dropped": 0,
                "images": len(sides),
                "cached": cached,
                "detected": detected,
                "undecodable": unseen,
                "regions": regions,
            }
        )


def _of_sources(build: Build, partition: str, kept: pa.Table) -> dict[str, Boxes]:
    """Boxes that came with the rows of the kept images."""
    low, high = range_of(partition)
    within = (pc.field("order_key") >= low) & (pc.field("order_key") < high)
    stage, by_url = build.stage("extract"), dict[str, Boxes]()
    for record in stage.records():
        if BOXES in record.files:
            rows = stage.table(record, BOXES, ["fetch_id", "boxes"], within)
            for fetch_id, boxes in zip(rows["fetch_id"].to_pylist(), rows["boxes"].to_pylist(), strict=True):
                by_url.setdefault(fetch_id, Given.ranked(boxes))
    images = sorted(zip(kept["fetch_id"].to_pylist(), kept["sha256"].to_pylist(), strict=True), reverse=True)
    return {sha256: by_url[fetch_id] for fetch_id, sha256 in images if fetch_id in by_url}


def _cached(build: Build, detector_id: str, keys: Iterable[str]) -> dict[str, Boxes]:
    rows = build.store.regions(detector_id).get(keys)
    return {} if rows is None else boxes_of(rows)


def _kept(build: Build, partition: str) -> pa.Table:
    """fetch_id, sha256, width, height of the pairs that go on, in the partition's range of order keys."""
    columns = ["fetch_id", "sha256", "width", "height"]
    return pa.concat_tables([screen.rows_in(build, partition, split, columns) for split in SPLITS])


def _complete(
    build: Build,
    partition: str,
    detectors: Mapping[str, Detector],
    sides: Mapping[str, tuple[int, int]],
    raw: dict[str, dict[str, Boxes]],
) -> tuple[int, int]:
    """Fill `raw`, and the cache, with what is missing; gives how many images were detected (by each detector) and how
    many could not be decoded.

    What a worker of another build is at is left to it and waited for.
    """
    missing = {name: set(sides) - set(raw[name]) for name in detectors}
    detected = unseen = 0
    while any(missing.values()):
        with contextlib.ExitStack() as claims:
            mine = {}
            for name, wanted in missing.items():
                shared = detectors[name].NEEDS_PIXELS
                mine[name] = claims.enter_context(claim(build.store.regions(name).folder, wanted)) if shared else wanted
                late = _cached(build, name, wanted) if shared else {}  # come in since we looked
                raw[name].update(late)
                missing[name] = wanted - mine[name] - set(late)
                mine[name] = mine[name] - set(late)
            unseen += _detect(build, partition, detectors, mine, sides, raw)
            detected += sum(1 for name, keys in mine.items() for sha256 in keys if sha256 in raw[name])
        if any(missing.values()):
            time.sleep(WAIT_S)
    return detected, unseen


def _detect(
    build: Build,
    partition: str,
    detectors: Mapping[str, Detector],
    missing: Mapping[str, set[str]],
    sides: Mapping[str, tuple[int, int]],
    raw: dict[str, dict[str, Boxes]],
) -> int:
    """Run the detectors over what each is missing, into `raw` and the cache; gives the number of undecodable images."""
    looking = [name for name in detectors if missing[name] and detectors[name].NEEDS_PIXELS]
    gpu = build.spec.regions.num_gpus > 0
    states = {name: _held(name, detectors[name], gpu) for name in detectors if missing[name]}
    new: dict[str, dict[str, Boxes]] = {name: {} for name in states}

    def detect(names: Iterable[str], pictures: Mapping[str, Picture]) -> None:
        for name in names:
            asked = [sha256 for sha256 in pictures if sha256 in missing[name]]
            if asked:
                found = look(detectors[name], states[name], [pictures[sha256] for sha256 in asked])
                new[name].update(zip(asked, found, strict=True))
            if len(new[name]) >= SAVE:
                save(name)

    def save(name: str) -> None:
        build.store.regions(name).put(rows_of({sha256: new[name][sha256] for sha256 in sorted(new[name])}))
        raw[name].update(new[name])
        new[name].clear()

    detect((name for name in states if name not in looking), {s: blank(*sides[s]) for s in sides})
    unseen = 0
    for batch, faults in _pictures(build, partition, {s for name in looking for s in missing[name]}):
        detect(looking, batch)
        unseen += faults
    for name in states:
        save(name)
    return unseen


@functools.lru_cache(4)
def _held(detector_id: str, detector: Detector, gpu: bool) -> Any:
    """What a detector has loaded: once in a worker process, which does many partitions. The id tells other weights."""
    return detector.load(gpu)


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


def stats(store: Store) -> list[dict[str, Any]]:
    """What each detector's cache holds: detector, images, regions, commits, bytes, and when it was last written."""
    found = []
    for name in (store.folder / "regions").names():
        cache = store.regions(name)
        images = regions = size = commits = 0
        for commit in cache.commits():
            with cache.folder.local(commit) as path:
                table = pq.read_table(path, columns=["scores"])
                images += table.num_rows
                regions += int(pc.sum(pc.list_value_length(table["scores"])).as_py() or 0)
                size += path.stat().st_size
            commits += 1
        last = max((int(commit.partition("-")[0]) for commit in cache.commits()), default=0)
        written = datetime.datetime.fromtimestamp(last / 1e9, datetime.timezone.utc).isoformat(timespec="seconds")
        entry = {"detector": name, "images": images, "regions": regions, "commits": commits, "bytes": size}
        found.append({**entry, "written": written if last else ""})
    return found


def prune(store: Store, detectors: Sequence[str] = (), before: str = "", dry_run: bool = False) -> list[dict[str, Any]]:
    """Remove whole detectors from the cache: those named, and with `before` (RFC 3339) those not written since.

    Gives the stats of what went, or with dry_run would go. What builds have beside their shards stays; an image is
    detected again when next asked for. Raises StoreError for a detector that is not there.
    """
    known = {entry["detector"]: entry for entry in stats(store)}
    for name in detectors:
        if name not in known:
            raise StoreError(
                (store.folder / "regions").url, f"has no detector {name}; it has {', '.join(known) or 'none'}"
            )
    gone = [e for name, e in known.items() if name in detectors or (before and e["written"] < before)]
    for entry in [] if dry_run else gone:
        (store.folder / "regions").delete(entry["detector"])
    return gone


STAGE = Stage(
    name="detect",
    zh="检测",
    folder="regions",
    inputs=INPUTS,
    version=VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    resources=resources,
    files=(StageFile("*.parquet", SCHEMA, "sha256"),),
    rewrites_others=False,
)
