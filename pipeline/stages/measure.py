"""Stage measure: decodes each image once, and stores what later stages need of its pixels as features.

From here to `screen` no stage opens an image again. A picture is decoded at the reduced size that the features need
(`pipeline.features`), one decode for each distinct sha256; rows that STORE/features has already are taken from there,
whichever build made them. A file that is damaged or truncated hurts only its own candidates: each gets a Decision that
names the image's URL. Bytes that are not those that fetch noted are our own disk's fault, not the picture's, and stop
the build. A picture that was taken down, or looks like one, is dropped.

A tar is read front to back; rows stay columns from the first image to the Parquet file, which is written once.

Limits: a damaged image is tried again in each build, since the cache holds features only; that costs one try at
decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import pulse
from pipeline.errors import StageError
from pipeline.features import feature_id
from pipeline.features._rows import FeatureRows
from pipeline.pictures.decode import PictureError, decode
from pipeline.pictures.thumbs import REDUCE_TO
from pipeline.records import FEATURE_SCHEMA, Decision, DropReason, candidates_of, drop
from pipeline.store.build import Build
from pipeline.store.images import partition_images
from pipeline.store.stage import Pass, PassFile, Stage
from pipeline.unreadable import OURS, evidence

Fault = tuple[DropReason, str]
"""Why an image is without features, and the evidence."""


def token(build: Build) -> Any:
    return {"features": feature_id(), "max_pixels": build.spec.fetch.max_pixels}


def partitions(build: Build) -> list[str]:
    return build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Features of a fetch partition's images, and a Decision for each candidate whose image has none."""
    fetch, limit = build.stage("fetch"), build.spec.fetch.max_pixels
    columns = ["fetch_id", "sha256"]
    fetched = fetch.table(fetch.record(partition), columns=columns, filters=[("ok", "==", True)])
    cache = build.store.features(feature_id())
    cached = cache.get(fetched["sha256"].to_pylist())
    known = FEATURE_SCHEMA.empty_table() if cached is None else cached.select(FEATURE_SCHEMA.names)
    made, faults = _measure_new(build, partition, fetched, set(known["sha256"].to_pylist()))
    takedowns = build.store.takedowns()
    if takedowns:
        measured = pa.concat_tables([made, known])
        refused = {*takedowns.alike(measured, feature_id()), *takedowns.images(fetched["sha256"].to_pylist())}
        faults |= dict.fromkeys(refused, (DropReason.FORGOTTEN, "this image was taken down"))
        made = _without(made, refused)
    cache.put(made)
    for sha256, width, height in zip(*(known[c].to_pylist() for c in ("sha256", "width", "height")), strict=True):
        if width * height > limit:
            faults[sha256] = (DropReason.TOO_MANY_PIXELS, f"{width} x {height} pixels; at most {limit:,} are allowed")
    rows = _without(pa.concat_tables([known, made]).sort_by("sha256"), faults)
    seen, decisions = _decide(build, partition, fetched, faults)
    with build.stage("measure").attempt(partition) as attempt:
        attempt.write_table("parquet", rows)
        attempt.decide(decisions)
        attempt.commit(
            {
                "seen": seen,
                "kept": seen - len(decisions),
                "dropped": len(decisions),
                "images": rows.num_rows,
                "cached": known.num_rows,
                "damaged": len(faults),
            }
        )


def _without(rows: pa.Table, images: Iterable[str]) -> pa.Table:
    """The rows of all other images."""
    return rows.filter(pc.invert(pc.is_in(rows["sha256"], pa.array(sorted(images), pa.string()))))


def _decide(build: Build, partition: str, fetched: pa.Table, faults: dict[str, Fault]) -> tuple[int, list[Decision]]:
    """Number of candidates with an image, and a Decision for each whose image has a fault."""
    admit = build.stage("admit")
    candidates = admit.table(admit.record(partition))
    # of the others fetch has written the Decision
    candidates = candidates.filter(pc.is_in(candidates["fetch_id"], fetched["fetch_id"]))
    faulty = fetched.filter(pc.is_in(fetched["sha256"], pa.array(list(faults), pa.string())))
    fault_of = {i: faults[s] for i, s in zip(faulty["fetch_id"].to_pylist(), faulty["sha256"].to_pylist(), strict=True)}
    dropped = candidates.filter(pc.is_in(candidates["fetch_id"], faulty["fetch_id"]))
    decisions = []
    for candidate in candidates_of(dropped):
        reason, message = fault_of[candidate.fetch_id]
        where = "" if reason is DropReason.FORGOTTEN else f" ({candidate.image_url[:150]})"
        decisions.append(drop(candidate, "measure", reason, f"{message[:140]}{where}"))
    return candidates.num_rows, decisions


def _measure_new(build: Build, partition: str, fetched: pa.Table, known: set[str]) -> tuple[pa.Table, dict[str, Fault]]:
    """Feature rows, and faults by sha256, of the partition's images that the cache lacks. Raises StageError."""
    rows, faults, done = FeatureRows(), dict[str, Fault](), set(known)
    only = set(fetched["sha256"].to_pylist()) - known if build.on is not None else None  # a trial reads what it must
    pulse.expect(fetched.num_rows)
    for image in partition_images(build, partition, only):
        pulse.advance()
        if image.sha256 in done:
            continue
        done.add(image.sha256)
        if hashlib.sha256(image.data).hexdigest() != image.sha256:
            fetch = build.stage("fetch")
            tar = fetch.folder.at(fetch.record(partition).files["tar"].name)
            todo = "delete the stage's folder to fetch again"
            raise StageError(tar, f"the bytes of {image.fetch_id} differ from those fetched; {todo}")
        try:
            rows.add(image.sha256, len(image.data), decode(image.data, build.spec.fetch.max_pixels, REDUCE_TO))
        except PictureError as e:
            reason = DropReason.TOO_MANY_PIXELS if e.too_many_pixels else DropReason.CORRUPT_IMAGE
            faults[image.sha256] = (reason, str(e))
        except OURS:
            raise
        except Exception as e:
            faults[image.sha256] = (DropReason.UNREADABLE, evidence(e, f"image {image.sha256}"))
    table = rows.table()
    faults |= {sha256: (DropReason.UNREADABLE, fault) for sha256, fault in rows.faults.items()}
    return table, faults


STAGE = Stage(
    name="measure",
    zh="测量",
    folder="features",
    passes=(
        Pass(
            name="measure",
            over=partitions,
            reads=("admit", "fetch"),
            run=run_partition,
            token=token,
            version=2,
            files=(PassFile("parquet", FEATURE_SCHEMA, "sha256"),),
        ),
    ),
)
