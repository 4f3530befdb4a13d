"""What a report or a studio must not show: pictures that curate dropped as not safe for work or could not judge, and
faces, where the spec has them blurred."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from pipeline.detectors import face_detector
from pipeline.detectors._boxes import look
from pipeline.filters import pixel_filters
from pipeline.pictures.decode import Pixels
from pipeline.pictures.faces import mosaic
from pipeline.records import SCORE_SCHEMA, DropReason
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS

UNSHOWN = frozenset({DropReason.NSFW.value, DropReason.UNREADABLE.value})
"""What is dropped for these is not shown in a report."""

Hide = Callable[[Pixels], Pixels]
"""From a picture [H, W, 3] at its full size to the same with its faces made unrecognisable."""


def faces_hider(spec: BuildSpec) -> Hide | None:
    """What hides faces wherever a picture of this spec is shown, by the detector and the mosaic of its shards; None
    where the spec keeps faces. Raises DetectorError.
    """
    detector = face_detector(spec)
    if detector is None:
        return None
    state = detector.load()
    return lambda picture: mosaic(picture, look(detector, state, [picture])[0][0])


def unshown_candidates(build: Build, candidate_ids: Iterable[str]) -> set[str]:
    """Those of the candidates whose picture is not shown, since a judge dropped it for one of UNSHOWN."""
    if "curate" not in build.fingerprints:
        return set()
    stage, unshown = build.stage("curate"), set[str]()
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
