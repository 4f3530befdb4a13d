"""A web site that grows from week to week, and the dataset that weekly builds make of it, by the commands."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from data_specs.shard import Manifest
from pipeline import cli
from pipeline.store.dataset import Dataset
from pipeline.store.store import Store
from tests.drawn import encoded, rectangles
from tests.kept import Kept

NAMES = ["故宫雪景", "黄山云海", "江南水乡古镇", "草原上的骏马", "城市夜景灯光秀", "小熊猫在吃竹子", "一碗牛肉面"]


def picture(seed: int, side: int = 240) -> Image.Image:
    """A picture unlike the others; an equal seed, another side: the same picture smaller or larger."""
    return rectangles(seed).resize((side, side), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image) -> bytes:
    return encoded(image, quality=92)


class Weeks:
    """A site that changes from week to week, its builds, and the dataset that they make."""

    def __init__(self, web: Any, folder: Path) -> None:
        self.web, self.folder, self.store = web, folder, Store(str(folder / "store"))
        self.pages: dict[str, bytes] = {}

    def show(self, page: str, pictures: dict[str, Image.Image], more: str = "") -> None:
        """Put a page with pictures, by name, on the site."""
        images = ""
        for name, image in pictures.items():
            self.web.pages[f"/i/{name}.jpg"] = (200, {"Content-Type": "image/jpeg"}, jpeg(image))
            text = NAMES[int(name[0]) % len(NAMES)]
            images += f"<figure><img src='/i/{name}.jpg'><figcaption>{text}，第{name}张</figcaption></figure>"
        self.web.pages[page] = (
            f"<html><head><title>照片 {page}</title></head><body>{images}{more}</body></html>".encode()
        )

    def keep(self) -> None:
        """Keep a copy of the site and of all builds as they are now, for `restore`."""
        self._kept = Kept(self.folder), dict(self.web.pages)

    def restore(self) -> None:
        """Make the site and the builds what they were when they were kept, at the same place and address."""
        builds, pages = self._kept
        self.web.pages.clear()
        self.web.pages.update(pages)
        builds.restore()

    def hide(self, page: str) -> None:
        del self.web.pages[page]

    def spec(self, **options: Any) -> Path:
        path = self.folder / "spec.yaml"
        links = {"name": "site", "kind": "site", "source_kind": "news", "start": [self.web.url("/")]}
        spec = {
            "name": "growing",
            "contact": "mailto:x@example.org",
            "sources": [links],
            "egress": {"allow": [self.web.host], "delay_s": 0, "timeout_s": 60},
            "filters": [{"name": "text_length", "min_chars": 2}, {"name": "image_sides", "min_side": 64}],
            "fetch": {"images_per_partition": 3, "threads": 2, "max_wait_s": 0},
            "shards": {"samples_per_shard": 4, "dev_share": 0.3, "val_share": 0.3},
        }
        path.write_text(json.dumps({**spec, **options}), encoding="utf-8")
        return path

    def front(self) -> None:
        """The front page links to every page there is."""
        links = "".join(f"<a href='{path}'>{path}</a>" for path in sorted(self.web.pages) if path.endswith(".html"))
        self.web.pages["/"] = f"<html><head><title>首页</title></head><body><p>照片集</p>{links}</body></html>".encode()

    def command(self, *words: str, code: int = 0) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
            returned = cli.main([*words, "--json"])
        assert returned == code, stderr.getvalue()[-4000:]
        answer = json.loads(stdout.getvalue().splitlines()[-1]) if code == 0 else {}
        return {**answer, "said": stderr.getvalue()}

    def build(self, week: str, *more: str, code: int = 0, **spec: Any) -> dict[str, Any]:
        self.front()
        place = ("--out", str(self.folder / week), "--store", self.store.url)
        return self.command("build", str(self.spec(**spec)), *place, *more, code=code)

    @property
    def release(self) -> Manifest:
        newest = self.store.releases("growing").newest()
        assert newest is not None
        return newest

    def samples(self, number: int = 0) -> dict[str, dict[str, Any]]:
        """Rows of the shards of a release by key."""
        releases = self.store.releases("growing")
        manifest = releases.read(number)
        dataset = Dataset.open(releases.folder.at(f"{manifest.release:06d}.json"))
        rows = {}
        for shard in manifest.shards:
            with dataset.local(shard, shard.parquet) as path:
                for row in pq.read_table(path).to_pylist():
                    assert row["key"] not in rows
                    rows[row["key"]] = row
        return rows

    def splits(self, number: int = 0) -> dict[str, str]:
        return {key: row["split"] for key, row in self.samples(number).items()}


def three_weeks(web: Any, folder: Path) -> Weeks:
    """One page goes, others come, one of them with a larger copy of an old picture, and one changes."""
    own = Weeks(web, folder)
    own.show("/a.html", {"0": picture(0), "1": picture(1)})
    own.show("/b.html", {"2": picture(2)})
    own.build("1", "--snapshot", "2026-01-01")
    own.hide("/b.html")
    own.show("/c.html", {"3": picture(3), "0-large": picture(0, 480)})
    own.build("2", "--snapshot", "2026-01-08")
    own.show("/a.html", {"1": picture(1), "4": picture(4)}, "一行新的文字")
    own.show("/d.html", {"5": picture(5)})
    own.build("3", "--snapshot", "2026-01-15")
    return own
