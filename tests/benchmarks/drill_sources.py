"""Drills of the world outside: a web site that is down for a while, and a clock that is set while a build runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.store.dataset import Dataset
from tests.benchmarks.drilling import NEXT_SNAPSHOT, Build, Row, Scene, command, environment_of, wait_for
from tests.benchmarks.harness import PEERS
from tests.benchmarks.ray_nodes import Nodes
from tests.benchmarks.services import DrillFailed
from tests.demo.packages import DemoError, unpack_package


def site(scene: Scene) -> Iterator[Row]:
    """The site is down when three pages are left: one line; when it is up again the same command goes on."""
    with scene.source() as source, Nodes(scene.folder) as nodes:
        source.delay_s = 0.05
        build = Build(scene, "site", environment=nodes.environment)
        wait_for("all but three pages", 120, lambda: source.pages_asked() >= source.site.pages - 3, build)
        source.stop()
        asked = source.pages_asked()
        ended = build.ended(120)
        line = ended.one_line
        good = ended.code == 1 and "the host is down" in line and "run the same command again" in line
        refused = f"{source.site.pages - asked} pages were left when it refused connections"
        yield Row(
            "crawl", refused, line or f"exit {ended.code}: {ended.tail()}", held=good and asked < source.site.pages
        )
        if not scene.quick:
            yield from _for_a_while(scene, nodes)
        source.start()
        build.start()
        again = build.ended()
        kept = again.answer["stages"][0]["funnel"] if again.code == 0 else {}
        row = build.row("crawl", f"the site is up again; crawled: {kept}", "the same command went on, exit 0", again)
        yield replace(row, held=row.held and kept.get("dropped") == 0)


def _for_a_while(scene: Scene, nodes: Nodes) -> Iterator[Row]:
    """All is answered with 503 for some seconds: the crawl waits, and loses nothing."""
    refused: list[str] = []
    until = float("inf")

    def fault(path: str) -> int:
        if time.monotonic() > until:
            return 0
        refused.append(path)
        return 503

    with scene.source() as source:
        source.delay_s = 0.05
        build = Build(scene, "while", environment=nodes.environment)
        wait_for("ten pages", 120, lambda: source.pages_asked() >= 10, build)
        source.fault, until = fault, time.monotonic() + 8
        wait_for("the end of the outage", 60, lambda: time.monotonic() > until, build)
        ended = build.ended()
    row = build.row("crawl", f"{len(refused)} requests of 8 s were answered with 503", "exit 0", ended)
    yield replace(row, held=row.held and bool(refused))


def images(scene: Scene) -> Iterator[Row]:
    """The host of the pictures is down in fetch: that build lacks some, and the next of the dataset has them all."""
    with scene.source() as source, Nodes(scene.folder) as nodes:
        source.delay_s = 0.03
        first = Build(scene, "images", environment=nodes.environment)
        wait_for("twenty pictures", 180, lambda: source.pictures_asked() >= 20, first)
        source.stop()
        ended = first.ended()
        lost = _samples_missing(scene, first.store) if ended.code == 0 else -1
        outcome = f"exit {ended.code}; {lost} samples are missing from the release"
        yield Row(
            "fetch", f"the host refused connections after {source.pictures_asked()} pictures", outcome, held=lost > 0
        )
        source.start()
        asked = source.pictures_asked()
        second = Build(scene, "images-next", environment=nodes.environment, snapshot=NEXT_SNAPSHOT, store=first.store)
        ended = second.ended()
        lost = _samples_missing(scene, second.store) if ended.code == 0 else -1
        done = f"the host is up again; the build of the next week asked for {source.pictures_asked() - asked} pictures"
        outcome = f"exit {ended.code}; {lost} samples of the undisturbed build are missing"
        same = "every sample equal" if lost == 0 else f"DIFFERS: {lost} samples"
        verified = ended.code == 0 and command("verify", second.out).code == 0
        yield Row("fetch", done, outcome, "clean" if verified else "NOT CLEAN", same, lost == 0 and verified)


def _samples_missing(scene: Scene, store: str) -> int:
    """Samples of the undisturbed build that the newest release lacks, or holds with another picture."""
    found = _samples(f"{store}/datasets/drill")
    return sum(found.get(key) != sha256 for key, sha256 in _samples(f"{scene.reference}/undisturbed-build").items())


def _samples(place: str) -> dict[str, str]:
    """sha256 of the picture by key, of all samples of a dataset."""
    dataset, rows = Dataset.open(place), dict[str, str]()
    for shard in dataset.manifest.shards:
        with dataset.local(shard, shard.parquet) as path:
            table = pq.read_table(path, columns=["key", "sha256"])
            rows |= dict(zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    return rows


DAYS = 300
FAKETIME = "lib/*/faketime/libfaketimeMT.so.1"
READ_CLOCK = "import time; print(time.time())"


def clock(scene: Scene) -> Iterator[Row]:
    """The clock of all processes jumps 300 days ahead in crawl, and back in fetch: not seen in the result."""
    file, faked = _clock(scene)
    with scene.source() as source, Nodes(scene.folder, environment=faked) as nodes:
        source.delay_s = 0.05
        build = Build(scene, "clock", environment=nodes.environment | faked)
        wait_for("ten pages", 180, lambda: source.pages_asked() >= 10, build)
        ahead = _jump(file, f"+{DAYS}d", faked)
        wait_for("twenty pictures", 180, lambda: source.pictures_asked() >= 20, build)
        back = _jump(file, "+0d", faked)
        ended = build.ended()
        months = _months(build, "captures") | _months(build, "images")
        done = f"its processes saw a clock {ahead:.0f} days ahead, then {abs(back):.0f}; fetched in {sorted(months)}"
        row = build.row("crawl, fetch", done, "exit 0", ended)
        yield replace(row, held=row.held and len(months) > 1)


def _clock(scene: Scene) -> tuple[Path, dict[str, str]]:
    """(the file that says how far the clock is off, variables of the processes that have it for their clock)."""
    file = scene.folder / "offset"
    file.write_text("+0d\n")
    return file, {
        "LD_PRELOAD": _libfaketime(),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def _jump(file: Path, to: str, faked: dict[str, str]) -> float:
    """Set the clock; returns by how many days a new process sees it off."""
    new = file.with_suffix(".new")
    new.write_text(f"{to}\n")
    new.replace(file)  # whole or not at all: the library ends a process that finds it empty
    words = [sys.executable, "-S", "-c", READ_CLOCK]
    done = subprocess.run(words, capture_output=True, text=True, env=environment_of(faked), check=True)
    return (float(done.stdout) - time.time()) / 86400


def _months(build: Build, folder: str) -> set[str]:
    """The months in which rows of a stage were fetched, as its records have it."""
    months: set[str] = set()
    for path in Path(build.out).glob(f"{folder}/*.parquet"):
        months |= {
            value[:7] for value in pq.read_table(path, columns=["fetched_at"])["fetched_at"].to_pylist() if value
        }
    return months


def _libfaketime() -> str:
    """The library of Debian's package libfaketime, unpacked beside the peers where it is not installed."""
    folder = PEERS / "faketime"

    def found() -> str:
        paths = (path for root in (Path("/usr"), folder / "usr") for path in root.glob(FAKETIME))
        return str(next(paths, ""))

    if not found():
        try:
            unpack_package("libfaketime", folder)
        except DemoError as e:
            raise DrillFailed(f"did not hit: no libfaketime here: {e}") from None
    return found()
