"""Stage deal: deals the images of each run out by keys, so that stage `meet` can compare them in parallel.

A run becomes flat files: its entries of each key of `pipeline.matching.meetings`, by bucket, and what candidates are
verified by. A build of fewer than `_meetings.FEWEST` pairs has no partition here, and none in `meet`.

Limits: about 2.5 KB on disk per pair; a run is in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import pulse
from pipeline.files.digests import digests_of
from pipeline.matching.holders import images_of
from pipeline.matching.meetings import Table
from pipeline.pictures.signatures import GRIDS, SIZE, tones
from pipeline.stages import _meetings
from pipeline.store.build import Build
from pipeline.store.identities import SIGNATURES
from pipeline.store.stage import Stage, StageFile

TONES_AT_ONCE = 4_096
"""Images whose tones are taken together: their grids stay in a processor's cache."""


def token(build: Build) -> Any:
    return build.spec.dedup.image_distance


def partitions(build: Build) -> list[str]:
    """The runs."""
    return build.stage("rank").partitions() if _meetings.keys_of(build) else []


def run_partition(build: Build, partition: str) -> None:
    """One run: entries of each key by bucket; signatures and the beginning of the bytes' digest by position."""
    rank = build.stage("rank")
    table = rank.table(rank.record(partition), columns=["position", "sha256", "phash", "signature"])
    table = table.take(pa.array(np.argsort(table["position"].to_numpy())))  # positions are 0 to N - 1
    pulse.expect(table.num_rows)
    images = images_of(table)
    grids = images.signature.reshape(-1, GRIDS, SIZE)
    own = [tones(grids[at : at + TONES_AT_ONCE]) for at in range(0, max(1, len(grids)), TONES_AT_ONCE)]
    with build.stage("deal").attempt(partition) as attempt:
        for number, key in enumerate(_meetings.keys_of(build)):
            table_of_key, starts = Table.of(key, images.phash, np.concatenate(own))
            _meetings.write(attempt.path(_meetings.suffix_of(number)), table_of_key, starts)
        attempt.path(SIGNATURES).write_bytes(images.signature.tobytes())
        digests = np.ascontiguousarray(digests_of(table["sha256"])[:, :8])
        attempt.path(_meetings.BYTES).write_bytes(digests.tobytes())
        pulse.advance(table.num_rows)
        attempt.commit({"pairs": table.num_rows})


STAGE = Stage(
    name="deal",
    zh="分桶",
    folder="dealt",
    inputs=("rank",),
    version=_meetings.VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("*.bin"),),
    subject="",
    unit="pairs",
    done=("pairs",),
    rewrites_others=False,
    without=_meetings.without,
)
