"""Measure: each image is decoded once, and what later stages ask about pixels is kept as features.

From here to `detect` nobody opens an image again. A picture is decoded at the reduced size that the features need
(`pipeline.features`), one decode for each distinct sha256; rows that STORE/features knows already are taken from
there, whichever build made them. A file that is damaged or truncated hurts only its own candidates: each gets a
Decision that names the image's URL.

Limits: damage is found anew in each build, since the cache holds features only; it costs one try at decoding.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.features import REDUCE_TO, Feature, View, feature_id, features
from pipeline.pictures import PictureError, decode
from pipeline.records import FEATURE_SCHEMA, Decision, DropReason, candidates_of, drop
from pipeline.store import Build

VERSION = 1
INPUTS: tuple[str, ...] = ("fetch",)

Fault = tuple[DropReason, str]
"""Why an image has no features, and what was seen."""


def token(build: Build) -> Any:
    return {"features": feature_id(), "max_pixels": build.spec.fetch.max_pixels}


def partitions(build: Build) -> list[str]:
    return build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Features of a fetch partition's images, and a Decision for each candidate whose image gives none."""
    fetch, admit = build.stage("fetch"), build.stage("admit")
    fetched = fetch.table(
        fetch.record(partition), columns=["fetch_id", "sha256"], filters=[("ok", "==", True)]
    ).to_pylist()
    sha256_of: dict[str, str] = {row["fetch_id"]: row["sha256"] for row in fetched}
    cache = build.store.features(feature_id())
    cached = cache.get(sha256_of.values())
    known = [] if cached is None else cached.select(FEATURE_SCHEMA.names).to_pylist()
    made, faults = _measure_new(build, partition, {row["sha256"] for row in known})
    cache.put(pa.Table.from_pylist(made, schema=FEATURE_SCHEMA))

    limit = build.spec.fetch.max_pixels
    for row in known:
        if row["width"] * row["height"] > limit:
            message = f"{row['width']} x {row['height']} pixels, {limit:,} are allowed"
            faults[row["sha256"]] = (DropReason.TOO_MANY_PIXELS, message)
    rows = sorted((r for r in [*known, *made] if r["sha256"] not in faults), key=lambda r: str(r["sha256"]))

    seen, decisions = 0, list[Decision]()
    for candidate in candidates_of(admit.table(admit.record(partition))):
        sha256 = sha256_of.get(candidate.fetch_id)
        if sha256 is None:
            continue  # fetch has said why
        seen += 1
        if sha256 in faults:
            reason, message = faults[sha256]
            decisions.append(drop(candidate, "measure", reason, f"{message[:140]} ({candidate.image_url[:150]})"))
    with build.stage("measure").attempt(partition) as attempt:
        attempt.write_table("parquet", pa.Table.from_pylist(rows, schema=FEATURE_SCHEMA))
        attempt.decide(decisions)
        attempt.commit(
            {
                "seen": seen,
                "kept": seen - len(decisions),
                "dropped": len(decisions),
                "images": len(rows),
                "cached": len(known),
                "damaged": len(faults),
            }
        )


def _measure_new(build: Build, partition: str, known: set[str]) -> tuple[list[dict[str, Any]], dict[str, Fault]]:
    """Feature rows, and faults by sha256, of the partition's images that are not known."""
    plugins, rows, faults = features(), list[dict[str, Any]](), dict[str, Fault]()
    done = set(known)
    for _, sha256, data in build.images(partition):
        if sha256 in done:
            continue
        done.add(sha256)
        try:
            rows.append({"sha256": sha256, **measure_image(data, build.spec.fetch.max_pixels, plugins)})
        except PictureError as e:
            reason = DropReason.TOO_MANY_PIXELS if e.too_many_pixels else DropReason.CORRUPT_IMAGE
            faults[sha256] = (reason, str(e))
    return rows, faults


def measure_image(data: bytes, max_pixels: int, plugins: dict[str, Feature] | None = None) -> dict[str, Any]:
    """The columns of FEATURE_SCHEMA but sha256, from the bytes of one image. Raises PictureError."""
    picture = decode(data, max_pixels, reduce_to=REDUCE_TO)
    view, header = View(picture), picture.header
    row: dict[str, Any] = {
        "format": header.format,
        "width": header.width,
        "height": header.height,
        "bytes": len(data),
        "frames": header.frames,
        "alpha": header.alpha,
        "orientation": header.orientation,
    }
    for column, feature in (plugins or features()).items():
        row[column] = feature.of(view)
    return row
