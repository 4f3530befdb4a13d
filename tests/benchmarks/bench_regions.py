"""The detect stage: YOLOX-Nano against its bare session, a warm cache, and look-ups in caches of growing size.

End to end is `pipeline.stages.detect.run_partition` as it stands: images read from fetch's tar, decoded, framed,
detected, suppressed, written into STORE and beside the build, with nothing known before. Its peer is the same
onnxruntime session, on as many threads, over the same pictures as ready tensors in memory. Both run in this process, on
one CPU.

A warm cache is one that holds 36 boxes of every image asked for: images a second through the whole stage. A look-up
asks for the 1,000 images of a partition that one commit holds, in caches of 10,000 and of 1,000,000 keys.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import CORPUS, at_least, at_most, interleaved, needed, photos, quick, report, told

MODEL = CORPUS / "models" / "yolox_nano.onnx"
THREADS = 1


def main() -> int:

    small = quick(__doc__)
    needed(MODEL)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one CPU for all that any library may start
    folder = Path(tempfile.mkdtemp(prefix="wenlan-bench-regions-"))
    try:
        ratio = end_to_end(folder, *((60, 3) if small else (200, 5)))
        rate = warm(folder, 5_000 if small else 20_000)
        few, many = lookups(folder, [10_000, 100_000 if small else 1_000_000])
    finally:
        shutil.rmtree(folder)
    return report(
        {
            "onnx_to_bare_session": at_least(ratio, 0.8),
            "warm_cache": at_least(rate, 3_000, "images/s"),
            "lookup_in_many_to_few_keys": at_most(many / few, 1.5),
        }
    )


def end_to_end(folder: Path, count: int, rounds: int) -> float:
    """Rate of the stage over the rate of the bare session."""

    from pipeline.detectors import detectors_of
    from pipeline.detectors.onnx import letterbox
    from pipeline.pictures.decode import decode
    from pipeline.stages import detect
    from pipeline.store.images import partition_images
    from pipeline.store.pairs import survivors
    from pipeline.store.store import Store
    from tests.fetched import Got, make
    from tests.stages import run_stage

    files = [path.read_bytes() for path in photos()[:count]]
    images = [Got(f"http://img.test/{i}.jpg", data, (f"第{i}张图",)) for i, data in enumerate(files)]
    options = {"name": "onnx", "weights": str(MODEL), "threads": THREADS}
    build = make(folder / "photos", images, 1, filters=[], regions={"detectors": [options]})
    run_stage(build, "measure", "filter", "dedup")
    (partition,) = detect.partitions(build)
    kept = set(survivors(build, partition, ["sha256"])["sha256"].to_pylist())
    (detector,) = detectors_of(build.spec)
    state = detector.load()
    ready = []
    for image in partition_images(build, partition, kept):
        framed, _ = letterbox(decode(image.data).pixels, 416, 416)
        ready.append(np.ascontiguousarray(framed[:, :, ::-1].transpose(2, 0, 1)[None], np.float32))

    def stage_turn() -> None:
        fresh = uuid.uuid4().hex
        fingerprints = {**build.fingerprints, "detect": fresh * 2}
        turn = replace(build, store=Store(str(folder / fresh)), fingerprints=fingerprints)
        detect.run_partition(turn, partition)
        counts = turn.stage("detect").record(partition).counts
        assert counts["detected"] == counts["images"] == len(ready), counts

    def bare_turn() -> None:
        for tensor in ready:
            state.session.run(None, {state.input_name: tensor})

    ours, bare = interleaved(stage_turn, bare_turn, rounds=rounds)
    told(f"{len(ready)} images: stage {len(ready) / ours:.1f}/s, session {len(ready) / bare:.1f}/s")
    return bare / ours


def boxes_of_many(rng: np.random.Generator, count: int) -> tuple[Any, Any, Any]:
    low = rng.uniform(0, 150, (count, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + rng.uniform(5, 50, (count, 2)).astype(np.float32)], axis=1)
    scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1]
    return boxes, scores, rng.integers(0, 80, count).astype(np.int32)


def warm(folder: Path, count: int) -> float:
    """Images a second through the stage when the cache holds all of them."""
    from pipeline.detectors import detectors_of
    from pipeline.detectors._boxes import rows_of
    from pipeline.stages import detect
    from pipeline.store.pairs import survivors
    from tests.filtered import Shown, make
    from tests.stages import run_stage

    shown = [Shown(f"{i}", i, (f"第{i}张图片的说明{i * 7919}",)) for i in range(count)]
    build = make(folder / "many", shown, 1, regions={"detectors": [{"name": "onnx", "weights": str(MODEL)}]})
    run_stage(build, "dedup")
    (partition,) = build.stage("filter").partitions()
    (detector,) = detectors_of(build.spec)
    rng = np.random.default_rng(0)
    kept = survivors(build, partition, ["sha256"])["sha256"].to_pylist()
    build.store.regions(detector.detector_id).put(rows_of({s: boxes_of_many(rng, 36) for s in kept}))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        detect.run_partition(build, partition)
        times.append(time.perf_counter() - start)
    counts = build.stage("detect").record(partition).counts
    assert counts["cached"] == counts["images"] == len(kept), counts
    assert counts["detected"] == 0, counts
    return len(kept) / sorted(times)[1]


def lookups(folder: Path, sizes: list[int]) -> list[float]:
    """Median seconds of looking one partition up, in caches of so many keys, taken in turns."""
    from pipeline.detectors._boxes import rows_of
    from pipeline.files.folder import Folder
    from pipeline.rows.records import sha256_hex
    from pipeline.store.cache import Cache

    rng = np.random.default_rng(0)
    one = boxes_of_many(rng, 10)
    caches, asked = [], []
    for size in sizes:
        cache = Cache(Folder(str(folder / f"keys-{size}")), "sha256")
        for first in range(0, size, 1_000):
            keys = [sha256_hex(f"{i}") for i in range(first, first + 1_000)]
            cache.put(rows_of(dict.fromkeys(keys, one)))
            if first == size // 2:
                asked.append(keys)
        caches.append(cache)
        told(f"{size:,} keys are there")
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(21):
        for cache, keys, spent in zip(caches, asked, times, strict=True):
            start = time.perf_counter()
            rows = cache.get(keys)
            spent.append(time.perf_counter() - start)
            assert rows is not None
            assert rows.num_rows == len(keys)
    return [sorted(spent)[10] for spent in times]


if __name__ == "__main__":
    sys.exit(main())
