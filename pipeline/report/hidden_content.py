"""Content that reports and the studio hide.

Neither picture nor text nor URL of what was opted out, refused by robots.txt or by the address guard, or taken down. No
picture that a judge dropped as not safe for work or could not judge. No faces, where the spec has them blurred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from data_specs.build import BuildSpec
from pipeline.detectors import face_detector
from pipeline.detectors._boxes import raw_boxes
from pipeline.filters import pixel_filters
from pipeline.pictures.decode import Pixels
from pipeline.pictures.faces import mosaic
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import SCORE_SCHEMA, sha256_hex
from pipeline.store.build import Build
from pipeline.store.sql import Tables, head
from pipeline.store.takedowns import Takedowns

HIDDEN = frozenset(
    reason.value
    for reason in (
        DropReason.OPT_OUT,
        DropReason.FORGOTTEN,
        DropReason.ROBOTS_DISALLOWED,
        DropReason.ROBOTS_UNREACHABLE,
        DropReason.EGRESS_REFUSED,
    )
)
"""Reasons whose candidates are never shown."""

HIDDEN_PICTURES = frozenset({DropReason.NSFW.value, DropReason.UNREADABLE.value})
"""Reasons whose drops are shown without their picture."""

Hide = Callable[[Pixels], Pixels]
"""From a picture [H, W, 3] at its full size to the same with its faces made unrecognisable."""


def faces_hider(spec: BuildSpec) -> Hide | None:
    """Returns what hides faces wherever a picture of this spec is shown, by the detector and mosaic of its shards; None
    where the spec keeps faces. Raises DetectorError.
    """
    detector = face_detector(spec)
    if detector is None:
        return None
    state = detector.load()
    return lambda picture: mosaic(picture, raw_boxes(detector, state, [picture])[0][0])


def make_refused(tables: Tables, takedowns: Takedowns) -> None:
    """Make what `may_show` and `showable_rows` ask: `refused`, a table of the first 64 bits of the fetch_ids of images,
    and of the ids of pages, that are never shown."""

    def taken_down(fetch_id: Any, url: Any, page_url: Any) -> pa.Array:
        rows = pa.table({"fetch_id": fetch_id, "url": url, "page_url": page_url})
        return takedowns.taken_down_mask(rows).combine_chunks()

    if takedowns.hashes:
        tables.define("taken_down", taken_down, ["VARCHAR"] * 3, "BOOLEAN")
    opted_out = DropReason.OPT_OUT.value
    tables.execute(
        f"CREATE TEMP TABLE refused AS SELECT DISTINCT coalesce({head('one')}, 0) AS head FROM ("
        f"SELECT fetch_id AS one FROM decisions WHERE subject = 'candidate' AND fetch_id <> '' AND {_NEVER} "
        f"UNION ALL SELECT id FROM decisions WHERE subject = 'capture' AND reason = '{opted_out}')"
    )


_NEVER = f"reason IN ({', '.join(repr(reason) for reason in sorted(HIDDEN))})"


def showable_rows(takedowns: Takedowns) -> str:
    """SQL of which decisions on candidates may be shown, but for images refused elsewhere (`may_show`)."""
    return f"(NOT {_NEVER}{' AND NOT taken_down(fetch_id, url, page_url)' if takedowns.hashes else ''})"


def may_show(fetch_id: str) -> str:
    """SQL of whether an image, or a page, was never refused. fetch_id: SQL of its id."""
    return f"coalesce({head(fetch_id)}, 0) NOT IN (SELECT head FROM refused)"


def without_hidden(tables: Tables, takedowns: Takedowns, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows about candidates, of this build or of others, that may be shown."""
    named = [(row, {row["fetch_id"], sha256_hex(row["page_url"])}) for row in rows]
    sql = f"SELECT one FROM (SELECT unnest(?::VARCHAR[]) AS one) WHERE NOT {may_show('one')}"
    refused = set(tables.column(sql, [sorted(set[str]().union(*(ids for _, ids in named)))]))
    return [
        row
        for row, ids in named
        if not (ids & refused or takedowns.names(row) or row.get("sha256", "") in takedowns.hashes)
    ]


def hidden_candidates(tables: Tables, candidate_ids: Iterable[str]) -> set[str]:
    """Returns the candidates whose picture is not shown, since a judge dropped it for one of HIDDEN_PICTURES."""
    sql = (
        "SELECT id FROM decisions WHERE stage = 'curate' AND id IN (SELECT unnest(?::VARCHAR[])) "
        "AND list_has_any(reasons, ?::VARCHAR[])"
    )
    return set(tables.column(sql, [sorted(set(candidate_ids)), sorted(HIDDEN_PICTURES)]))


def hidden_images(build: Build, sha256s: Iterable[str]) -> set[str]:
    """Returns the images that the spec's filters drop for one of HIDDEN_PICTURES, as far as any build has scored them.

    The same bytes may also have come under another URL, of a candidate that was dropped before screen.
    """
    images, hidden = set(sha256s), set[str]()
    for f in pixel_filters(build.spec):
        rows = build.store.features(f.score_id).get(images)
        if rows is None:
            continue
        for sha256, score in zip(*(rows[name].to_pylist() for name in SCORE_SCHEMA.names), strict=True):
            fault = f.judge(score)
            if fault is not None and fault.reason.value in HIDDEN_PICTURES:
                hidden.add(sha256)
    return hidden
