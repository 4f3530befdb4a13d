"""Drills of where a build writes: a disk that is full at every stage, and an object store that fails."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.drilling import Build, Row, Scene, wait_for
from tests.benchmarks.harness import told
from tests.benchmarks.ray_nodes import Nodes
from tests.benchmarks.services import DrillFailed
from tests.s3_server import Proxy, moto

FIRST_KB, GROWTH, MOST_RUNGS = 600, 1.25, 30
"""Size of the first disk, what it grows by after each failure, and a bound on that."""
NEARLY_FULL = 0.2
"""Share that may be seen free of a full disk: a larger file was not let in, or was gone before the next look."""


def disk(scene: Scene) -> Iterator[Row]:
    """A disk is full again and again, a little later in the build each time: one line, and the same command goes on."""
    place = scene.folder / "disk"
    place.mkdir()
    _mounted(place, FIRST_KB)
    with scene.source(), Nodes(scene.folder, environment={"TMPDIR": str(place)}) as nodes:
        kilobytes, faults, stages = FIRST_KB if not scene.quick else 1000, list[str](), Counter[str]()
        first = kilobytes
        _remounted(place, kilobytes)
        build = Build(scene, "disk", place=str(place), environment=nodes.environment | {"TMPDIR": str(place)})
        for rung in range(MOST_RUNGS):
            with _least_free(place) as least:
                ended = build.ended()
            if ended.code == 0:
                break
            stage = build.running() or "start"
            stages[stage] += 1
            line = ended.one_line
            good = re.search(r"wenlan-data: /\S+: .*(no space|No space).*run the same command again", line)
            if not good or ended.code != 1 or least[0] > NEARLY_FULL * kilobytes:
                said = line or ended.tail()
                faults.append(f"{kilobytes} kB, {stage}, {least[0]} kB free at least: exit {ended.code}: {said}")
            _say(rung, kilobytes, stage, least[0], line)
            kilobytes = int(kilobytes * (GROWTH if not scene.quick else 3)) + 8
            _remounted(place, kilobytes)
            build.start()
        hit = ", ".join(f"{stage} {n}" for stage, n in stages.items())
        outcome = f"{sum(stages.values())} times one line with a path and what to do"
        done = f"a disk of {first} kB to {kilobytes} kB; no space while running: {hit}"
        yield Row("each", done, "; ".join(faults) or outcome, held=not faults and bool(stages))
        yield build.row("all of them", "room was made after each", "the same command went on, exit 0", ended)


def _say(rung: int, kilobytes: int, stage: str, free: int, line: str) -> None:
    told(f"disk {rung}: {kilobytes} kB, in {stage or '-'}, least free {free} kB: {line}")


def _mounted(place: Path, kilobytes: int) -> None:
    """A disk of its own in memory, in this process's mount namespace alone."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DrillFailed(f"did not hit: no disk can be mounted here: {done.stderr.strip()}")


def _remounted(place: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(place)], check=True)


@contextlib.contextmanager
def _least_free(place: Path) -> Iterator[list[int]]:
    """The smallest number of kB free that was seen on a disk while the block ran, looked at every millisecond."""
    least, over = [1 << 30], threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            found = os.statvfs(place)
            least[0] = min(least[0], found.f_bavail * found.f_frsize >> 10)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield least
    finally:
        over.set()
        thread.join()


def s3(scene: Scene) -> Iterator[Row]:
    """An object store fails 1% of all requests, then all for 30 s in mid-build: the same shards, or one line first."""
    with moto(scene.folder) as server, Proxy(server.url) as proxy:
        environment = server.environment(proxy.url)
        with scene.source() as source, Nodes(scene.folder, environment=environment) as nodes:
            bucket = server.make_bucket("drills")
            for name, share, seconds in (("percent", 0.01, 600.0), ("outage", 1.0, 30.0)):
                source.asked.clear()
                before = len(proxy.requests)
                build = Build(scene, name, place=bucket, environment=nodes.environment | environment)
                if share == 1:
                    wait_for("pictures to be asked for", 240, lambda: source.pictures_asked() > 20, build)
                proxy.fail("503", share=share, seconds=seconds)
                began = time.monotonic()
                ended = build.ended(400)
                proxy.heal()
                failed = [request for request in proxy.requests[before:] if request.status == 503]
                again = ""
                if ended.code and share == 1:  # it may give up within the outage, in one line
                    again = f"{ended.one_line or ended.tail()}; "
                    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
                    build.start()
                    ended = build.ended(400)
                span = f" in {seconds:.0f} s" if share == 1 else ""
                done = f"{len(failed)} of {len(proxy.requests) - before} requests were answered with 503{span}"
                row = build.row(name, done, f"{again}exit 0", ended, environment=environment)
                whole = not again or bool(re.search(r"wenlan-data: \S+: .*run the same command again", again))
                yield replace(row, held=row.held and bool(failed) and whole)
