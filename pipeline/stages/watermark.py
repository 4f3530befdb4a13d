"""Watermark: pictures that carry the watermark of their host are dropped.

Stage `marks` has found, for each host and size of picture, what is the same in all of them. Here each such picture is
decoded once more, at a reduced size, and its gradients are correlated with the mark where that is
(`pipeline.pictures.marks`). So the pictures of a host that are free of it stay.

A spec without `watermark` has a stage without partitions. Other pictures than those of groups with a mark are not
decoded.

Thresholds: `max_correlation` 0.3. With a white text of 6% of the height at 30% opacity on half of a sample of 100
photos of dishes, 99.6% of the 246 others were found with it, and none without it, where the highest came to 0.21
(tests/benchmarks/bench_watermark.py); with a sample of 20, all with it, the highest of 60 without it came to 0.25.

Limits: as of `marks`. A leader that is dropped takes its cluster with it, as in `screen`: a copy without the mark, of
another host, goes too, if the one with it is larger. A picture that cannot be decoded again is dropped as `unreadable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Watermark
from data_specs.shard import SPLITS
from pipeline import pulse
from pipeline.filters import Drop
from pipeline.pictures.decode import PictureError, decode
from pipeline.pictures.marks import Mark, correlation, plane, reduced
from pipeline.records import Decision, DropReason, candidates_of, drop
from pipeline.stages._survivors import SPLIT_FILES, primary_texts, split_file, survivors_in
from pipeline.store.build import Build
from pipeline.store.host_marks import (
    CORRELATION_SCHEMA,
    CORRELATIONS,
    Group,
    groups_of,
    mark_of,
    rows_with_mark,
    with_host,
)
from pipeline.store.images import partition_images
from pipeline.store.stage import Stage, StageFile
from pipeline.unreadable import OURS, evidence

ROW_GROUP = 1_000


def token(build: Build) -> Any:
    own = build.spec.watermark
    return None if own is None else [own.max_correlation]


def partitions(build: Build) -> list[str]:
    return [] if build.spec.watermark is None else build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split in a fetch partition's range, a Decision for each other, and what was correlated."""
    assert build.spec.watermark is not None
    rows = {split: with_host(survivors_in(build, partition, split, before="watermark")) for split in SPLITS}
    hosts = {host for table in rows.values() for host in pc.unique(table["host"]).to_pylist()}
    found = rows_with_mark(build, hosts)
    marks = {Group(row["host"], row["width"], row["height"]): mark_of(row) for row in found}
    shown, faults = _correlations(build, partition, list(rows.values()), marks)

    decisions, compared, counts = list[Decision](), list[pa.Table](), {"seen": 0, "compared": len(shown)}
    with build.stage("watermark").attempt(partition) as attempt:
        for split, table in rows.items():
            images, groups = table["sha256"].to_pylist(), groups_of(table)
            drops: list[Drop | None] = []
            for sha256, group in zip(images, groups, strict=True):
                fault = Drop(DropReason.UNREADABLE, faults[sha256]) if sha256 in faults else None
                drops.append(judge(build.spec.watermark, group, shown[sha256]) if sha256 in shown else fault)
            gone = pa.array([fault is not None for fault in drops], pa.bool_())
            dropped = zip(candidates_of(table.filter(gone)), filter(None, drops), strict=True)
            decisions += [drop(candidate, "watermark", why.reason, why.evidence) for candidate, why in dropped]
            kept = table.filter(pc.invert(gone)).drop_columns(["host"])
            attempt.write_table(split_file(split), kept, row_group_size=ROW_GROUP)
            compared.append(_compared(table, shown))
            counts[split] = kept.num_rows
            counts["seen"] += table.num_rows
        attempt.write_table(CORRELATIONS, pa.concat_tables(compared), row_group_size=ROW_GROUP)
        attempt.decide(decisions)
        attempt.commit({**counts, "kept": counts["seen"] - len(decisions), "dropped": len(decisions)})


def judge(options: Watermark, group: Group, shown: float) -> Drop | None:
    """The reason to drop a picture that shows so much of its host's mark; None to keep it."""
    if shown <= options.max_correlation:
        return None
    where = f"the mark of {group.host} at {group.width} x {group.height}"
    return Drop(DropReason.WATERMARK, f"correlation {shown:.3f} with {where}; at most {options.max_correlation:g}")


def _correlations(
    build: Build, partition: str, rows: Sequence[pa.Table], marks: Mapping[Group, Mark]
) -> tuple[dict[str, float], dict[str, str]]:
    """How much of its group's mark each picture shows, by sha256; and why some could not be decoded."""
    wanted = {
        sha256: group
        for table in rows
        for sha256, group in zip(table["sha256"].to_pylist(), groups_of(table), strict=True)
        if group in marks
    }
    shown, faults = dict[str, float](), dict[str, str]()
    if not wanted:
        return shown, faults
    pulse.expect(len(wanted))
    for image in partition_images(build, partition, wanted):
        pulse.advance()
        group = wanted[image.sha256]
        try:
            picture = decode(image.data, build.spec.fetch.max_pixels, reduced(group.width, group.height))
            shown[image.sha256] = correlation(plane(picture.pixels, marks[group].sides), marks[group])
        except PictureError as e:
            faults[image.sha256] = str(e)
        except OURS:
            raise
        except Exception as e:
            faults[image.sha256] = evidence(e, f"image {image.sha256}")
    return shown, faults


def _compared(table: pa.Table, shown: Mapping[str, float]) -> pa.Table:
    """Rows of CORRELATION_SCHEMA, of the pairs whose picture was compared with a mark."""
    images = [sha256 for sha256 in table["sha256"].to_pylist() if sha256 in shown]
    rows = table.filter(pc.is_in(table["sha256"], pa.array(images, pa.string())))
    columns = {name: rows[name] for name in CORRELATION_SCHEMA.names if name in rows.column_names}
    columns["text"] = pa.array(primary_texts(rows), pa.string())
    columns["correlation"] = pa.array([shown[sha256] for sha256 in images], pa.float32())
    return pa.table({name: columns[name] for name in CORRELATION_SCHEMA.names}).cast(CORRELATION_SCHEMA)


STAGE = Stage(
    name="watermark",
    zh="水印",
    folder="unmarked",
    inputs=("screen", "marks"),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile(CORRELATIONS, CORRELATION_SCHEMA, "candidate_id"), *SPLIT_FILES),
    came_later=True,
    rewrites_others=False,
)
