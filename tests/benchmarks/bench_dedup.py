"""Dedup as a whole, from filter's Parquet to its own.

Images are drawn (`drawn_images.py`; a twentieth is one hot cluster: 50,000 copies of one photograph among a million),
captions as in `bench_scale_texts` (a fifth is one hot cluster). The stages run partition by partition in worker
processes, with one thread each. What is measured: CPU seconds of all processes, their growth from the smaller size to
the larger, the share that goes in order (`leaders`), the largest process, and the wall time of two workers over that of
one, which must decide the same.

`--sizes 100000,1000000,3000000` takes other sizes; `--workers 1,2` other numbers of workers.

`--crowd 50000` measures so many copies of one photograph and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

PASSES = (*(f"dedup.{name}" for name in ("signatures", "copies", "edges", "leaders")), "dedup")
SNAPSHOT = "2026-01-01"

PIECE = 50_000
"""Pairs made at a time."""


def main() -> int:
    from drawn_images import HOT, missing, prepare
    from harness import at_least, at_most, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", default="")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--crowd", type=int, default=0)
    options = parser.parse_args()
    if missing():
        print("bench_dedup needs ../shared/corpus and the demo corpus (`make demo` unpacks it)", file=sys.stderr)
        return 1
    sizes = [int(n) for n in (options.sizes or ("5000,20000" if options.quick else "100000,1000000")).split(",")]
    workers = [int(n) for n in options.workers.split(",")][: 1 if options.quick else None]
    sizes, hot = ([options.crowd], 1.0) if options.crowd else (sizes, HOT)
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
        print(f"{size:,} pairs, {count} workers: {_said(own)}", file=sys.stderr)
    shutil.rmtree(folder)
    return found


# One build, made once and copied.


def _make(folder: Path, looks: Path, size: int) -> None:
    """Filter's output of a build of so many pairs."""
    from bench_increments import filtered
    from bench_scale_texts import hot_cluster

    from pipeline.pictures.hashing import HASHES
    from pipeline.pictures.signatures import GRIDS, SIZE
    from pipeline.records import order_key
    from tests.filtered import MEASURED_SCHEMA

    texts, tables = hot_cluster(size), []
    with (looks / "phash").open("rb") as hashes, (looks / "signature").open("rb") as signatures:
        for start in range(0, size, PIECE):
            count = min(PIECE, size - start)
            number = range(start, start + count)
            names = [f"http://img{n % 50}.test/{n}" for n in number]
            digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
            phash = np.frombuffer(hashes.read(count * HASHES * 8), np.uint64)
            raw = signatures.read(count * GRIDS * SIZE)
            every = GRIDS * SIZE
            columns: dict[str, Any] = {
                "order_key": [order_key(name, 0) for name in digests],
                "candidate_id": digests,
                "fetch_id": digests,
                "source": ["table"] * count,
                "source_kind": ["library"] * count,
                "origin": names,
                "page_url": [f"http://site{n % 500}.test/{n}" for n in number],
                "image_url": names,
                "texts": [[{"kind": "caption", "text": text}] for text in texts[start : start + count]],
                "row": np.arange(count) + number.start,
                "text_rank": np.zeros(count, np.int64),
                "shown": ["alone"] * count,
                "pixels": [int(digest[:16], 16) for digest in digests],
                "sha256": digests,
                "format": ["jpeg"] * count,
                "width": np.full(count, 4_000) - np.arange(count) % 3_000,
                "height": np.full(count, 3_000),
                "phash": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * HASHES, pa.array(phash)),
                "signature": [raw[at * every : (at + 1) * every] for at in range(count)],
                "fetched_at": ["2026-01-01T00:00:00Z"] * count,
            }
            arrays = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in MEASURED_SCHEMA]
            tables.append(
                pa.table(
                    [
                        pa.array(own, f.type) if not isinstance(own, pa.Array) else own.cast(f.type)
                        for own, f in zip(arrays, MEASURED_SCHEMA, strict=True)
                    ],
                    schema=MEASURED_SCHEMA,
                )
            )
    filtered(folder, folder / "store", SNAPSHOT, tables)


def _run(folder: Path, workers: int) -> dict[str, Any]:
    """Seconds, CPU seconds by stage, the largest process, and a digest of the decisions."""
    out: dict[str, Any] = {"wall": 0.0, "cpu": 0.0, "gb": 0.0, "largest": {}}
    for name in PASSES:  # what another run left
        shutil.rmtree(folder / SNAPSHOT / _folder_of(name), ignore_errors=True)
    for name in PASSES:
        asked = [sys.executable, __file__, "--stage", str(folder), name, str(workers)]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
        environment = {**os.environ, **one_thread, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
        done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        own = json.loads(done.stdout.splitlines()[-1])
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

    build = _build(folder)
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


def _build(folder: Path) -> Any:
    from data_specs.build import BuildSpec
    from pipeline.stages import STAGES
    from pipeline.store.build import Build, passes_of
    from pipeline.store.identities import Identities
    from pipeline.store.store import Store

    source = {"kind": "url_table", "name": "table", "source_kind": "library"}
    spec = BuildSpec.model_validate({"name": "bench", "contact": "mailto:a@b.c", "sources": [source]})
    build = Build(
        stages=STAGES,
        spec=spec,
        out=str(folder / SNAPSHOT),
        store=Store(str(folder / "store")),
        build_id=f"bench-{SNAPSHOT}",
        snapshot=SNAPSHOT,
        fingerprints=dict.fromkeys(passes_of(STAGES, spec), "f" * 64),
    )
    return replace(build, identities=Identities(build.store).before(build))


def _ready(_: int = 0) -> None:
    from data_specs.text.folding import normals
    from pipeline.stages import STAGES  # noqa: F401

    normals(["一"])


def _one(task: tuple[Path, str, str]) -> tuple[float, float]:
    """CPU seconds of a partition, and the largest that this process has been, in GB."""
    folder, name, partition = task
    build = _build(folder)
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
