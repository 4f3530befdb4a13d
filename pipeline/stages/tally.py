"""Stage tally: counts for the report what takes a look at every row, in parallel (`pipeline.report.tally`).

A partition is a group of neighbouring partitions of one stage. A build of fewer than FEWEST candidates has none: there
`report` counts itself.

It is no input of `report`, which does without: a build that an older wenlan began goes on, and after a takedown, which
deletes all that was counted, the report counts again.

Limits: as those of the passes.
"""

from __future__ import annotations

from typing import Any

from pipeline import pulse
from pipeline.report import tally
from pipeline.store.build import Build
from pipeline.store.rewrite import Rewrite
from pipeline.store.stage import Stage, StageFile

FEWEST = 1_000_000
"""Candidates of a build below which the report counts them itself."""


def token(build: Build) -> Any:
    """What passes are made of: options of the report, the seed, and the takedowns it must honour."""
    return [build.spec.report.pictures, build.spec.seed, build.store.forgotten_revision()]


def partitions(build: Build) -> list[str]:
    """Groups of partitions; none for a small build, nor for one whose report is done, which an older wenlan made."""
    if build.stage("report").finished():
        return []
    extracted = build.stage("extract").records()
    candidates = sum(record.counts.get(what, 0) for record in extracted for what in ("kept", "dropped"))
    return [str(group) for group in tally.groups(build)] if candidates >= FEWEST else []


def run_partition(build: Build, partition: str) -> None:
    """Count one group and commit it."""
    group, takedowns = tally.Group.named(partition), build.store.takedowns()
    count = group.last - group.first + 1
    pulse.expect(count)
    with build.stage("tally").attempt(partition) as attempt:
        tally.write(attempt, tally.summary(build, group, takedowns, pulse.advance))
        attempt.commit({"records": count}, {"takedowns": takedowns.revision})


def without(rewrite: Rewrite) -> None:
    """Deletes it: whoever reads summaries does without."""
    rewrite.stage.delete_record(rewrite.record.partition)


STAGE = Stage(
    name="tally",
    zh="统计",
    folder="tallied",
    inputs=("shard",),
    version=tally.VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("json"), StageFile("*.arrow")),
    subject="",
    unit="records",
    done=("records",),
    rewrites_others=False,
    without=without,
)
