"""Several builds at once over the same images, and what a kill or a full disk leaves: real processes, real signals."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import model_runner
from pipeline.detectors import Boxes, Picture
from pipeline.detectors.onnx import Onnx
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.records import sha256_hex
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.claims import claim
from tests.processes import wait_until
from tests.stages import run_stage

KEYS = {sha256_hex(str(i)) for i in range(6)}


def test_a_key_is_claimed_once_and_free_again_afterwards(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    some = set(sorted(KEYS)[:4])
    with claim(folder, some) as mine, claim(folder, KEYS) as theirs:
        assert mine == some
        assert theirs == KEYS - some
    with pytest.raises(ZeroDivisionError), claim(folder, KEYS) as mine:
        raise ZeroDivisionError
    with claim(folder, KEYS) as again:
        assert again == KEYS
    assert [path.name for path in (tmp_path / "_claims").iterdir()] == ["_lock"]


def test_of_several_that_claim_at_the_same_moment_each_key_is_granted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is let in first took the claims of those that still waited for those of dead workers, and deleted them."""
    folder, (a, b, c) = Folder(str(tmp_path)), sorted(KEYS)[:3]
    waiting, granted, entered, end, flock = list[str](), list[str](), list[int](), threading.Event(), fcntl.flock

    def noted(f: Any, how: int) -> None:
        if str(f.name).endswith("_lock"):
            waiting.append(str(f.name))
        flock(f, how)

    def work(number: int, keys: set[str]) -> None:
        with claim(folder, keys) as mine:
            granted.extend(mine)
            entered.append(number)
            end.wait(120)

    (tmp_path / "_claims").mkdir()
    threads = [threading.Thread(target=work, args=one) for one in enumerate([{a, b}, {b, c}, {c, a}])]
    with (tmp_path / "_claims/_lock").open("wb") as gate:
        flock(gate, fcntl.LOCK_EX)
        monkeypatch.setattr("fcntl.flock", noted)
        for thread in threads:
            thread.start()
        wait_until(lambda: len(waiting) == 3, "all three wait")
    wait_until(lambda: len(entered) == 3, "all three have what they get")
    end.set()
    for thread in threads:
        thread.join()
    assert sorted(granted) == [a, b, c]


def _hold(folder: str, ready: Any) -> None:
    with claim(Folder(folder), KEYS):
        ready.set()
        time.sleep(600)


@pytest.mark.slow
def test_a_killed_worker_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(120)
    with claim(Folder(str(tmp_path)), KEYS) as mine:
        assert mine == set()
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    with claim(Folder(str(tmp_path)), KEYS) as mine:
        assert mine == KEYS


IMAGES = 60


def _detected(log: str, pause_s: float, most: int = IMAGES) -> None:
    """From here on a detector in this process notes each picture that it looks at, and needs no weights.

    Behind `most` pictures it stands still: who kills it then kills it in the middle.
    """
    left = itertools.count(most, -1)

    def detect(self: Onnx, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        with Path(log).open("a") as f:
            for shown in pictures:
                time.sleep(pause_s if next(left) > 0 else 600)
                print(int(shown.astype(int).sum()), file=f, flush=True)
        boxes = [np.array([[1, 1, 9, shown[0, 0, 0] % 60 + 10]], np.float32) for shown in pictures]
        return [(box, np.ones(1, np.float32), np.zeros(1, np.int32)) for box in boxes]

    Onnx.load = lambda self, gpu=False: None  # type: ignore[method-assign]
    Onnx.detect = detect  # type: ignore[method-assign]


def _build(build: Build, name: str, log: str, *more: float) -> None:
    """Run the stage `detect` of a build, four pictures at a time."""
    _detected(log, *more)
    model_runner.BATCH = 4
    run_stage(build, name)


@pytest.fixture
def two_builds(fetched_build: Any, got: Any, tmp_path: Path) -> list[Build]:
    """Two builds of other names over the same images and one STORE, done up to dedup."""
    images = []
    for i in range(IMAGES):
        out = io.BytesIO()
        small = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((100, 80), Image.Resampling.NEAREST).save(out, "PNG")
        images.append(got(f"{i}", out.getvalue(), f"第{i}张图片"))
    (tmp_path / "w.onnx").write_bytes(b"weights that nobody reads")
    detectors = [{"name": "onnx", "weights": str(tmp_path / "w.onnx")}]

    made = []
    for name in ("one", "two"):
        build = fetched_build(images, 3, name=name, filters=[], regions={"detectors": detectors})
        run_stage(build, "measure", "filter", "dedup")
        made.append(build)
    return made


def _boxes(build: Build) -> dict[str, list[float]]:
    stage, boxes = build.stage("detect"), dict[str, list[float]]()
    for record in stage.records():
        (suffix,) = (name for name in record.files if name.startswith("onnx"))
        boxes |= {row["sha256"]: row["boxes"] for row in stage.table(record, suffix).to_pylist()}
    return boxes


def _at_once(builds: list[Build], stage: str, log: Path) -> None:
    """Run a stage of all builds at the same time, each in a process of its own; no image may be seen twice."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_build, args=(build, stage, str(log), 0.01)) for build in builds]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    seen = log.read_text().split()
    assert len(seen) == len(set(seen)) == IMAGES


@pytest.mark.drill(5)
def test_two_builds_at_once_detect_every_image_once(two_builds: list[Build], tmp_path: Path) -> None:
    _at_once(two_builds, "detect", tmp_path / "log")
    assert _boxes(two_builds[0]) == _boxes(two_builds[1])
    counted = [sum(r.counts["detected"] for r in build.stage("detect").records()) for build in two_builds]
    assert sum(counted) == IMAGES


@pytest.mark.drill(5)
def test_a_build_goes_on_where_another_was_killed(two_builds: list[Build], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    half = IMAGES // 2
    first, second = (
        context.Process(target=_build, args=(build, "detect", str(log), 0.01, most))
        for build, most in zip(two_builds, (half, IMAGES), strict=True)
    )
    first.start()
    wait_until(lambda: log.exists() and len(log.read_text().split()) == half, "half of the pictures")
    second.start()
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    second.join(240)
    assert second.exitcode == 0
    committed = len(two_builds[0].stage("detect").partitions())
    lost = len(log.read_text().split()) - IMAGES
    assert 0 <= lost <= max(_sizes(two_builds[1])[committed : committed + 1])  # the partition that was in flight
    assert len(_boxes(two_builds[1])) == IMAGES
    cache = regions_cache(two_builds[1])
    for name in cache.commits():
        pq.read_table(cache.folder.at(name))
    rows = cache.get(_boxes(two_builds[1]))
    assert rows is not None
    assert rows.num_rows == IMAGES


def _sizes(build: Build) -> list[int]:
    return [record.counts["images"] for record in build.stage("detect").records()]


def regions_cache(build: Build) -> Cache:
    (name,) = (build.store.folder / "regions").names()
    return build.store.regions(name)


@contextlib.contextmanager
def small_disk(bytes_a_file: int) -> Iterator[None]:
    """Files of this process cannot grow beyond so many bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    cache = Cache(Folder(str(tmp_path)), "sha256")
    cache.put(pa.table({"sha256": sorted(KEYS), "value": list(range(6))}))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    big = pa.table({"sha256": [sha256_hex(f"big {i}") for i in range(2_000)], "value": list(range(2_000))})
    with small_disk(4_096), pytest.raises(StoreError, match=rf"{tmp_path}/\d+-\w+\.parquet: cannot be written \(File"):
        cache.put(big)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    rows = cache.get(KEYS)
    assert rows is not None
    assert rows.num_rows == 6
