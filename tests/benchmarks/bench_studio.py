"""The studio over a build of 1,000,000 candidates: first screen, any facet, search, deep scrolling, and its memory.

The build is that of `builds`. Then `wenlan-data studio` is started as its own process and asked over HTTP.
First screen: from asking for the page to the last of the answers that it needs, of a studio that was just started and
has prepared nothing. Facets: the slowest of all, once each is chosen. Memory: the peak of the studio's process.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.builds import made, noise, packed
from tests.benchmarks.harness import ROOT, Figure, at_most, environment, program, quick, report, told

PER_PARTITION = 10_000


def main() -> int:
    if "--make" in sys.argv:
        make(Path(sys.argv[-2]), int(sys.argv[-1]))
        return 0
    count = 50_000 if quick(__doc__) else 1_000_000
    with tempfile.TemporaryDirectory(prefix="wenlan-studio-") as folder:
        start = time.perf_counter()
        subprocess.run(program("bench_studio", "--make", folder, count), check=True, env=environment())
        told(f"{count:,} candidates made in {time.perf_counter() - start:.0f} s")
        return report(measured(Path(folder) / "build", count))


# the studio


class Asker:
    """A studio as its own process, asked over HTTP; `peak`: bytes of memory that it has had at most."""

    def __init__(self, build: Path) -> None:
        began = time.perf_counter()
        words = [sys.executable, "-m", "pipeline", "studio", str(build), "--no-browser", "--port", "0"]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", line):
                self.base, self.token = found[1], found[2]
                break
        else:
            raise SystemExit("the studio has not started")
        while True:
            try:
                self.get("/")
                break
            except OSError:
                time.sleep(0.005)
        self.started = time.perf_counter() - began

    def get(self, path: str) -> bytes:
        asked = urllib.request.Request(self.base + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return bytes(answer.read())

    def json(self, path: str, **query: Any) -> Any:
        return json.loads(self.get(f"/api/{path}?{urllib.parse.urlencode(query, doseq=True)}"))

    @property
    def cpu(self) -> float:
        """Seconds of the processor that it has had: what a busy machine does not change."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def peak(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def first_screen(studio: Asker) -> float:
    """Seconds until a browser has all that it shows first: page, scripts, counts, rows, the thumbnails in sight."""
    began = time.perf_counter()
    html = studio.get("/").decode()
    names = re.findall(r"/static/[\w.]+", html)
    names += [f"/static/{name}.js" for name in ("api", "detail", "dialogs", "dom", "facets", "list", "state", "words")]
    with ThreadPoolExecutor(6) as browser:
        list(browser.map(studio.get, names))
        g = studio.json("about")["g"]
        counts = studio.json("facets")
        rows = studio.json("rows", g=g, offset=0, limit=60)["rows"]
        list(browser.map(lambda row: studio.get(f"/api/thumb?pos={row['pos']}&g={g}&side=320"), rows[:16]))
    if counts["total"] < 1_000 or len(rows) != 60:
        raise SystemExit(f"the studio does not work: {counts['total']} decisions, {len(rows)} rows")
    return time.perf_counter() - began


def measured(build: Path, count: int) -> dict[str, Figure]:
    screens, starts = [], []
    for turn in range(3):
        studio = Asker(build)
        starts.append(studio.started)
        screens.append(first_screen(studio))
        used = f"{studio.cpu:.1f} s of the processor, with what is prepared meanwhile"
        told(f"first screen {screens[-1]:.2f} s, {starts[-1]:.1f} s after the command; {used}")
        if turn < 2:
            studio.stop()
            for path in (build / "studio").glob("*"):
                path.unlink()
    began = time.perf_counter()
    while studio.json("facets")["prepared"]["state"] != "ready":
        time.sleep(0.2)
    prepared = time.perf_counter() - began
    before = studio.cpu
    facets = sorted(_facets(studio), reverse=True)
    each = (studio.cpu - before) / len(facets)
    told(f"slowest facets: {facets[:3]}; {each:.2f} s of the processor on average")
    before = studio.cpu
    searches = [_timed(studio, q=words) for words in ("小猫睡觉 番茄", "第777幅", "host7.example/")]
    told(f"searches: {searches}; {(studio.cpu - before) / 3:.2f} s of the processor on average")
    deep = [_timed(studio, only_rows=True, offset=int(count * share), **more) for share in (0.5, 0.99)
            for more in ({}, {"sort": "random"}, {"sort": "large"})]  # fmt: skip
    peak = studio.peak
    studio.stop()
    again = Asker(build)
    reopened = first_screen(again)
    peak = max(peak, again.peak)
    again.stop()
    return {
        "studio_first_screen": at_most(statistics.median(screens), 1.0, "s"),
        "studio_first_screen_again": at_most(reopened, 1.0, "s"),
        "studio_facet_slowest": at_most(facets[0][0], 1.0, "s"),
        "studio_search_slowest": at_most(max(searches), 3.0, "s"),
        "studio_deep_page_slowest": at_most(max(deep), 1.0, "s"),
        "studio_memory": at_most(peak / 1e9, 1.0, "GB"),
        "studio_prepared_after": at_most(prepared, 60.0, "s"),
    }


def _timed(studio: Asker, only_rows: bool = False, **query: Any) -> float:
    """Seconds until counts and rows of a choice are there."""
    began = time.perf_counter()
    if not only_rows:
        studio.json("facets", **query)
    studio.json("rows", **{"offset": 0, "limit": 60, **query})
    return time.perf_counter() - began


def _facets(studio: Asker) -> Iterator[tuple[float, str]]:
    """(seconds, facet) of the most and the least frequent value of every facet, each chosen alone."""
    for name, values in studio.json("facets")["facets"].items():
        for value in {values[0]["value"], values[-1]["value"]} if values else ():
            yield _timed(studio, **{name: value}), f"{name}={value}"


def make(folder: Path, count: int) -> None:
    """Write a build of `count` candidates, with everything up to the shards."""
    from pipeline.store import build_json
    from pipeline.store.build_json import Cost, Result

    build = made(folder, count, 0.3, PER_PARTITION, noise(8, 80, 70), shared=True)
    packed(build)
    build_json.note(build)
    for name in build.passes:
        parts = build.stage(name).partitions()
        build.stage(name).finish(parts, build.passes[name].version)
        build_json.note(build, Result(name, False, len(parts), len(parts), 0.0, {}, Cost()))


if __name__ == "__main__":
    sys.exit(main())
