"""Stage measure: decodes each image once, and stores what later stages need of its pixels as features.

From here to `screen` no stage opens an image again. A picture is decoded at the reduced size that the features need
(`pipeline.features`), one decode for each distinct sha256; rows that STORE/features has already are taken from there,
whichever build made them. A file that is damaged or truncated hurts only its own candidates: each gets a Decision that
names the image's URL. Bytes that are not those that fetch noted are our own disk's fault, not the picture's, and stop
the build. A picture that looks like one that was taken down since it was fetched is dropped.

A tar is read front to back; rows stay columns from the first image to the Parquet file, which is written once.

Limits: a damaged image is tried again in each build, since the cache holds features only; that costs one try at
decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.pictures.jpeg import Bytes
from pipeline.errors import StageError
from pipeline.features import feature_id
from pipeline.processes import pulse
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import FEATURE_SCHEMA, candidates_of
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.image_features import Fault, known_features, measure_images, without_images
from pipeline.store.images import partition_images


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
    known = known_features(build.store, fetched["sha256"].to_pylist())
    done = set(known["sha256"].to_pylist())
    only = set(fetched["sha256"].to_pylist()) - done if build.on is not None else None  # a trial reads what it must
    pulse.expect(fetched.num_rows)
    new, faults = measure_images(_new_images(build, partition, only, done), limit)
    takedowns = build.store.takedowns()
    if takedowns:
        measured = pa.concat_tables([new, known])
        refused = {*takedowns.alike(measured, feature_id()), *takedowns.images(fetched["sha256"].to_pylist())}
        faults |= dict.fromkeys(refused, (DropReason.FORGOTTEN, "this image was taken down"))
        new = without_images(new, refused)
    cache.put(new)
    for sha256, width, height in zip(*(known[c].to_pylist() for c in ("sha256", "width", "height")), strict=True):
        if width * height > limit:
            faults[sha256] = (DropReason.TOO_MANY_PIXELS, f"{width} x {height} pixels; at most {limit:,} are allowed")
    rows = without_images(pa.concat_tables([known, new]).sort_by("sha256"), faults)
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
        address = "" if reason is DropReason.FORGOTTEN else f" ({candidate.image_url[:150]})"
        decisions.append(drop(candidate, "measure", reason, f"{message[:140]}{address}"))
    return candidates.num_rows, decisions


def _new_images(build: Build, partition: str, only: set[str] | None, done: set[str]) -> Iterator[tuple[str, Bytes]]:
    """sha256 and bytes of each image of a partition that is not done. Raises StageError for bytes that changed."""
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
        yield image.sha256, image.data


STAGE = Stage(
    name="measure",
    zh="测量",
    folder="features",
    passes=(
        Pass(
            name="measure",
            follows=True,
            over=partitions,
            reads=("admit", "fetch"),
            run=run_partition,
            token=token,
            version=2,
            files=(PassFile("parquet", FEATURE_SCHEMA, "sha256"),),
        ),
    ),
)
