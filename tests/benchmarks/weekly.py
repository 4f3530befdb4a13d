"""Five weeks of a small web site, for a dataset that grows: what the site shows, what is run, and what must hold.

    1       everything is new
    2       a tenth more; and old pictures shown again, one of them under another URL
    3       nothing is new
    4       a filter is changed, and keeps out small pictures; what the dataset holds stays
    4 anew  a new generation, which leaves out the small pictures of week 1 too
    5       a takedown; then a page of week 1 opts out, and there is a new page
    back    a rollback to the release of week 2

`tests/pipeline/test_weeks.py` runs it by the commands, `drill_schedule.py` on Airflow and Ray. Imports nothing beside
it, so that both can.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from data_specs.release import open_manifest
from data_specs.shard import Manifest

NAME = "weekly"
SNAPSHOTS = {1: "2026-01-05", 2: "2026-01-12", 3: "2026-01-19", 4: "2026-01-26", 5: "2026-02-02"}
"""Mondays: the snapshot of each week's build."""
ANEW = "2026-01-27"
"""The snapshot of the new generation, on the day after week 4."""
BACK = 2
"""The release to which the rollback goes."""
TAKEN_DOWN, OPTED_OUT = 4, 1
"""The number of a picture, and of a page, that are in the dataset from week 1 to week 5."""

SPEC = """
name: weekly
contact: mailto:drill@example.org
sources:
  - {{kind: site, name: site, source_kind: news, start: ["http://{host}/"]}}
egress: {{allow: ["{host}"], delay_s: 0, timeout_s: 20}}
fetch: {{images_per_partition: 10, max_wait_s: 0}}
filters: [{{name: text_length, min_chars: 4}}, {{name: han_share}}, {{name: image_sides, min_side: {min_side}}}]
regions: {{detectors: [{{name: grid, n: 2}}]}}
shards: {{samples_per_shard: 12, dev_share: 0.2, val_share: 0.25}}
"""

WORDS = ("山水", "花鸟", "城墙", "古镇", "稻田", "茶园", "渔船", "雪峰", "石桥", "竹林", "灯笼", "书法", "剪纸", "瓷器")


@dataclass
class Site:
    """The site: `pages` pages of two pictures in week 1, and a tenth more a week later. `week`: what it shows now."""

    pages: int = 20
    week: int = 1
    asked: int = field(default=0, init=False)

    @property
    def more(self) -> int:
        """Pages that are new in week 2."""
        return max(1, self.pages // 10)

    def numbers(self, week: int) -> range:
        """The numbers of the pages that are new in a week."""
        first = {
            1: 0,
            2: self.pages,
            3: self.pages + self.more,
            4: self.pages + self.more,
            5: self.pages + self.more + 2,
        }
        return range(first[week], first.get(week + 1, first[5] + 1))

    def body(self, path: str) -> tuple[str, bytes]:
        """The type and the content of a path, b"" for none."""
        shown = self.numbers(self.week).stop
        if path == "/":
            links = [f"<a href='/p{i}.html'>{i}</a>" for i in range(shown)] + ["<a href='/again.html'>0</a>"]
            return "text/html; charset=utf-8", _page("目录", "".join(links if self.week > 1 else links[:-1]))
        if path == "/again.html" and self.week > 1:
            again = _figure("/i0.jpg", 1000) + _figure("/copy.jpg", 1001)
            return "text/html; charset=utf-8", _page("旧图", again)
        if path.startswith("/p") and int(path[2:-5]) < shown:
            return "text/html; charset=utf-8", self._page(int(path[2:-5]))
        if path.startswith("/i") or path == "/copy.jpg":
            number = 1 if path == "/copy.jpg" else int(path[2:-4])
            return "image/jpeg", _picture(number, 128 if self._small(number // 2) else 256)
        return "text/plain", b""

    def _page(self, number: int) -> bytes:
        figures = "".join(_figure(f"/i{i}.jpg", i) for i in (2 * number, 2 * number + 1))
        out = number == OPTED_OUT and self.week == 5
        return _page(f"第{number}页", figures, "<meta name='robots' content='noai'>" if out else "")

    def _small(self, page: int) -> bool:
        """Whether a page's pictures are small: of the last page of week 1, and of the first of week 4."""
        return page in (self.pages - 1, self.numbers(4).start)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """For an HTTP server."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
                kind, body = site.body(self.path)
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _page(title: str, body: str, head: str = "") -> bytes:
    return f"<html><head><title>{title}</title>{head}</head><body>{body}</body></html>".encode()


def _figure(path: str, seed: int) -> str:
    a, b, c = random.Random(seed).sample(WORDS, 3)
    return f"<figure><img src='{path}'><figcaption>{a}边的{b}与{c}之{seed}</figcaption></figure>"


def _picture(seed: int, side: int) -> bytes:
    dice = random.Random(seed)
    image = Image.new("RGB", (256, 240), tuple(dice.randrange(256) for _ in range(3)))
    for _ in range(14):
        x, y, w, h = (dice.randrange(240) for _ in range(4))
        image.paste(tuple(dice.randrange(256) for _ in range(3)), (x, y, min(256, x + w + 8), min(240, y + h + 8)))
    data = BytesIO()
    image.resize((side, side)).save(data, "JPEG", quality=88)
    return data.getvalue()


Run = Callable[..., dict[str, Any]]
"""Runs one command of wenlan-data by its words, and returns the object that it prints."""


@dataclass
class Weeks:
    """The five weeks by the commands, below a folder; one row a step, as the drill's table has it."""

    site: Site
    host: str
    folder: Path
    run: Run
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def store(self) -> str:
        return str(self.folder / "store")

    @property
    def latest(self) -> Path:
        return self.folder / "store" / "datasets" / NAME / "latest.json"

    def spec(self, week: int) -> Path:
        """The spec of a week, written below the folder."""
        path = self.folder / f"{NAME}.yaml"
        path.write_text(SPEC.format(host=self.host, min_side=200 if week >= 4 else 64), encoding="utf-8")
        return path

    def build(self, week: int, snapshot: str = "", *more: str) -> dict[str, Any]:
        """A build of a week; returns what `build --json` printed."""
        self.site.week, snapshot = week, snapshot or SNAPSHOTS[week]
        words = [str(self.spec(week)), "--out", str(self.folder / f"{NAME}-{snapshot}"), "--store", self.store]
        return self.run("build", *words, "--snapshot", snapshot, *more)

    def steps(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Run all steps, one after the other: its name, and what its command printed."""
        for week in (1, 2, 3, 4):
            yield str(week), self.build(week)
        yield "4 anew", self.build(4, ANEW, "--generation", "new")
        yield "5 takedown", self.take_down()
        yield "5", self.build(5)
        yield "back", self.roll_back()

    def take_down(self) -> dict[str, Any]:
        return self.run("forget", "--store", self.store, "--url", f"http://{self.host}/i{TAKEN_DOWN}.jpg")

    def roll_back(self) -> dict[str, Any]:
        return self.run("release", "rollback", NAME, str(BACK), "--store", self.store)

    def newest(self) -> Manifest:
        """The newest release."""
        return open_manifest(str(self.latest), lambda path: Path(path).read_bytes())[1]


def counts(funnels: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Samples that a build kept, images that the dataset held already, and what was dropped, by its stages' funnels."""
    return {
        "new": funnels["dedup"]["kept"],
        "known": funnels["dedup"].get("known", 0),
        "dropped": sum(funnel.get("dropped", 0) for funnel in funnels.values()),
    }


@dataclass
class Ledger:
    """What must hold over all releases of a dataset: `see` each; `faults` says what did not, one line each."""

    faults: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)

    def see(self, release: Manifest) -> list[dict[str, Any]]:
        """The rows of a release, which are noted. A release is read where its builds lie."""
        rows = [
            row
            for shard in release.shards
            for row in pq.read_table(Path(release.folder_of(shard, "")) / shard.parquet.path).to_pylist()
        ]
        for what in ("key", "sha256", "image_leader"):
            twice = len(rows) - len({row[what] for row in rows})
            if twice:
                self.faults.append(f"{release.build_id}: {twice} times a {what} twice")
        for row in rows:
            if self.pictures.setdefault(row["key"], row["sha256"]) != row["sha256"]:
                self.faults.append(f"{release.build_id}: key {row['key']} was of another picture")
            if self.splits.setdefault(row["sha256"], row["split"]) != row["split"]:
                self.faults.append(f"{release.build_id}: {row['image_url']} was in another split")
        return rows
