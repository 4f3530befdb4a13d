"""Places: builds that run, that are old or unfinished, releases, folders of builds; each says what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError, StoreError
from pipeline.publish import release
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Running
from pipeline.studio.facets import Filters
from pipeline.studio.place import describe, notices, open_place
from pipeline.takedown import garbage

pytestmark = pytest.mark.slow

StudioOf = Callable[..., Any]


def kinds(place: Any) -> list[str]:
    return [notice["kind"] for notice in notices(place)]


def test_a_finished_build_has_nothing_to_say(built: Build) -> None:
    place = open_place(built.out, STAGES)
    assert (place.kind, kinds(place), place.baseline) == ("build", [], None)
    said = describe(place)
    assert said["builds"][0]["verdict"] == "ready"
    assert said["name"] == "synthetic"


def test_a_running_build_says_so_and_shows_what_was_decided(own: Callable[..., Build], studio_of: StudioOf) -> None:
    build = own()
    build.stage("report").unfinish()
    build_json.note(build, running=Running("report", build.fingerprints["report"], build_json.now(), 0, 1))
    with build_json.sole_owner(build):
        studio = studio_of(build.out)
        [said] = [n for n in studio.first_data()["notices"] if n["kind"] == "running"]
        assert "stage report" in said["en"]
        assert "正在构建" in said["zh"]
        assert studio.opened.catalog.counts(Filters()).total > 0
    stopped = open_place(build.out, STAGES)
    assert "running" not in kinds(stopped)
    assert "unfinished" in kinds(stopped)


def test_a_build_that_stopped_after_a_stage_says_which_comes_next(weeks: Any, studio_of: StudioOf) -> None:
    from tests.stages import run_noted

    build = weeks.open("2026-01-01", range(6))
    run_noted(build, "crawl", "extract", "admit")
    studio = studio_of(build.out)
    [said] = studio.first_data()["notices"]
    assert said["kind"] == "unfinished"
    assert "stage fetch has not run yet" in said["en"]
    assert studio.facets(Filters())["total"] == 0


@pytest.mark.drill(2)
def test_an_old_build_says_what_gc_deleted(weeks: Any, studio_of: StudioOf) -> None:
    first = weeks.build("2026-01-01", range(12))
    release.publish(first)
    second = weeks.build("2026-01-08", range(15))
    release.publish(second)
    garbage.collect(first.store, STAGES, keep=1)
    studio = studio_of(first.out)
    said = studio.first_data()["notices"]
    assert {notice["kind"] for notice in said} == {"gone"}
    assert any("texts other than the primary one" in notice["en"] for notice in said)
    counts = studio.opened.catalog.counts(Filters())
    assert dict(counts.facets["fate"]) == {"kept": 12}
    [row] = studio.opened.items.briefs(studio.opened.catalog.positions(Filters(), 0, 1))
    item = studio.opened.items.detail(studio.row_at(row["pos"], studio.opened.catalog.digest)[1])
    assert item["picture"]["width"] == 260, "what was kept has its picture in the shards"


@pytest.mark.drill(3)
def test_a_release_shows_the_builds_at_hand_and_the_samples_of_the_others(weeks: Any, studio_of: StudioOf) -> None:
    import shutil

    first = weeks.build("2026-01-01", range(12))
    release.publish(first)
    second = weeks.build("2026-01-08", range(15))
    release.publish(second)
    path = f"{weeks.store}/datasets/weekly/latest.json"
    whole = studio_of(path)
    assert whole.first_data()["kind"] == "release"
    counted = dict(whole.opened.catalog.counts(Filters()).facets["build"])
    assert counted == {first.build_id: 12, second.build_id: 15}
    (Path(first.out) / "build.json").rename(Path(first.out) / "elsewhere.json")
    part = studio_of(path)
    [said] = part.first_data()["notices"]
    assert said["kind"] == "absent"
    counts = part.opened.catalog.counts(Filters())
    assert dict(counts.facets["build"]) == {first.build_id: 12, second.build_id: 15}
    kept = Filters({"build": (first.build_id,)})
    rows = part.opened.items.briefs(part.opened.catalog.positions(kept, 0, 20))
    assert {row["fate"] for row in rows} == {"kept"}
    thumb = part.opened.pictures.thumb(part.opened.catalog.rows([rows[0]["pos"]])[0], 320)
    assert (thumb.width, thumb.height) == (260, 220)
    assert "小猫" in "".join(row["text"] for row in rows)
    shutil.rmtree(first.out)
    gone = studio_of(path)
    assert any("files are missing" in notice["en"] for notice in gone.first_data()["notices"])
    row = gone.opened.catalog.rows(gone.opened.catalog.positions(Filters({"build": (second.build_id,)}), 0, 1))[0]
    assert gone.opened.pictures.thumb(row, 320).width == 260


@pytest.mark.drill(2)
def test_a_known_picture_has_its_leader_beside_it_from_the_build_that_holds_it(weeks: Any, studio_of: StudioOf) -> None:
    release.publish(weeks.build("2026-01-01", range(12)))
    second = weeks.build("2026-01-08", range(15))
    studio = studio_of(second.out)
    [place, *_] = studio.opened.catalog.positions(Filters({"fate": ("known",)}), 0, 1)
    row = studio.opened.catalog.rows([place])[0]
    item = studio.opened.items.detail(row)
    if item["leader"] is not None:
        assert item["leader"]["held"]["dataset"] == "weekly"
        assert studio.opened.pictures.earlier_thumb(row, row["duplicate_of"], 320).width == 260


def test_a_folder_of_builds_is_one_place(weeks: Any, studio_of: StudioOf, tmp_path: Path) -> None:
    builds = [weeks.build(day, pictures) for day, pictures in (("2026-01-01", range(5)), ("2026-01-08", range(4)))]
    studio = studio_of(str(weeks.folder), folder=True)
    counted = dict(studio.opened.catalog.counts(Filters()).facets["build"])
    assert counted == {builds[0].build_id: 5, builds[1].build_id: 4}
    assert len(studio.first_data()["builds"]) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="contains no build"):
        open_place(str(tmp_path / "empty"), STAGES, folder=True)


def test_what_is_no_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises((StoreError, ValueError)):
        open_place(str(tmp_path / "none"), STAGES)
