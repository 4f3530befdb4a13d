"""Screen: filters that need a model on pixels look at what dedup kept, once an image in the life of a STORE.

A model costs tens of milliseconds where all of `measure` costs one, so it comes after dedup, when copies are gone, and
its scores are cached in STORE/features/<score-id>/ by the image's sha256: a threshold may be changed, and another build
may hold the same pictures, and no model runs again. An image that several models lack is read and decoded once.

A leader that is dropped here takes its cluster with it: its copies went in dedup, and none of them is called back,
since they show what it shows. For the same reason a later build drops copies of it as duplicates.

A spec that names no such filter has a stage without partitions, and `survivors` are those of dedup.

Limits: an image that cannot be decoded again, though `measure` could, is kept, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SPLITS
from pipeline.filters import Drop, PixelFilter, pixel_filters
from pipeline.pictures.decode import PictureError, Pixels, decode
from pipeline.records import DEDUP_SCHEMA, Decision, DropReason, candidates_of, drop
from pipeline.stages.rank import parts_of
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.images import range_of, read_images
from pipeline.store.partitions import DECISIONS, StageDir
from pipeline.store.stage import Stage, StageFile

log = logging.getLogger("wenlan")

VERSION = 1
INPUTS: tuple[str, ...] = ("dedup",)
ROW_GROUP = 1_000

BATCH, BATCH_PIXELS = 16, 32_000_000
"""A batch is handed to the models when it holds so many pictures, or so many pixels."""

SAVE = 1_000
"""Scores are put into the cache after so many images, so that a killed worker repeats no more."""

SCHEMA = pa.schema([("sha256", pa.string()), ("score", pa.float32())])
"""Of the cached scores."""

UNSHOWN = frozenset({DropReason.NSFW.value})
"""What is dropped for these is not shown in a report."""

Scores = dict[str, float]
"""Score by sha256."""


def token(build: Build) -> Any:
    return [[f.identity(), f.score_id] for f in pixel_filters(build.spec)]


def partitions(build: Build) -> list[str]:
    return build.stage("fetch").partitions() if pixel_filters(build.spec) else []


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split in a fetch partition's range, as dedup has them, and a Decision for each that fails."""
    filters = pixel_filters(build.spec)
    rows = {split: _of_dedup(build, partition, split) for split in SPLITS}
    fetch_id_of: dict[str, str] = {}
    for table in rows.values():
        fetch_id_of |= zip(table["sha256"].to_pylist(), table["fetch_id"].to_pylist(), strict=True)
    scores, looked_at = _scores(build, filters, fetch_id_of)
    faults = {
        sha256: found
        for sha256 in fetch_id_of
        if (
            found := [d for f in filters if sha256 in scores[f.score_id] and (d := f.judge(scores[f.score_id][sha256]))]
        )
    }
    decisions, counts = list[Decision](), {"images": len(fetch_id_of), "scored": looked_at}
    with build.stage("screen").attempt(partition) as attempt:
        for split, table in rows.items():
            failing = pc.is_in(table["sha256"], pa.array(list(faults), pa.string()))
            decisions += _decisions(table.filter(failing), faults)
            kept = table.filter(pc.invert(failing))
            attempt.write_table(f"{split}.parquet", kept, row_group_size=ROW_GROUP)
            counts[split] = kept.num_rows
        attempt.decide(decisions)
        seen = sum(table.num_rows for table in rows.values())
        attempt.commit({"seen": seen, "kept": seen - len(decisions), "dropped": len(decisions), **counts})


def survivors(build: Build) -> StageDir:
    """The stage whose files `{split}.parquet` (DEDUP_SCHEMA) hold what goes on to detect and shard."""
    return build.stage("screen" if pixel_filters(build.spec) else "dedup")


def rows_in(build: Build, partition: str, split: str, columns: list[str] | None = None) -> pa.Table:
    """What goes on of one split, in a fetch partition's range of order keys."""
    stage = survivors(build)
    if stage.name == "screen":
        return stage.table(stage.record(partition), f"{split}.parquet", columns)
    return _of_dedup(build, partition, split, columns)


def unshown_candidates(build: Build, candidate_ids: Iterable[str]) -> set[str]:
    """Those of the candidates whose picture is shown to nobody, since it was dropped for one of UNSHOWN."""
    stage, found = build.stage("screen"), set[str]()
    wanted = pc.field("id").isin(pa.array(sorted(set(candidate_ids)), pa.string()))
    for record in stage.records():
        rows = stage.table(record, DECISIONS, ["id", "reasons"], wanted).to_pylist()
        found.update(row["id"] for row in rows if UNSHOWN & set(row["reasons"]))
    return found


def unshown_images(build: Build, sha256s: Iterable[str]) -> set[str]:
    """Those of the images that the spec's filters would drop for one of UNSHOWN, as far as any build has scored them:
    the same bytes may also have come under another URL, of a candidate that never got here."""
    sha256s = set(sha256s)
    found = set[str]()
    for f in pixel_filters(build.spec):
        for sha256, score in _cached(build.store.features(f.score_id), sha256s).items():
            judged = f.judge(score)
            if judged is not None and judged.reason.value in UNSHOWN:
                found.add(sha256)
    return found


def _of_dedup(build: Build, partition: str, split: str, columns: list[str] | None = None) -> pa.Table:
    low, high = range_of(partition)
    stage = build.stage("dedup")
    record = next(stage.record(run) for run in stage.partitions() if partition in parts_of(run))
    within = [("order_key", ">=", low), ("order_key", "<", high)]
    return stage.table(record, f"{split}.parquet", columns, within)


def _decisions(table: pa.Table, faults: Mapping[str, list[Drop]]) -> Iterator[Decision]:
    for sha256, candidate in zip(table["sha256"].to_pylist(), candidates_of(table), strict=True):
        found = faults[sha256]
        reasons = tuple(dict.fromkeys(d.reason.value for d in found))
        evidence = "; ".join(d.evidence for d in found)
        yield drop(candidate, "screen", found[0].reason, evidence, reasons=reasons)


def _scores(build: Build, filters: list[PixelFilter], images: Mapping[str, str]) -> tuple[dict[str, Scores], int]:
    """Scores by score-id, of the images sha256 -> fetch_id; and how many had to be looked at."""
    caches = {f.score_id: build.store.features(f.score_id) for f in filters}
    scores = {name: _cached(cache, images) for name, cache in caches.items()}
    missing = {f.score_id: (f, set(images) - set(scores[f.score_id])) for f in filters}
    wanted = set().union(*(lacking for _, lacking in missing.values()))
    states = {name: f.load() for name, (f, lacking) in missing.items() if lacking}
    sides = [missing[name][0].NEEDS_SIDE for name in states]
    reduce_to = max(sides) if all(sides) and sides else 0
    new: dict[str, Scores] = {name: {} for name in states}

    def save() -> None:
        for name, found in new.items():
            caches[name].put(pa.table([pa.array(found), pa.array(found.values(), pa.float32())], schema=SCHEMA))
            # as the cache gives them back: judged by one number in every build
            scores[name] |= {s: float(pa.scalar(v, pa.float32()).as_py()) for s, v in found.items()}
            found.clear()

    for batch in _pictures(build, {s: images[s] for s in wanted}, reduce_to):
        for name, state in states.items():
            f, lacking = missing[name]
            asked = [s for s in batch if s in lacking]
            if asked:
                new[name].update(zip(asked, f.score(state, [batch[s] for s in asked]), strict=True))
        if any(len(found) >= SAVE for found in new.values()):
            save()
    save()
    return scores, len(wanted)


def _cached(cache: Cache, keys: Iterable[str]) -> Scores:
    rows = cache.get(keys)
    return {} if rows is None else dict(zip(*(rows[name].to_pylist() for name in SCHEMA.names), strict=True))


def _pictures(build: Build, images: Mapping[str, str], reduce_to: int) -> Iterator[dict[str, Pixels]]:
    """Batches of pictures by sha256, each read and decoded once."""
    batch, pixels = dict[str, Pixels](), 0
    for image in read_images(build, list(images.values())):
        try:
            batch[image.sha256] = decode(image.data, build.spec.fetch.max_pixels, reduce_to).pixels
        except PictureError as e:
            log.warning("screen: image %s cannot be decoded, it is kept: %s", image.sha256, e)
            continue
        pixels += batch[image.sha256].size // 3
        if len(batch) >= BATCH or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = {}, 0
    if batch:
        yield batch


STAGE = Stage(
    name="screen",
    zh="复审",
    folder="screened",
    inputs=INPUTS,
    version=VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=tuple(StageFile(f"{split}.parquet", DEDUP_SCHEMA, "candidate_id") for split in SPLITS),
    rewrites_others=False,
)
