"""A new generation: the whole dataset made anew from stored captures and images, over a real site that grows."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from data_specs.shard import SPLITS
from pipeline import opening, run
from pipeline.cluster import Cluster
from pipeline.rows.records import split_of
from tests.growing_site import Weeks, jpeg, picture, three_weeks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def built(serve_for_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weeks]:
    """The three weeks, built once: each test begins with a copy of them."""
    folder = tmp_path_factory.mktemp("weeks")
    (folder / "now").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Cluster", lambda *_: Cluster(here=True))  # the stages in this process: no Ray is started
        own = three_weeks(serve_for_module({}), folder / "now")
        own.keep()
        yield own


@pytest.fixture
def weeks(built: Weeks) -> Weeks:
    built.restore()
    return built


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
        opening.reopen(str(weeks.folder / "anew")).made_from
        == opening.open_build(
            opening.reopen(str(weeks.folder / "anew")).spec, str(weeks.folder / "anew"), store
        ).made_from
    )
    weeks.build("2", "--snapshot", "2026-01-08")
    assert weeks.release.release == 4, "nor does a build of the last generation"


@pytest.mark.drill(12)
def test_builds_after_a_generation_and_after_its_rollback_go_on_with_the_dataset_that_is_there(weeks: Weeks) -> None:
    before, store = weeks.samples(), weeks.store.url
    weeks.build("anew", "--generation", "new", "--snapshot", "2026-01-15")
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


def test_a_diff_of_two_weeks_says_that_the_second_leaves_out_what_the_dataset_had(weeks: Weeks) -> None:
    folders = str(weeks.folder / "1"), str(weeks.folder / "2")
    answer = weeks.command("diff", *folders)
    [known] = [row["now"] for row in answer["reasons"] if row["name"] == "known"]
    assert f"B leaves out {known} candidates" in answer["said"]
    assert "wenlan-data release diff" in answer["said"]
    assert "leaves out" not in weeks.command("diff", *reversed(folders))["said"]


@pytest.mark.drill(15)
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
    assert large["image_url"].endswith("/0-large.jpg")
    assert large["split"] == small["split"]
    assert (answer["diff"]["added"]["count"], answer["diff"]["removed"]["count"]) == (1, 6)


def sha256_of(image: Image.Image) -> str:
    return hashlib.sha256(jpeg(image)).hexdigest()


@pytest.mark.drill(15)
def test_a_changed_spec_applies_to_what_is_new(weeks: Weeks) -> None:
    before = weeks.samples()
    longer = [{"name": "text_length", "min_chars": 12}, {"name": "image_sides", "min_side": 64}]
    weeks.show("/e.html", {"6": picture(6), "6withalongname": picture(7)})
    weeks.build("4", "--snapshot", "2026-01-22", filters=longer)
    assert max(len(row["texts"][0]["text"]) for row in before.values()) == 11
    assert weeks.samples().keys() > before.keys(), "what the dataset holds stays"
    assert urls(weeks.samples()) - urls(before) == {"6withalongname"}


@pytest.mark.drill(15)
def test_a_generation_is_of_the_whole_dataset_and_of_one_folder(weeks: Weeks) -> None:
    weeks.build("anew", "--generation", "new", "--until", "filter")
    weeks.show("/e.html", {"6": picture(6)})
    weeks.build("4", "--snapshot", "2026-01-22")
    said = weeks.command("publish", str(weeks.folder / "anew"), code=1)["said"]
    assert "shard: not finished" in said
    assert "contains build" in weeks.build("4", "--generation", "new", code=1)["said"]
    weeks.build("anew")
    assert weeks.release.generation == 2, "the folder knows that it began a generation"
    assert urls(weeks.samples()) == {"0", "1", "2", "3", "4", "5", "6"}


@pytest.mark.drill(15)
def test_a_generation_that_was_overtaken_is_not_published(weeks: Weeks) -> None:
    spec = weeks.folder / "manual.json"
    manual = json.loads(weeks.spec().read_text(encoding="utf-8")) | {"publish": {"approve": "manual"}}
    spec.write_text(json.dumps(manual), encoding="utf-8")
    for name in ("one", "two"):
        place = ("--out", str(weeks.folder / name), "--store", weeks.store.url)
        weeks.command("build", str(spec), *place, "--generation", "new", "--snapshot", name)
    weeks.show("/e.html", {"6": picture(6)})
    weeks.build("4", "--snapshot", "2026-01-22")
    assert "published after" in weeks.command("publish", str(weeks.folder / "one"), code=1)["said"]
    weeks.command("release", "rollback", "growing", "3", "--store", weeks.store.url)
    weeks.command("publish", str(weeks.folder / "one"))
    assert "started by another build" in weeks.command("publish", str(weeks.folder / "two"), code=1)["said"]
    assert urls(weeks.samples()) == {"0", "1", "2", "3", "4", "5"}


@pytest.mark.drill(15)
def test_what_is_stored_nowhere_is_named_and_never_asked_for(weeks: Weeks) -> None:
    """Images whose tars are gone are taken from the shards; what neither holds stays out."""
    before = weeks.samples()
    for tar in (weeks.folder / "1" / "images").glob("*.tar"):
        tar.unlink()
    site = {"name": "site", "kind": "site", "source_kind": "news", "start": [weeks.web.url("/")]}
    columns = {"image_url": "url", "texts": {"alt": "zh"}}
    table = {"name": "table", "kind": "url_table", "source_kind": "news", "path": "t.csv", "columns": columns}
    new = weeks.web.url("/i/new.jpg")
    (weeks.folder / "t.csv").write_text(f"url,zh\n{new},还没有下载的照片\n", encoding="utf-8")
    asked = len(weeks.web.asked)
    answer = weeks.build("anew", "--generation", "new", sources=[site, table])
    assert len(weeks.web.asked) == asked
    assert weeks.splits() == {key: row["split"] for key, row in before.items()}
    [fetched] = [stage["funnel"] for stage in answer["stages"] if stage["name"] == "fetch"]
    assert fetched["dropped"] == 1
    assert "dropped at fetch: not_stored" in weeks.command("explain", str(weeks.folder / "anew"), new)["said"]


@pytest.mark.drill(15)
def test_a_page_that_opted_out_since_and_one_that_the_site_leaves_out_today_stay_out(weeks: Weeks) -> None:
    page = weeks.web.pages["/d.html"]
    weeks.web.pages["/d.html"] = page.replace(b"<title>", b"<meta name='robots' content='noai'><title>")
    weeks.build("4", "--snapshot", "2026-01-22")
    site = {"name": "site", "kind": "site", "source_kind": "news", "start": [weeks.web.url("/")]}
    weeks.build("anew", "--generation", "new", sources=[{**site, "exclude": ["/b.html"]}])
    assert urls(weeks.samples()) == {"0", "1", "3", "4"}


@pytest.mark.drill(15)
def test_what_is_taken_down_leaves_both_generations(weeks: Weeks) -> None:
    weeks.build("anew", "--generation", "new")
    weeks.command("forget", "--store", weeks.store.url, "--url", weeks.web.url("/i/2.jpg"))
    assert urls(weeks.samples()) == {"0", "1", "3", "4", "5"}
    for build in ("1", "anew"):
        captures = b"".join(warc.read_bytes() for warc in (weeks.folder / build / "captures").glob("*.warc.gz"))
        pages = [record for record in gzip.decompress(captures).split(b"WARC/1.0") if b"/i/2.jpg" in record]
        assert pages == [], "its page is in no capture"
    assert weeks.command("verify", weeks.store.releases("growing").folder.at("latest.json"))["ok"]
    weeks.build("again", "--generation", "new", "--snapshot", "2026-02-01")
    assert weeks.release.generation == 3
    assert urls(weeks.samples()) == {"0", "1", "3", "4", "5"}
