"""A new generation: the whole dataset made anew from stored captures and images, over a real site that grows."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.shard import SPLITS, Manifest
from pipeline import cli, run
from pipeline.records import split_of
from pipeline.store.dataset import Dataset
from pipeline.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAMES = ["故宫雪景", "黄山云海", "江南水乡古镇", "草原上的骏马", "城市夜景灯光秀", "小熊猫在吃竹子", "一碗牛肉面"]


def picture(seed: int, side: int = 240) -> Image.Image:
    """A picture unlike the others: random coloured rectangles."""
    dice = random.Random(seed)
    image = Image.new("RGB", (240, 240), tuple(dice.randrange(256) for _ in range(3)))
    for _ in range(12):
        x, y, w, h = (dice.randrange(240) for _ in range(4))
        image.paste(tuple(dice.randrange(256) for _ in range(3)), (x, y, min(240, x + w + 8), min(240, y + h + 8)))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=92)
    return data.getvalue()


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

    def hide(self, page: str) -> None:
        del self.web.pages[page]

    def spec(self, **options: Any) -> Path:
        path = self.folder / "spec.yaml"
        links = {"name": "site", "kind": "site", "source_kind": "news", "start": [self.web.url("/")]}
        spec = {
            "name": "growing",
            "contact": "mailto:x@example.org",
            "sources": [links],
            "egress": {"allow": [self.web.host], "delay_s": 0, "timeout_s": 5},
            "filters": [{"name": "text_length", "min_chars": 2}, {"name": "image_sides", "min_side": 64}],
            "fetch": {"images_per_partition": 3, "threads": 2, "retries": 0},
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


@pytest.fixture
def weeks(serve: Callable[..., Any], ray: ModuleType, tmp_path: Path) -> Weeks:
    """Three weeks of a site: one page goes, others come, one of them with a larger copy of an old picture."""
    own = Weeks(serve({}), tmp_path)
    own.show("/a.html", {"0": picture(0), "1": picture(1)})
    own.show("/b.html", {"2": picture(2)})
    own.build("1", "--snapshot", "2026-01-01")
    own.hide("/b.html")
    own.show("/c.html", {"3": picture(3), "0large": picture(0, 480)})
    own.build("2", "--snapshot", "2026-01-08")
    own.show("/a.html", {"1": picture(1), "4": picture(4)}, "一行新的文字")
    own.show("/d.html", {"5": picture(5)})
    own.build("3", "--snapshot", "2026-01-15")
    return own


def urls(rows: dict[str, dict[str, Any]]) -> set[str]:
    return {row["image_url"].rpartition("/")[2].removesuffix(".jpg") for row in rows.values()}


def test_a_new_generation_has_the_samples_of_all_increments_and_asks_nobody(weeks: Weeks) -> None:
    before = weeks.samples()
    assert urls(before) == {"0", "1", "2", "3", "4", "5"}, "the larger copy of 0 is known"
    asked = len(weeks.web.asked) + len(weeks.web.asked_tdm)
    spec, store = str(weeks.spec()), weeks.store.url

    plan = weeks.command("plan", spec, "--store", store, "--generation", "new", "--out", str(weeks.folder / "anew"))
    assert [row["snapshot"] for row in plan["captures"]] == ["2026-01-01", "2026-01-08", "2026-01-15"]
    assert plan["generation"] == 2
    assert not (weeks.folder / "anew").exists()

    answer = weeks.build("anew", "--generation", "new", "--snapshot", "2026-01-15")
    assert len(weeks.web.asked) + len(weeks.web.asked_tdm) == asked, "no robots.txt, no page, no image"
    after = weeks.samples()
    assert weeks.splits() == {key: row["split"] for key, row in before.items()}
    assert {key: row["sha256"] for key, row in after.items()} == {key: row["sha256"] for key, row in before.items()}
    assert {row["split"] for row in before.values()} == set(SPLITS)
    assert answer["diff"]["added"]["count"] == answer["diff"]["removed"]["count"] == 0
    assert weeks.release.generation == 2
    assert [own.build_id for own in weeks.release.builds] == [answer["build_id"]]
    assert "-g2-" in answer["build_id"]
    warcs = list((weeks.folder / "anew" / "captures").glob("*.warc.gz"))
    assert len(warcs) == 3
    assert all(warc.stat().st_nlink == 2 for warc in warcs), "captures are linked, not copied"
    [extracted] = [stage["funnel"] for stage in answer["stages"] if stage["name"] == "extract"]
    assert (extracted["pages"], extracted["captures"]) == (5, 10), "a page counts once"

    again = weeks.build("anew", "--generation", "new", "--snapshot", "2026-01-15")
    assert all(stage["skipped"] for stage in again["stages"]), "the same command again changes nothing"
    assert weeks.release.release == 4
    assert (
        run.reopen(str(weeks.folder / "anew")).made_from
        == run.open_build(run.reopen(str(weeks.folder / "anew")).spec, str(weeks.folder / "anew"), store).made_from
    )
    weeks.build("2", "--snapshot", "2026-01-08")
    assert weeks.release.release == 4, "nor does a build of the last generation"

    weeks.show("/e.html", {"6": picture(6)})
    weeks.build("4", "--snapshot", "2026-01-15")
    assert weeks.release.generation == 2
    assert [own.snapshot for own in weeks.release.builds] == ["2026-01-15", "2026-01-15-g2"]
    assert urls(weeks.samples()) == {"0", "1", "2", "3", "4", "5", "6"}
    weeks.command("release", "rollback", "growing", "3", "--store", store)
    weeks.build("5", "--snapshot", "2026-01-22")
    assert weeks.release.generation == 1
    assert [own.snapshot for own in weeks.release.builds] == ["2026-01-01", "2026-01-08", "2026-01-15", "2026-01-22"]
    assert weeks.splits().items() >= {key: row["split"] for key, row in before.items()}.items()


def test_a_changed_filter_moves_no_split_although_another_copy_leads(weeks: Weeks) -> None:
    before = weeks.samples()
    seed = next(
        number
        for number in range(1000)
        if split_of(sha256_of(picture(0)), number, 0.3, 0.3) != split_of(sha256_of(picture(0, 480)), number, 0.3, 0.3)
    )
    # with another seed every split would move, and with its own hash the copy would be in another one
    sides = [{"name": "text_length", "min_chars": 2}, {"name": "image_sides", "min_side": 300}]
    answer = weeks.build("anew", "--generation", "new", filters=sides, seed=seed)
    [large] = weeks.samples().values()
    [small] = [row for row in before.values() if row["image_url"].endswith("/0.jpg")]
    assert large["image_url"].endswith("/0large.jpg")
    assert large["split"] == small["split"]
    assert (answer["diff"]["added"]["count"], answer["diff"]["removed"]["count"]) == (1, 6)


def sha256_of(image: Image.Image) -> str:
    return hashlib.sha256(jpeg(image)).hexdigest()


def test_a_changed_spec_applies_to_what_is_new(weeks: Weeks) -> None:
    before = weeks.samples()
    longer = [{"name": "text_length", "min_chars": 12}, {"name": "image_sides", "min_side": 64}]
    weeks.show("/e.html", {"6": picture(6), "6withalongname": picture(7)})
    weeks.build("4", "--snapshot", "2026-01-22", filters=longer)
    assert max(len(row["texts"][0]["text"]) for row in before.values()) == 11
    assert weeks.samples().keys() > before.keys(), "what the dataset holds stays"
    assert urls(weeks.samples()) - urls(before) == {"6withalongname"}


def test_a_generation_is_of_the_whole_dataset_and_of_one_folder(weeks: Weeks) -> None:
    weeks.build("anew", "--generation", "new", "--until", "filter")
    weeks.show("/e.html", {"6": picture(6)})
    weeks.build("4", "--snapshot", "2026-01-22")
    said = weeks.command("publish", str(weeks.folder / "anew"), code=1)["said"]
    assert "shard: is not finished" in said
    assert "holds build" in weeks.build("4", "--generation", "new", code=1)["said"]
    weeks.build("anew")
    assert weeks.release.generation == 2, "the folder knows that it began a generation"
    assert urls(weeks.samples()) == {"0", "1", "2", "3", "4", "5", "6"}


def test_a_generation_that_was_overtaken_is_not_published(weeks: Weeks) -> None:
    spec = weeks.folder / "manual.json"
    manual = json.loads(weeks.spec().read_text(encoding="utf-8")) | {"publish": {"approve": "manual"}}
    spec.write_text(json.dumps(manual), encoding="utf-8")
    for name in ("one", "two"):
        place = ("--out", str(weeks.folder / name), "--store", weeks.store.url)
        weeks.command("build", str(spec), *place, "--generation", "new", "--snapshot", name)
    weeks.show("/e.html", {"6": picture(6)})
    weeks.build("4", "--snapshot", "2026-01-22")
    assert "published since" in weeks.command("publish", str(weeks.folder / "one"), code=1)["said"]
    weeks.command("release", "rollback", "growing", "3", "--store", weeks.store.url)
    weeks.command("publish", str(weeks.folder / "one"))
    assert "begun by another build" in weeks.command("publish", str(weeks.folder / "two"), code=1)["said"]
    assert urls(weeks.samples()) == {"0", "1", "2", "3", "4", "5"}


def test_what_store_lacks_is_named_and_never_asked_for(weeks: Weeks) -> None:
    for tar in (weeks.folder / "1" / "images").glob("*.tar"):
        tar.unlink()
    asked = len(weeks.web.asked)
    answer = weeks.build("anew", "--generation", "new")
    assert len(weeks.web.asked) == asked
    assert urls(weeks.samples()) == {"0large", "3", "4", "5"}
    [fetched] = [stage["funnel"] for stage in answer["stages"] if stage["name"] == "fetch"]
    assert fetched["dropped"] == 3
    said = weeks.command("explain", str(weeks.folder / "anew"), weeks.web.url("/i/2.jpg"))["said"]
    assert "dropped at fetch: not_stored" in said
