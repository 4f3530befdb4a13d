"""Builds that were moved or deleted: what names them, and the commands that correct what is noted about them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from data_specs.release import open_manifest
from data_specs.shard import SPLITS
from pipeline import cli, opening
from pipeline.errors import StoreError
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.stages import STAGES
from pipeline.store.releases import Releases
from pipeline.store.store import Store
from pipeline.takedown import known_builds, places
from tests.weeks import Weeks

pytestmark = pytest.mark.slow


@pytest.fixture
def two(weeks: Weeks) -> Weeks:
    """The dataset `weekly` with builds of two weeks, of three pictures each; made once, and copied to its place."""
    made = weeks.folder.with_name("two")
    if made.exists():
        shutil.copytree(made, weeks.folder, dirs_exist_ok=True)
        return weeks
    for day, pictures in (("2026-01-01", range(3)), ("2026-01-08", range(6))):
        release.publish(weeks.build(day, pictures))
    shutil.copytree(weeks.folder, made)
    return weeks


def run(weeks: Weeks, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and stderr of a command with --store."""
    capsys.readouterr()
    return cli.main([*words, "--store", weeks.store]), capsys.readouterr().err


def samples(weeks: Weeks) -> int:
    """Samples of the newest release, as any reader finds them: each of its files is there."""
    _, manifest = open_manifest(f"{weeks.store}/datasets/weekly", lambda path: Path(path).read_bytes())
    assert verify(f"{weeks.store}/datasets/weekly") == []
    return sum(manifest.samples.values())


@pytest.mark.drill(3)
def test_a_folder_that_was_moved_is_named_before_anything_is_published_and_is_found_once_that_is_noted(
    two: Weeks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Week two published a release of 250 samples at a path that was gone, and exited with 0."""
    first, away = two.folder / "2026-01-01", tmp_path / "other disk" / "builds"
    away.mkdir(parents=True)
    first.rename(away / first.name)
    third = two.build("2026-01-15", range(8))
    with pytest.raises(StoreError) as refused:
        release.publish(third)
    line = f"{first}: weekly-2026-01-01-"
    assert f"not published, since its release would list {line}" in str(refused.value)
    assert not (Path(third.out) / "shards/manifest.json").exists()
    assert Releases(Store(two.store).folder / "datasets/weekly").numbers() == [1, 2]
    assert verify(f"{two.store}/datasets/weekly")[0].startswith(line)
    for words, code in (
        (("release", "show", "weekly"), 0),
        (("release", "copy", "weekly", "--out", str(tmp_path / "copy")), 1),
        (("release", "rollback", "weekly", "1"), 1),
        (("forget", "--dry-run", "--exact", "--url", "folder:///album/001.jpg"), 1),
    ):
        done, said = run(two, capsys, *words)
        assert done == code
        assert "the folder is gone, or its disk is not mounted" in said, words
        assert f"run wenlan-data store move {first} NEW --store {two.store}" in said, words
        assert "taken down since" not in said, words

    code, said = run(two, capsys, "store", "move", str(two.folder), str(away))
    assert (code, f"{away}/2026-01-08: does not contain" in said) == (1, True), "the other build was not moved"
    code, said = run(two, capsys, "store", "move", str(first), str(away / first.name))
    assert code == 0, said
    assert "dataset weekly: corrected releases 1, 2" in said
    assert samples(two) == 6
    assert verify(f"{two.store}/datasets/weekly/000001.json") == []
    assert run(two, capsys, "forget", "--exact", "--url", "folder:///album/001.jpg")[0] == 0
    release.publish(two.build("2026-01-15", range(8)))
    assert samples(two) == 7
    assert str(away) in (Path(two.store) / "datasets/weekly/000004/croissant.json").read_text()
    assert run(two, capsys, "release", "rollback", "weekly", "1")[0] == 0
    assert samples(two) == 2


@pytest.mark.drill(3)
def test_store_and_builds_that_are_moved_together_need_no_command(two: Weeks, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    two.folder.rename(moved)
    two.folder.mkdir()  # where they were is another dataset now
    now = Weeks(moved, two.encode)
    assert samples(now) == 6
    beside = moved / "store/datasets/weekly/000002"
    lists = [json.loads((beside / f"{split}.json").read_bytes())["shardlist"] for split in SPLITS]
    named = {os.path.normpath(beside / shard["url"]) for own in lists for shard in own}
    assert named == {str(tar) for tar in moved.glob("2026-01-0*/shards/*.tar")}
    assert not [path for path in beside.iterdir() if str(two.folder).encode() in path.read_bytes()]
    builds, faults = known_builds.opened(Store(now.store), STAGES)
    assert ([build.out for build in builds], faults) == ([f"{moved}/2026-01-01", f"{moved}/2026-01-08"], [])
    assert {build.store.url for build in builds} == {now.store}
    assert cli.main(["forget", "--store", now.store, "--exact", "--url", "folder:///album/001.jpg"]) == 0
    release.publish(now.build("2026-01-15", range(8)))
    assert samples(now) == 7
    assert list(two.folder.iterdir()) == []


@pytest.mark.drill(3)
@pytest.mark.parametrize("place", ["{}/../elsewhere/1", "{}/../weekly/1"])
def test_a_build_that_is_given_by_a_path_with_dots_is_published_for_readers(weeks: Weeks, place: str) -> None:
    """`--out ../elsewhere/1` was noted as a place in the folder of STORE, which readers refuse as one outside it."""
    out = place.format(weeks.folder).replace("weekly", weeks.folder.name)
    build = weeks.finish(opening.open_build(weeks.spec(range(3)), out, weeks.store, "2026-01-01"))
    release.publish(build)
    assert samples(weeks) == 3
    assert [known["out"] for known in Store(weeks.store).known_builds()] == [os.path.normpath(out)]


@pytest.mark.parametrize("at", ["the releases", "the records"])
def test_a_move_that_is_killed_is_finished_by_the_same_command(
    two: Weeks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    first, away = two.folder / "2026-01-01", tmp_path / "away"
    first.rename(away)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((places.card, "release_files") if at == "the releases" else (Store, "relocate")), killed)
        with pytest.raises(KeyboardInterrupt):
            places.move(Store(two.store), str(first), str(away))
    withdrawn = Store(two.store).releases("weekly").latest().withdrawn
    assert withdrawn.startswith("its builds were moved; if no command is running") == (at == "the releases")
    places.move(Store(two.store), str(first), str(away))
    assert samples(two) == 6
    assert [Path(known["out"]) for known in Store(two.store).known_builds()] == [away, two.folder / "2026-01-08"]
    with pytest.raises(StoreError, match=r"no build that STORE .* knows"):
        places.move(Store(two.store), str(first), str(away))


def test_what_store_notes_of_pictures_and_crawls_moves_with_their_build(two: Weeks, tmp_path: Path) -> None:
    first, away, store = two.folder / "2026-01-01", tmp_path / "away", Store(two.store)
    rows = [
        {"fetch_id": f"{number}" * 64, "tar": store.relative_place(f"{out}/images/a.tar"), "sha256": "2" * 64}
        for number, out in enumerate((first, two.folder / "2026-01-08"))
    ]
    store.fetched().put(pa.Table.from_pylist(rows))
    crawl = {"snapshot": "2026-01-01", "warc": f"{first}/captures/a.warc.gz", "table": f"{first}/captures/a.parquet"}
    store.folder.write_json("crawled/site.json", crawl)
    record = two.folder / "2026-01-08/build.json"
    made_from = [{"build_id": "weekly-1", "snapshot": "2026-01-01", "out": str(first), "identities": ""}]
    record.write_text(json.dumps({**json.loads(record.read_bytes()), "made_from": made_from}))
    first.rename(away)
    places.move(store, str(first), str(away))
    assert json.loads(record.read_bytes())["made_from"] == [{**made_from[0], "out": str(away)}]
    now = store.fetched().get([row["fetch_id"] for row in rows])
    assert now is not None
    assert [store.resolve_place(tar) for tar in now.sort_by("fetch_id")["tar"].to_pylist()] == [
        f"{away}/images/a.tar",
        f"{two.folder}/2026-01-08/images/a.tar",
    ]
    assert store.folder.read_json("crawled/site.json")["warc"] == f"{away}/captures/a.warc.gz"


def test_a_copy_that_stays_where_it_was_is_no_move(two: Weeks, tmp_path: Path) -> None:
    first = two.folder / "2026-01-01"
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(StoreError, match=r"still contains weekly-2026-01-01-.*; nothing was changed"):
        places.move(Store(two.store), str(first), str(tmp_path / "copy"))
    assert samples(two) == 6


@pytest.mark.parametrize("gone", [True, pytest.param(False, marks=pytest.mark.drill(1))])
def test_a_deleted_build_leaves_its_dataset_and_what_it_held_is_new_again(two: Weeks, gone: bool) -> None:
    first, store = two.folder / "2026-01-01", Store(two.store)
    if gone:
        shutil.rmtree(first)
    assert cli.main(["store", "delete", str(first), "--store", two.store]) == 0
    assert [Path(known["out"]).name for known in store.known_builds()] == ["2026-01-08"]
    assert not first.exists() or list(first.iterdir()) == []
    assert samples(two) == 3
    again = two.build("2026-01-15", range(3))
    assert sum(release.publish(again).samples.values()) == 3


def test_a_store_in_the_folder_of_a_build_stays_when_that_is_deleted(weeks: Weeks) -> None:
    store = f"{weeks.folder}/2026-01-01/kept/store"
    build = weeks.finish(
        opening.open_build(weeks.spec(range(3)), str(weeks.folder / "2026-01-01"), store, "2026-01-01")
    )
    assert [known["out"] for known in Store(store).known_builds()] == [build.out]
    assert cli.main(["store", "delete", build.out, "--store", store]) == 0
    assert [path.name for path in Path(build.out).iterdir()] == ["kept"]
    assert Store(store).known_builds() == []


def test_a_folder_that_another_store_has_taken_over_is_not_deleted(two: Weeks, tmp_path: Path) -> None:
    first = two.folder / "2026-01-01"
    known = json.loads((first / "build.json").read_bytes())
    Store(str(tmp_path / "other")).check()
    (first / "build.json").write_text(json.dumps({**known, "store": str(tmp_path / "other"), "store_from_here": ""}))
    _, [fault] = known_builds.opened(Store(two.store), STAGES)
    assert f"contains a build of another STORE, {tmp_path}/other; run the same command there" in fault
    assert places.delete(Store(two.store), STAGES, str(first))["deleted"] is False
    assert (first / "build.json").exists()
    assert opening.reopen(str(first)).store.url == str(tmp_path / "other")
