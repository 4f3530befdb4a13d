"""Watermarks of hosts, stored by the judge `watermark` for its second pass and for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pictures.marks import Mark
from pipeline.store.build import Build

MARK_SCHEMA = pa.schema(
    [
        ("host", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pictures", pa.int64()),
        ("sampled", pa.int32()),  # pictures that the mark was sought in
        ("verdict", pa.string()),  # mark, none, template
        ("share", pa.float32()),  # of the picture that is the same
        ("plane_width", pa.int32()),
        ("plane_height", pa.int32()),
        ("at", pa.list_(pa.int32())),
        ("across", pa.list_(pa.int16())),
        ("down", pa.list_(pa.int16())),
    ]
)
"""A row for each group of equal-sized pictures of a host that was large enough; the last five are `Mark`'s fields."""

AT_ONCE = 64
"""Rows that become Python values together: their lists are long."""

_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?P<host>\[[^\]]*\]|[^/:?#\[\]]+)"


class Group(NamedTuple):
    """Pictures of one host and one size. host: of the image's URL, or its source's name where that has none."""

    host: str
    width: int
    height: int


GROUPED_BY = ["image_url", "source", "width", "height"]
"""Columns that `with_host` needs to tell groups apart."""


def with_host(rows: pa.Table) -> pa.Table:
    """The rows, which have GROUPED_BY, with a column `host`."""
    found = pc.struct_field(pc.extract_regex(rows["image_url"], _HOST), "host")
    return rows.append_column("host", pc.coalesce(pc.utf8_lower(found), rows["source"]))


def groups_of(rows: pa.Table) -> list[Group]:
    """The group of each row of a table with a column `host`."""
    return [Group(*values) for values in zip(*(rows[name].to_pylist() for name in Group._fields), strict=True)]


def bucket_of(host: str, buckets: int) -> int:
    """The partition of curate.marks, of so many, that all pictures of a host belong to."""
    return int.from_bytes(hashlib.blake2b(host.encode(), digest_size=8).digest(), "big") % buckets


def row_of(group: Group, pictures: int, sampled: int, mark: Mark) -> dict[str, Any]:
    plane = dict(zip(("plane_width", "plane_height"), mark.sides, strict=True))
    arrays = {name: getattr(mark, name).tolist() for name in ("at", "across", "down")}
    own = {"pictures": pictures, "sampled": sampled, "verdict": mark.verdict, "share": mark.share}
    return {**group._asdict(), **own, **plane, **arrays}


def mark_of(row: dict[str, Any]) -> Mark:
    arrays = (np.array(row[name], np.int64) for name in ("at", "across", "down"))
    return Mark(row["verdict"], row["share"], (row["plane_width"], row["plane_height"]), *arrays)


def rows_with_mark(build: Build, hosts: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of MARK_SCHEMA whose verdict is `mark`; hosts: of these alone. In memory is one partition's file."""
    wanted = pc.field("verdict") == "mark"
    if hosts is not None:
        wanted &= pc.field("host").isin(pa.array(sorted(hosts), pa.string()))
    stage = build.stage("curate.marks")
    for record in stage.records():
        for batch in stage.table(record, filters=wanted).to_batches(AT_ONCE):
            yield from batch.to_pylist()
