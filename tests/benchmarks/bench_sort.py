"""What it costs to read ranges of order keys from many parts: from extract's own files, and sorted.

As many ranges as parts, of 2,000 candidates each, as a dataset of tars has them. Timed, in CPU seconds of one process,
is what all partitions of `admit` read, and beside it the pass `admit.sort` with what they read then. From the files the
cost grows with the square of the parts; sorted, its exponent is to be at most 1.15. Candidates are drawn, with an
address, a page and a caption each; nothing is admitted. What sorting takes includes the names of pictures, cleaned
and hashed, which the driver reads otherwise.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from harness import at_least, at_most, quick, report

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline.records import Candidate, candidate_rows, sha256_hex
from pipeline.stages import STAGES, _sort
from pipeline.store.build import Build, passes_of
from pipeline.store.ranges import KeyRange
from pipeline.store.store import Store

ROWS = 2_000

Between = Callable[[str, str], Iterable[pa.Table]]
"""Candidates with an order key in [low, high), some at a time."""


def main() -> int:
    sizes = (66, 132) if quick(__doc__ or "") else (66, 132, 264)
    parted, costs = list[float](), list[float]()
    for parts in sizes:
        with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
            build = drawn(Path(name), parts)
            parted.append(read(from_parts(build), parts))
            began = time.process_time()
            groups = _sort.partitions(build)
            for group in groups:
                _sort.run_partition(build, group)
            build.stage("admit.sort").finish(groups, _sort.PASS.version)
            made = time.process_time() - began
            own = read(lambda low, high, b=build: _sort.rows_between(b, "parquet", low, high), parts)
        costs.append(made + own)
        told = f"{parted[-1]:.2f} s from the parts; {made:.2f} s to make {len(groups)} groups, {own:.2f} s from them"
        print(f"{parts} parts and ranges: {told}", file=sys.stderr)
    step = math.log(sizes[-1] / sizes[-2])
    of_parts, of_groups = (math.log(side[-1] / side[-2]) / step for side in (parted, costs))
    print(f"exponents of the last step: {of_parts:.2f} from the parts, {of_groups:.2f} sorted", file=sys.stderr)
    return report(
        {
            "exponent_sorted": at_most(of_groups, 1.15, ""),
            "parts_over_sorted": at_least(parted[-1] / costs[-1], 1.0),
        }
    )


def drawn(folder: Path, parts: int) -> Build:
    """A build of which extract has committed so many parts."""
    source = {"kind": "warc", "name": "t", "source_kind": "news", "path": "t.warc.gz"}
    spec = BuildSpec.model_validate({"name": "bench", "contact": "mailto:a@b.c", "sources": [source]})
    marks = {name: sha256_hex(name) for name in passes_of(STAGES, spec)}
    build = Build(spec, str(folder / "out"), Store(str(folder / "store")), "b", "2026-01-01", marks, stages=STAGES)
    rng = np.random.default_rng(0)
    for part in range(parts):
        candidates = []
        for row in range(ROWS):
            text = "".join(map(chr, rng.integers(0x4E00, 0x4E00 + 3_000, 20)))
            url = f"http://img{row % 50}.test/{part}/{row}.jpg"
            page = f"http://site{row % 500}.test/{part}"
            candidates.append(Candidate("t", "news", page, page, url, (Text("caption", text),), row))
        with build.stage("extract").attempt(f"t-{part:05d}") as attempt:
            attempt.write_table("parquet", candidate_rows(candidates, spec.seed))
            attempt.commit({"kept": len(candidates)})
    return build


def from_parts(build: Build) -> Between:
    """Reads ranges of order keys from extract's own files, as pyarrow pushes the range down to row groups."""
    stage = build.stage("extract")
    records = list(stage.records())

    def between(low: str, high: str) -> Iterator[pa.Table]:
        asked = [("order_key", ">=", low), ("order_key", "<", high)]
        return (stage.table(record, filters=asked) for record in records)

    return between


def read(between: Between, ranges: int) -> float:
    """CPU seconds for all rows of all ranges, of which none may be missing."""
    began, rows = time.process_time(), 0
    for own in KeyRange.cut(ranges):
        rows += sum(table.num_rows for table in between(*own.bounds))
    assert rows == ranges * ROWS
    return time.process_time() - began


if __name__ == "__main__":
    raise SystemExit(main())
