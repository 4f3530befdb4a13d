"""One side of bench_fetch, a process of its own: the fetch stage over a list of URLs, in Ray tasks, as a build runs it.

Called with one JSON object: `urls` (a file, one a line), `out`, `allow`, `per_partition`, `threads`, `limits`, `fetch`
(more of its options) and, for growth, `sizes`. The last line of stdout is the measurement: seconds of each run beyond
Ray's start, counts, and the largest memory of a worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline.cluster import Cluster
from pipeline.pass_runner import PassRunner
from pipeline.rows.records import Candidate, candidate_rows, order_range
from pipeline.stages import STAGES
from pipeline.store.build import Build, passes_of
from pipeline.store.progress import Silent
from pipeline.store.store import Store

TABLE = {"kind": "url_table", "name": "t", "source_kind": "library", "path": "none.csv"}
TABLE |= {"columns": {"texts": {"caption": "c"}}}  # never read: admit is written here


def begun(name: str, urls: list[str], job: dict[str, Any]) -> Build:
    """A build of those URLs whose admit is committed, through the store."""
    spec = BuildSpec.model_validate(
        {
            "name": "bench",
            "contact": "https://example.org/bench",
            "sources": [TABLE],
            "egress": {"allow": job["allow"], **job.get("limits", {})},
            "fetch": {"threads": job["threads"], "max_wait_s": 0, **job.get("fetch", {})},
        }
    )
    out = Path(job["out"]) / name
    marks = {stage: hashlib.sha256(stage.encode()).hexdigest() for stage in passes_of(STAGES, spec)}
    build = Build(spec, str(out), Store(str(out / "store")), "bench", "2026-01-01", marks, stages=STAGES)
    rows = candidate_rows([Candidate("t", "library", u, "", u, (Text("caption", "一张图片"),)) for u in urls], 0)
    keys = rows["order_key"].to_pylist()
    parts = max(2, -(-len(urls) // job["per_partition"]))
    at = 0
    for part in range(parts):
        end = at
        while end < len(keys) and keys[end] < order_range(part, parts)[1]:
            end += 1
        with build.stage("admit").attempt(f"{part:05d}-of-{parts:05d}") as attempt:
            attempt.write_table("parquet", rows.slice(at, end - at))
            attempt.commit({"seen": end - at, "kept": end - at, "dropped": 0})
        at = end
    return build


class Memory(Silent):
    """The largest resident memory of any Ray worker below this process, MB, as the kernel kept it (VmHWM).

    It is told how far the stage is, and looks each time.
    """

    def __init__(self) -> None:
        self.peak = 0.0

    def update(self, figures: object) -> None:
        self.look()

    def look(self) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, StopIteration):
                if (folder / "cmdline").read_bytes().startswith(b"ray::") and os.getpid() in _above(int(folder.name)):
                    lines = (folder / "status").read_text().splitlines()
                    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
                    self.peak = max(self.peak, kilobytes / 1024)


def _above(pid: int) -> Iterator[int]:
    """The processes that a process descends from."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def main() -> None:
    job = json.loads(sys.argv[1])
    urls = Path(job["urls"]).read_text().split()
    sizes = job.get("sizes") or [len(urls)]
    cluster, memory = Cluster("", 2), Memory()
    found: list[dict[str, Any]] = []
    try:
        at = 0
        for number, size in enumerate(sizes):
            build = begun(f"{number}", urls[at : at + size], job)
            at += size
            start = time.perf_counter()
            result = PassRunner(build, cluster, memory, {"fetch"}).run(build.passes["fetch"])
            seconds = time.perf_counter() - start
            memory.look()
            reasons: dict[str, int] = {}
            for table in (build.stage("fetch").table(r, columns=["reason"]) for r in build.stage("fetch").records()):
                for reason in table["reason"].to_pylist():
                    reasons[reason] = reasons.get(reason, 0) + 1
            found.append({"size": size, "seconds": seconds, "funnel": result.funnel, "reasons": reasons})
    finally:
        cluster.close()
    print(json.dumps({"runs": found, "worker_mb": memory.peak}))


if __name__ == "__main__":
    main()
