"""Stage gather: the rows that extract left in many files, in few of which a range of order keys can be read.

Each partition of `admit`, `fetch` and `detect` is a range of order keys, and wants a few rows of every part of every
source. A dataset of tars has as many parts as partitions, so that a file is opened, and read whole if it is small, as
often as the product of both. That is 2 ms of CPU each time: 20 s at a million candidates in 100 parts, and at 650
million ten times all else.
So from MANY parts on, rows of neighbouring parts are sorted together, GROUP at a time, and written as
`pipeline.stages._gathered` says. On the way the names that pages give their pictures are cleaned and hashed, from which
the driver learns templates.

It is no input of what reads it: a build that an older wenlan began goes on, and where a takedown has deleted what was
gathered, later stages read extract's files.

Limits: a group is held in memory, about 2 kB a row. User names and passwords of URLs are not gathered, so parts that
have some are read once by each partition of `fetch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import pulse
from pipeline.records import USERINFO
from pipeline.stages import _gathered, _templates
from pipeline.stages._templates import NAME_SCHEMA
from pipeline.store.build import Build
from pipeline.store.partitions import Attempt, Record
from pipeline.store.stage import Stage, StageFile

MANY = 64
"""Parts up to which they are read as they are."""

GROUP = 200_000
"""Candidates of a group, where single parts do not have more."""

NAMES_AT_ONCE = 1_000
"""Names of a row group: of a large build the first ones alone are read."""


def token(build: Build) -> Any:
    """The takedowns that the build reads: as one deletes what was gathered, it is made anew where `admit` is."""
    return {"forgotten": build.forgotten_revision}


def partitions(build: Build) -> list[str]:
    """Groups of neighbouring parts, by the numbers of the first and the last one; none where there are few parts.

    None either for a build whose `admit` is done: one of an older wenlan does not begin anew what it needs no more.
    """
    if build.stage("admit").finished():
        return [record.partition for record in _gathered.groups(build)]
    sizes = [record.counts["kept"] for record in build.stage("extract").records()]
    groups, first, rows = list[str](), 0, 0
    for part, size in enumerate(sizes if len(sizes) > MANY else ()):
        if part > first and rows + size > GROUP:
            groups, first, rows = [*groups, _gathered.name_of(first, part - 1)], part, 0
        rows += size
    return [*groups, _gathered.name_of(first, len(sizes) - 1)] if len(sizes) > MANY else []


def run_partition(build: Build, partition: str) -> None:
    """Gather one group and commit it."""
    extract, numbers = build.stage("extract"), _gathered.parts_of(partition)
    parts = extract.partitions()
    records = [extract.record(parts[number]) for number in numbers]
    pulse.expect(sum(record.counts["kept"] for record in records))
    with build.stage("gather").attempt(partition) as attempt:
        rows = 0
        for suffix, own in _gathered.SUFFIXES.items():
            tables = [extract.table(record, suffix) for record in records if suffix in record.files]
            written = _gathered.write(attempt.path(own), tables) if tables else 0
            if suffix == "parquet":
                rows = written
                _write_names(build, attempt, records)
                pulse.advance(rows)
        userinfos = [record.partition for record in records if USERINFO in record.files]
        attempt.commit({"rows": rows, "parts": len(records)}, {"of": len(parts), "userinfos": userinfos})


def _write_names(build: Build, attempt: Attempt, records: Sequence[Record]) -> None:
    """Write what the pages of some parts call their pictures and themselves, if any of them is of pages."""
    extract, sources = build.stage("extract"), _templates.page_sources(build)
    tables = [
        extract.table(record, columns=["page_url", "texts"])
        for record in records
        if record.partition.rpartition("-")[0] in sources
    ]
    if tables:
        names = _templates.names_of(pa.concat_tables(tables))
        attempt.write_table(_gathered.NAMES, names, row_group_size=NAMES_AT_ONCE)


STAGE = Stage(
    name="gather",
    zh="归并",
    folder="gathered",
    inputs=("extract",),
    version=_gathered.VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(*map(StageFile, _gathered.SUFFIXES.values()), StageFile(_gathered.NAMES, NAME_SCHEMA)),
    subject="",
    unit="rows",
    done=("rows",),
    rewrites_others=False,
    without=_gathered.without,
)
