"""Pictures that a report lists without showing them: screen dropped them as not safe for work, or could not judge."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters import pixel_filters
from pipeline.records import SCORE_SCHEMA, DropReason
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS

UNSHOWN = frozenset({DropReason.NSFW.value, DropReason.UNREADABLE.value})
"""What is dropped for these is not shown in a report."""


def unshown_candidates(build: Build, candidate_ids: Iterable[str]) -> set[str]:
    """Those of the candidates whose picture is not shown, since screen dropped it for one of UNSHOWN."""
    stage, unshown = build.stage("screen"), set[str]()
    wanted = pc.field("id").isin(pa.array(sorted(set(candidate_ids)), pa.string()))
    for record in stage.records():
        rows = stage.table(record, DECISIONS, ["id", "reasons"], wanted).to_pylist()
        unshown.update(row["id"] for row in rows if UNSHOWN & set(row["reasons"]))
    return unshown


def unshown_images(build: Build, sha256s: Iterable[str]) -> set[str]:
    """Those of the images that the spec's filters would drop for one of UNSHOWN, as far as any build has scored them.

    The same bytes may also have come under another URL, of a candidate that was dropped before screen.
    """
    images, unshown = set(sha256s), set[str]()
    for f in pixel_filters(build.spec):
        rows = build.store.features(f.score_id).get(images)
        if rows is None:
            continue
        for sha256, score in zip(*(rows[name].to_pylist() for name in SCORE_SCHEMA.names), strict=True):
            fault = f.judge(score)
            if fault is not None and fault.reason.value in UNSHOWN:
                unshown.add(sha256)
    return unshown
