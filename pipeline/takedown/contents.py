"""Rewrites content that cannot be recreated, without what a takedown removes.

Captures and images are archives, with a table beside them that says where in the archive each page or image lies. What
dedup hands to STORE are its kept images, with signatures and details row by row. STORE points into archives: it is told
where they lie once the partition is committed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files.folder import place_of
from pipeline.files.tars import TarWriter
from pipeline.matching.image_comparison import NO_DETAILS, Details
from pipeline.store.commits import Record
from pipeline.store.identities import DETAILS, SIGNATURES, write_without
from pipeline.store.partitions import StageDir
from pipeline.store.stage import Kind
from pipeline.store.store import Store
from pipeline.takedown.rewrite import Rewrite
from pipeline.web.warc import copy_without


def nothing_moved(store: Store, stage: StageDir, before: Record, after: Record) -> None:
    """Default of `Content.moved`: STORE does not point into these files."""


@dataclass(frozen=True)
class Content:
    """rewrite(rewrite): replaces the files of one partition. moved(store, stage, before, after): tells STORE where the
    files of a partition that was committed again lie now."""

    rewrite: Callable[[Rewrite], None]
    moved: Callable[[Store, StageDir, Record, Record], None] = nothing_moved


def _captures(rewrite: Rewrite) -> None:
    """WARC files without the records of pages that are removed, and the table of pages with the new offsets."""
    moved: dict[str, int] = {}
    for suffix in (suffix for suffix in rewrite.record.files if suffix.endswith("warc.gz")):
        with rewrite.stage.file(rewrite.record, suffix) as source:
            offsets = copy_without(source, rewrite.path(suffix), rewrite.removal.page)
        if offsets is not None:
            moved |= offsets
            rewrite.replace(suffix)
    if moved and "parquet" in rewrite.record.files:
        table = rewrite.stage.table(rewrite.record)
        rows = table.filter(pc.invert(rewrite.removal.mask(table))).to_pylist()
        for row in rows:
            row["warc_offset"] = moved.get(str(row["warc_offset"]), row["warc_offset"])
        rewrite.write_table("parquet", pa.Table.from_pylist(rows, schema=table.schema))


def _captures_moved(store: Store, stage: StageDir, before: Record, after: Record) -> None:
    """Else the next crawl of a site would ask for everything again."""
    at = stage.folder.at
    places = {place_of(at(ref.name)): at(after.files[suffix].name) for suffix, ref in before.files.items()}
    store.relocate_crawls(lambda place: places.get(place_of(place), place))


def _images(rewrite: Rewrite) -> None:
    """The tar and its table without the images that are removed."""
    table = rewrite.stage.table(rewrite.record)
    remaining = rewrite.removal.remaining_rows(table)
    if remaining is None:
        return
    rows = remaining.to_pylist()
    with (
        rewrite.stage.file(rewrite.record, "tar") as source,
        source.open("rb") as f,
        rewrite.path("tar").open("wb") as out,
    ):
        writer = TarWriter(out)
        for row in sorted((row for row in rows if row["ok"]), key=lambda row: int(row["offset"])):
            f.seek(row["offset"])
            row["offset"] = writer.add(row["fetch_id"], f.read(row["size"]))
        writer.close()
    rewrite.replace("tar")
    rewrite.write_table("parquet", pa.Table.from_pylist(rows, schema=table.schema))


def _images_moved(store: Store, stage: StageDir, before: Record, after: Record) -> None:
    """Else images that STORE/fetched knew in the old tar would be fetched again."""
    tars = (store.relative_place(stage.folder.at(record.files["tar"].name)) for record in (before, after))
    cache, old, new = store.fetched(), *tars
    if old == new:
        return
    places = {row["fetch_id"]: row["offset"] for row in stage.table(after).to_pylist() if row["ok"]}
    known = cache.get(places)
    if known is not None:
        rows = [
            {**row, "tar": new, "offset": places[row["fetch_id"]]}
            for row in known.to_pylist()
            if store.relative_place(store.resolve_place(row["tar"])) == old
        ]
        cache.put(pa.Table.from_pylist(rows, schema=known.schema))


def _identities(rewrite: Rewrite) -> None:
    """Rewrites what a build hands to STORE, without the removed images. Its texts stay: hashes of what was compared."""
    stage, record = rewrite.stage, rewrite.record
    images = stage.table(record, "images.parquet")
    mask = np.array(rewrite.removal.mask(images).to_pylist(), np.bool_)
    if not mask.any():
        return
    parts = [part for part in ("images.parquet", SIGNATURES, "placeholders.parquet", DETAILS) if part in record.files]
    with contextlib.ExitStack() as files:
        signatures = np.memmap(files.enter_context(stage.file(record, SIGNATURES)), np.uint8, "r")
        details = Details.read(files.enter_context(stage.file(record, DETAILS))) if DETAILS in parts else NO_DETAILS
        looks = signatures.reshape(images.num_rows, -1), details
        placeholders = stage.table(record, "placeholders.parquet")
        write_without({part: rewrite.path(part) for part in parts}, images, looks, placeholders, mask)
    for part in parts:
        rewrite.replace(part)


CONTENTS: dict[Kind, Content] = {
    "captures": Content(_captures, _captures_moved),
    "images": Content(_images, _images_moved),
    "identities": Content(_identities),
}
"""By the kind of a pass's files, how one partition of them is rewritten."""
