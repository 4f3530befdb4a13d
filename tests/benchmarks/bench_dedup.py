"""Dedup as a whole, from filter's Parquet to its own.

Images are drawn (`drawn_images.py`; a twentieth is one hot cluster: 50,000 copies of one photograph among a million),
captions are those of `captions` (a fifth is one hot cluster: half of it
exact copies, half with another character). The stages run partition by partition in worker
processes, with one thread each. What is measured: CPU seconds of all processes, their growth from the smaller size to
the larger, the share that goes in order (`leaders`), the largest process, and the wall time of two workers over that of
one, which must decide the same.

`--sizes 100000,1000000,3000000` takes other sizes.

`--crowd 50000` measures so many copies of one photograph and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.bench_increments import build_of, filtered, measured
from tests.benchmarks.captions import captions
from tests.benchmarks.harness import answer_of, at_least, at_most, parser, program, report, told

PASSES = (*(f"dedup.{name}" for name in ("signatures", "copies", "edges", "leaders")), "dedup")
SNAPSHOT = "2026-01-01"
HOT = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试一下"

PIECE = 50_000
"""Pairs made at a time."""


def main() -> int:
    from tests.benchmarks.drawn_images import HOT as HOT_SHARE
    from tests.benchmarks.drawn_images import prepare

    asked = parser(__doc__)
    asked.add_argument("--sizes", default="", help="numbers of pairs, with commas between")
    asked.add_argument("--crowd", type=int, default=0, help="copies of one photograph")
    options = asked.parse_args()
    sizes = [int(n) for n in (options.sizes or ("5000,20000" if options.quick else "100000,1000000")).split(",")]
    workers = [1] if options.quick else [1, 2]
    sizes, hot = ([options.crowd], 1.0) if options.crowd else (sizes, HOT_SHARE)
    rows = []
    with tempfile.TemporaryDirectory(prefix="wenlan-dedup-") as name:
        looks = Path(name) / "looks"
        looks.mkdir()
        prepare(looks, max(sizes), options.quick, hot)
        for size in sizes:
            rows.append(_measured(Path(name) / str(size), looks, size, workers))
    first, last = rows[0][0], rows[-1][0]
    if options.crowd:
        return report({"cpu": at_most(last["cpu"], 60, "s"), "largest_process": at_most(last["gb"], 1.0, "GB")})
    grown = math.log(last["cpu"] / first["cpu"]) / math.log(sizes[-1] / sizes[0])
    figures = {
        "same_decisions": at_least(float(all(len({own["decisions"] for own in row}) == 1 for row in rows)), 1, "yes"),
        "cpu_exponent": at_most(grown, 1.15),
        "share_in_order": at_most(last["dedup.leaders"] / last["cpu"], 0.05),
        "largest_process": at_most(last["gb"], 2.0, "GB"),
    }
    if len(workers) > 1:
        figures["wall_of_more_workers"] = at_most(rows[-1][-1]["wall"] / last["wall"], 0.6)
    return report(figures)


def _said(own: dict[str, Any]) -> str:
    stages = ", ".join(f"{name} {own[name]:.2f}" for name in PASSES)
    largest = ", ".join(f"{name} {gb:.2f}" for name, gb in own["largest"].items())
    return f"{own['wall']:.1f} s, CPU {own['cpu']:.2f} s ({stages}); GB: {largest}"


def _measured(folder: Path, looks: Path, size: int, workers: list[int]) -> list[dict[str, Any]]:
    """The figures of a build of so many pairs, by each number of workers."""
    folder.mkdir()
    _make(folder, looks, size)
    found = [_run(folder, count) for count in workers]
    for count, own in zip(workers, found, strict=True):
        told(f"{size:,} pairs, {count} workers: {_said(own)}")
    shutil.rmtree(folder)
    return found


# One build, made once and copied.


def _make(folder: Path, looks: Path, size: int) -> None:
    """Filter's output of a build of so many pairs."""
    from pipeline.pictures.hashing import HASHES
    from pipeline.pictures.signatures import GRIDS, SIZE

    texts, tables = hot_cluster(size), []
    phash = np.memmap(looks / "phash", np.uint64, "r", shape=(size, HASHES))
    signature = np.memmap(looks / "signature", np.uint8, "r", shape=(size, GRIDS * SIZE))
    for start in range(0, size, PIECE):
        of = slice(start, min(start + PIECE, size))
        own = texts[of]
        sides = 4_000 - np.arange(len(own)) % 3_000
        sha256 = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(of.start, of.stop)]
        tables.append(measured(start, own, sides, phash[of], signature[of], sha256))
    filtered(folder, folder / "store", SNAPSHOT, tables)


def hot_cluster(count: int) -> list[str]:
    """Captions, of which a fifth are copies of HOT."""
    rng = random.Random(5)
    texts = captions(count - count // 5, 3)
    letters = sorted({c for text in texts[:3_000] for c in text})
    for _ in range(count // 5):
        at = rng.randrange(len(HOT))
        texts.append(HOT if rng.random() < 0.5 else HOT[:at] + rng.choice(letters) + HOT[at + 1 :])
    rng.shuffle(texts)
    return texts


def _run(folder: Path, workers: int) -> dict[str, Any]:
    """Seconds, CPU seconds by stage, the largest process, and a digest of the decisions."""
    out: dict[str, Any] = {"wall": 0.0, "cpu": 0.0, "gb": 0.0, "largest": {}}
    for name in PASSES:  # what another run left
        shutil.rmtree(folder / SNAPSHOT / _folder_of(name), ignore_errors=True)
    for name in PASSES:
        own = answer_of(program("bench_dedup", "--stage", folder, name, workers))
        out[name] = own["cpu"]
        out["wall"] += own["wall"]
        out["cpu"] += own["cpu"]
        out["gb"] = max(out["gb"], own["gb"])
        out["largest"][name] = own["gb"]
        out["decisions"] = own["decisions"]
    return out


def _folder_of(name: str) -> str:
    from pipeline.stages import STAGES

    return STAGES["dedup"].folder_of(name)


# One stage, in a process that starts its workers.


def serve_stage(folder: Path, name: str, workers: int) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    build = build_of(folder, folder / "store", SNAPSHOT)
    own = build.passes[name]
    partitions = own.over(build)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ready) as pool:
        list(pool.map(_ready, range(2 * workers)))  # imports are no part of anybody's share
        began = time.perf_counter()
        spent = list(pool.map(_one, [(folder, name, partition) for partition in partitions]))
        wall = time.perf_counter() - began
    build.stage(name).finish(partitions, own.version)
    cpu, gb = sum(cpu for cpu, _ in spent), max((gb for _, gb in spent), default=0.0)
    print(json.dumps({"wall": wall, "cpu": cpu, "gb": gb, "decisions": _decisions(build, name)}))


def _ready(_: int = 0) -> None:
    from data_specs.text.folding import normals
    from pipeline.stages import STAGES  # noqa: F401

    normals(["一"])


def _one(task: tuple[Path, str, str]) -> tuple[float, float]:
    """CPU seconds of a partition, and the largest that this process has been, in GB."""
    folder, name, partition = task
    build = build_of(folder, folder / "store", SNAPSHOT)
    before = time.process_time()
    build.passes[name].run(build, partition)
    return time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _decisions(build: Any, name: str) -> str:
    """A digest of what dedup decided."""
    if name != "dedup":
        return ""
    digest, stage = hashlib.sha256(), build.stage(name)
    for record in stage.records():
        for suffix in sorted(record.files):
            digest.update(repr(stage.table(record, suffix).to_pydict()).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        serve_stage(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        raise SystemExit(main())
