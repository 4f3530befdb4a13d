"""Marks: the visible watermark of each host, from the median gradient of its equal-sized pictures (`pictures.marks`).

What stage `watermark` compares pictures with, as `concepts` prepares `balance`. A partition has some of the hosts, by a
hash of their names, with all of their pictures. It looks at the pairs twice, at a few columns of one file at a time:
once to count the pictures of a host and size, and once for a sample of those that are enough. The sample is those with
the smallest order keys, which are a keyed hash of the image's id: the same on one worker or a hundred, however the
pairs are cut. A host with half of all pictures costs no more memory than another.

The sample is decoded at a reduced size, group by group. A spec without `watermark` has a stage without partitions.

Limits: a mark is estimated within a build, from what dedup and `screen` kept there: a host of which a week brings fewer
than `min_pictures` of a size has no mark that week, so increments need not be what one build would be. There are about
as many partitions as the root of the pairs, and each reads the columns of all pairs. In memory are the counts of a
partition's groups, the ids of its samples, and the pictures of one sample. A takedown of a domain removes its marks;
one of a picture leaves the median of the others with it, which shows none of them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Watermark
from pipeline import pulse
from pipeline.pictures.decode import PictureError, decode
from pipeline.pictures.marks import Plane, estimate, plane, reduced, sides_of
from pipeline.stages._survivors import survivor_tables, survivors_before
from pipeline.store.build import Build
from pipeline.store.host_marks import GROUPED_BY, MARK_SCHEMA, Group, bucket_of, groups_of, row_of, with_host
from pipeline.store.images import read_images
from pipeline.store.rewrite import Rewrite
from pipeline.store.stage import Stage, StageFile
from pipeline.unreadable import OURS

PAIRS = 10_000
"""Of so many pairs, one partition; of a hundred times as many, ten."""

Samples = dict[Group, list[tuple[str, str]]]
"""(order key, fetch_id) of the pictures of a group that are looked at."""


def token(build: Build) -> Any:
    own = build.spec.watermark
    return None if own is None else [own.min_pictures, own.sample]


def partitions(build: Build) -> list[str]:
    """Hosts by the hash of their names."""
    if build.spec.watermark is None:
        return []
    of = math.ceil(math.sqrt(survivors_before(build, "watermark") / PAIRS)) or 1
    return [f"hosts-{number:05d}-{of:05d}" for number in range(of)]


def run_partition(build: Build, partition: str) -> None:
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
    with build.stage("marks").attempt(partition) as attempt:
        attempt.write_table("parquet", pa.Table.from_pylist(rows, schema=MARK_SCHEMA), row_group_size=100)
        named = {"marks": verdicts["mark"], "templates": verdicts["template"]}
        attempt.commit({"groups": len(rows), "sampled": sampled, **named})


def _samples(build: Build, options: Watermark, number: int, of: int) -> tuple[dict[Group, int], Samples]:
    """Pictures of each group of a partition that has enough of them, and which are looked at."""
    counts = Counter[Group]()
    for rows in _own_rows(build, number, of, GROUPED_BY):
        grouped = rows.group_by(list(Group._fields)).aggregate([([], "count_all")])
        counts.update(dict(zip(groups_of(grouped), grouped["count_all"].to_pylist(), strict=True)))
    enough = {group: pictures for group, pictures in counts.items() if pictures >= options.min_pictures}
    samples: Samples = {group: [] for group in enough}
    for rows in _own_rows(build, number, of, [*GROUPED_BY, "order_key", "fetch_id"]) if enough else ():
        keys = zip(rows["order_key"].to_pylist(), rows["fetch_id"].to_pylist(), strict=True)
        for group, key in zip(groups_of(rows), keys, strict=True):
            if group in samples:
                samples[group].append(key)
                if len(samples[group]) > 4 * options.sample:
                    samples[group] = heapq.nsmallest(options.sample, samples[group])
    return enough, {group: heapq.nsmallest(options.sample, members) for group, members in samples.items()}


def _own_rows(build: Build, number: int, of: int, columns: list[str]) -> Iterator[pa.Table]:
    """The pairs of a partition's hosts, with a column `host`, a file at a time."""
    for table in survivor_tables(build, columns, before="watermark"):
        rows = with_host(table)
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


def _without(rewrite: Rewrite) -> None:
    """Remove the marks of hosts that are taken down."""
    table = rewrite.stage.table(rewrite.record)
    kept = [not rewrite.removal.page(f"https://{host}/") for host in table["host"].to_pylist()]
    if not all(kept):
        rewrite.write_table("parquet", table.filter(pa.array(kept, pa.bool_())))


STAGE = Stage(
    name="marks",
    zh="水印估计",
    folder="marks",
    inputs=("screen",),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("parquet", MARK_SCHEMA),),
    subject="",
    unit="groups",
    done=("groups",),
    rewrites_others=False,
    without=_without,
)
