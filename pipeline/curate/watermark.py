"""Judge watermark: drops pictures with the visible watermark of their host, found in many pictures of one size.

A first pass finds the mark of each host and size: the median gradient of equal-sized pictures (`pictures.marks`). A
partition has some of the hosts, by a hash of their names, with all of their pictures. It looks at the pairs twice, at a
few columns of one partition at a time: once to count the pictures of a host and size, and once for a sample of those
that are enough. The sample is those with the smallest order keys, which are a keyed hash of the image's id: the same on
one worker or a hundred, however the pairs are cut. A host with half of all pictures costs no more memory than another.

Then each such picture is decoded once more, at a reduced size, and its gradients are correlated with the mark where
that is. So the pictures of a host that are free of it stay. Other pictures are not decoded.

Thresholds: `max_correlation` 0.3. With a white text of 6% of the height at 30% opacity on half of a sample of 100
photos of dishes, 99.6% of the 246 others were found with it, and none without it, where the highest came to 0.21
(tests/benchmarks/bench_watermark.py); with a sample of 20, all with it, the highest of 60 without it came to 0.25.

Limits: a mark is estimated within a build, from what dedup and `screen` kept there: a host of which a week brings fewer
than `min_pictures` of a size gets no mark that week, so increments need not be what one build would be. There are about
as many partitions of hosts as the root of the pairs, and each reads the columns of all pairs. In memory are the counts
of a partition's groups, the ids of its samples, and the pictures of one sample. A takedown of a domain removes its
marks; one of a picture leaves the median of the others with it, which shows none of them. A picture that cannot be
decoded again is dropped as `unreadable`.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec, Watermark
from pipeline.curate.judging import KEEP, Judge, Verdict, Verdicts
from pipeline.errors import OURS, evidence
from pipeline.filters import Drop
from pipeline.pictures.decode import PictureError, decode
from pipeline.pictures.marks import Mark, Plane, correlation, estimate, plane, reduced, sides_of
from pipeline.processes import pulse
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.host_marks import (
    GROUPED_BY,
    MARK_SCHEMA,
    Group,
    bucket_of,
    groups_of,
    mark_of,
    row_of,
    rows_with_mark,
    with_host,
)
from pipeline.store.images import partition_images, read_images
from pipeline.store.pairs import PAIRS, judge_names, pairs_before, pass_name, reads_before

PAIRS_PER_PART = 10_000
"""Pairs for one partition of hosts; a hundred times as many make ten."""

Samples = dict[Group, list[tuple[str, str]]]
"""(order key, fetch_id) of the pictures of a group that are looked at."""


def when(spec: BuildSpec) -> bool:
    return spec.watermark is not None


def _hosts_token(build: Build) -> Any:
    own = build.spec.watermark
    return None if own is None else [own.min_pictures, own.sample]


def _hosts(build: Build) -> list[str]:
    last = [PAIRS, *map(pass_name, judge_names(build, "watermark"))][-1]  # whose counts say what reaches this judge
    of = math.ceil(math.sqrt(build.counted(last, "kept") / PAIRS_PER_PART)) or 1
    return [f"hosts-{number:05d}-{of:05d}" for number in range(of)]


def _estimate(build: Build, partition: str) -> None:
    """A row of MARK_SCHEMA for each group of a partition's hosts with enough pictures, by host and size."""
    assert build.spec.watermark is not None
    _, number, of = partition.split("-")
    counts, samples = _samples(build, build.spec.watermark, int(number), int(of))
    rows, sampled = list[dict[str, Any]](), 0
    pulse.expect(sum(map(len, samples.values())))
    for group, members in sorted(samples.items()):
        planes = list(_planes(build, group, [fetch_id for _, fetch_id in members]))
        if len(planes) >= build.spec.watermark.min_pictures:
            rows.append(row_of(group, counts[group], len(planes), estimate(np.stack(planes))))
        sampled += len(planes)
    verdicts = Counter(row["verdict"] for row in rows)
    with build.stage(MARKS.name).attempt(partition) as attempt:
        attempt.write_table("parquet", pa.Table.from_pylist(rows, schema=MARK_SCHEMA), row_group_size=100)
        named = {"marks": verdicts["mark"], "templates": verdicts["template"]}
        attempt.commit({"groups": len(rows), "sampled": sampled, **named})


def _samples(build: Build, options: Watermark, number: int, of: int) -> tuple[dict[Group, int], Samples]:
    """Pictures of each group of a partition that has enough of them, and which are looked at."""
    counts = Counter[Group]()
    for rows in _host_rows(build, number, of, GROUPED_BY):
        grouped = rows.group_by(list(Group._fields)).aggregate([([], "count_all")])
        counts.update(dict(zip(groups_of(grouped), grouped["count_all"].to_pylist(), strict=True)))
    enough = {group: pictures for group, pictures in counts.items() if pictures >= options.min_pictures}
    samples: Samples = {group: [] for group in enough}
    for rows in _host_rows(build, number, of, [*GROUPED_BY, "order_key", "fetch_id"]) if enough else ():
        keys = zip(rows["order_key"].to_pylist(), rows["fetch_id"].to_pylist(), strict=True)
        for group, key in zip(groups_of(rows), keys, strict=True):
            if group in samples:
                samples[group].append(key)
                if len(samples[group]) > 4 * options.sample:
                    samples[group] = heapq.nsmallest(options.sample, samples[group])
    return enough, {group: heapq.nsmallest(options.sample, members) for group, members in samples.items()}


def _host_rows(build: Build, number: int, of: int, columns: list[str]) -> Iterator[pa.Table]:
    """The pairs of a partition's hosts, with a column `host`, a file at a time."""
    for partition in build.stage(PAIRS).partitions():
        rows = with_host(pairs_before(build, partition, "watermark", columns))
        own = [host for host in pc.unique(rows["host"]).to_pylist() if bucket_of(host, of) == number]
        yield rows.filter(pc.is_in(rows["host"], pa.array(own, pa.string())))


def _planes(build: Build, group: Group, fetch_ids: list[str]) -> Iterator[Plane]:
    """The planes of some pictures of a group; those that cannot be decoded are left out."""
    sides, reduce_to = sides_of(group.width, group.height), reduced(group.width, group.height)
    for image in read_images(build, fetch_ids, sparse=True):
        pulse.advance()
        try:
            yield plane(decode(image.data, build.spec.fetch.max_pixels, reduce_to).pixels, sides)
        except PictureError:
            continue
        except OURS:
            raise
        except Exception:  # stage `watermark` says what it was, if there is a mark
            continue


MARKS = Pass(
    name="curate.marks",
    over=_hosts,
    reads=("fetch", *reads_before("watermark")),
    run=_estimate,
    token=_hosts_token,
    when=when,
    files=(PassFile("parquet", MARK_SCHEMA),),
    unit="groups",
    done=("groups",),
)


def token(build: Build) -> Any:
    own = build.spec.watermark
    return None if own is None else [own.max_correlation]


def judge_pairs(build: Build, partition: str, rows: pa.Table) -> Verdicts:
    """A verdict for each pair, and its picture's correlation with the mark of its host, null where that has none."""
    assert build.spec.watermark is not None
    rows = with_host(rows)
    found = rows_with_mark(build, set(pc.unique(rows["host"]).to_pylist()))
    marks = {Group(row["host"], row["width"], row["height"]): mark_of(row) for row in found}
    shown, faults = _correlations(build, partition, rows, marks)
    images, verdicts = rows["sha256"].to_pylist(), list[Verdict]()
    for sha256, group in zip(images, groups_of(rows), strict=True):
        fault = Drop(DropReason.UNREADABLE, faults[sha256]) if sha256 in faults else None
        own = judge(build.spec.watermark, group, shown[sha256]) if sha256 in shown else fault
        verdicts.append(Verdict((own,)) if own is not None else KEEP)
    correlations = pa.array([shown.get(sha256) for sha256 in images], pa.float32())
    return Verdicts(verdicts, {"correlation": correlations}, {"compared": len(shown)})


def judge(options: Watermark, group: Group, shown: float) -> Drop | None:
    """The reason to drop a picture that shows so much of its host's mark; None to keep it."""
    if shown <= options.max_correlation:
        return None
    where = f"the mark of {group.host} at {group.width} x {group.height}"
    return Drop(DropReason.WATERMARK, f"correlation {shown:.3f} with {where}; at most {options.max_correlation:g}")


def _correlations(
    build: Build, partition: str, rows: pa.Table, marks: Mapping[Group, Mark]
) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the correlation of each picture with its group's mark, by sha256; and why some could not be decoded."""
    wanted = {
        sha256: group
        for sha256, group in zip(rows["sha256"].to_pylist(), groups_of(rows), strict=True)
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


JUDGE = Judge(
    "watermark", "水印", judge_pairs, when, token, passes=(MARKS,), columns=(pa.field("correlation", pa.float32()),)
)
