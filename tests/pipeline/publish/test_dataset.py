"""Releases of a dataset: what each lists after builds, takedowns and rollbacks, and that a copy needs nothing else."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_specs.build import BuildSpec
from data_specs.release import open_manifest
from data_specs.shard import ContractError, Manifest
from pipeline import cli, opening
from pipeline.errors import ApprovalError, NothingNew, StoreError
from pipeline.files.folder import Folder, read_url
from pipeline.publish import dataset, release
from pipeline.publish.verify import verify
from pipeline.report.diff import diff
from pipeline.rows.records import sha256_hex
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.releases import Releases
from pipeline.store.store import Store
from pipeline.takedown import rewrite_partitions
from pipeline.takedown.forget import Request, forget
from tests.drawn import blobs
from tests.stages import run_noted

pytestmark = pytest.mark.slow

Week = Callable[..., Build]


@pytest.fixture
def week(tmp_path: Path) -> Week:
    """week("2026-11-01", 12): the build of that day over pictures 0 to 11 of one growing folder, not published."""
    photos = tmp_path / "photos"
    photos.mkdir()

    def build(snapshot: str, pictures: int, **more: Any) -> Build:
        for n in range(pictures):
            Image.fromarray(blobs(n, (320, 240))).save(photos / f"{n}.jpg")
            (photos / f"{n}.txt").write_text(f"第{n}张照片，公园里的{'花草树木鸟兽'[n % 6] * (n // 6 + 1)}", "utf-8")
        spec = {"name": "photos", "contact": "mailto:a@b.c", "base": str(tmp_path), **more}
        spec["sources"] = [{"kind": "folder", "name": "mine", "source_kind": "library", "path": "photos"}]
        spec["shards"] = {"dev_share": 0.2, "val_share": 0.2, "samples_per_shard": 5, **more.get("shards", {})}
        out = tmp_path / f"{snapshot}{len(more) or ''}"
        made = opening.open_build(BuildSpec.model_validate(spec), str(out), str(tmp_path / "store"), snapshot)
        run_noted(made, *(name for name in STAGES if name != "report"))
        return made

    return build


def keys(manifest: Manifest, place: str) -> dict[str, str]:
    """Keys with their split, of all samples of a manifest."""
    import pyarrow.parquet as pq

    rows: list[tuple[str, str]] = []
    for shard in manifest.shards:
        table = pq.read_table(f"{manifest.folder_of(shard, place)}/{shard.parquet.path}", columns=["key", "split"])
        rows += zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True)
    assert len(dict(rows)) == len(rows), "a key occurs once in a release"
    return dict(rows)


def releases_of(build: Build) -> Releases:
    return build.store.releases(build.spec.name)


def test_each_build_adds_what_is_new_and_the_release_has_all(week: Week, capsys: pytest.CaptureFixture[str]) -> None:
    held: dict[str, str] = {}
    for number, (snapshot, pictures) in enumerate((("2026-11-01", 12), ("2026-11-08", 14), ("2026-11-15", 17)), 1):
        build = week(snapshot, pictures)
        own = release.publish(build)
        newest = releases_of(build).read()
        assert (newest.release, newest.parent) == (number, f"photos@{number - 1}" if number > 1 else None)
        assert sum(newest.samples.values()) == pictures
        assert sum(own.samples.values()) == pictures - len(held)
        now = keys(newest, releases_of(build).folder.url)
        assert held.items() <= now.items(), "a key, and the split of an image, never change"
        held = now
        if number == 1:
            assert cli.main(["release", "diff", "photos", "--store", build.store.url]) == 2
            assert "photos: has only one release, so there is nothing to compare" in capsys.readouterr().err
    assert [entry.snapshot for entry in newest.builds] == ["2026-11-01", "2026-11-08", "2026-11-15"]
    assert verify(releases_of(build).folder.url) == []
    compared = diff(*(releases_of(build).folder.at(f"00000{n}.json") for n in (1, 3)))
    assert (compared["added"]["count"], compared["removed"]["count"]) == (5, 0)
    assert releases_of(build).numbers() == [1, 2, 3]


@pytest.mark.drill(2)
def test_a_week_without_news_publishes_nothing_and_waits_for_nobody(week: Week) -> None:
    manual = {"publish": {"approve": "manual"}}
    release.publish(week("2026-11-01", 12, **manual), approved=True)
    second = week("2026-11-08", 12, **manual)
    with pytest.raises(NothingNew, match=r"nothing new: .*12 .*dataset photos"):
        release.publish(second)
    assert releases_of(second).numbers() == [1]
    assert not second.shards.exists("manifest.json")
    with pytest.raises(ApprovalError):
        release.publish(week("2026-11-15", 13, **manual))


@pytest.mark.drill(2)
def test_a_build_of_the_same_day_takes_the_place_of_the_one_before(week: Week) -> None:
    release.publish(week("2026-11-01", 12))
    other = week("2026-11-01", 12, filters=[{"name": "text_length", "min_chars": 11}])
    manifest = release.publish(other)
    newest = releases_of(other).read()
    assert [entry.build_id for entry in newest.builds] == [other.build_id]
    assert newest.samples == manifest.samples


def test_a_takedown_is_the_next_release_and_a_rollback_brings_nothing_back(week: Week) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    second = week("2026-11-08", 14)
    release.publish(second)
    request = Request(urls=["folder:///mine/3.jpg"])
    answer = forget(second.store, [first, second], request)
    assert answer["releases"] == {"photos": 3}
    releases = releases_of(second)
    assert sum(releases.read().samples.values()) == 13
    assert verify(releases.folder.url, store=second.store.url) == []
    back = dataset.rollback(second.store, "photos", 1)
    assert (back.release, [b.build_id for b in back.builds]) == (4, [first.build_id])
    assert sum(back.samples.values()) == 11
    assert verify(releases.folder.url, store=second.store.url) == []
    assert forget(second.store, [first, second], request)["releases"] == {"photos": 4}, "nothing left to take down"


def test_a_release_is_verified_against_the_takedowns_of_the_store_it_lies_in(week: Week) -> None:
    build = week("2026-11-01", 12)
    release.publish(build)
    latest = releases_of(build).folder.at("latest.json")
    assert verify(latest, quick=True) == []
    build.store.folder.write_json("forgotten/1.json", {"hashes": [sha256_hex("folder:///mine/3.jpg")]})
    assert [fault.rpartition(": ")[2] for fault in verify(latest, quick=True)] == ["taken down, but still present"]


@pytest.mark.drill(2)
def test_after_a_rollback_what_was_left_out_is_new_again(week: Week) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    release.publish(week("2026-11-08", 14))
    dataset.rollback(first.store, "photos", 1)
    third = week("2026-11-15", 14)
    release.publish(third)
    newest = releases_of(third).read()
    assert [entry.snapshot for entry in newest.builds] == ["2026-11-01", "2026-11-15"]
    assert len(keys(newest, releases_of(third).folder.url)) == 14


@pytest.mark.drill(2)
def test_a_dataset_is_withdrawn_while_its_shards_change(week: Week, tmp_path: Path) -> None:
    build = week("2026-11-01", 12)
    release.publish(build)
    dataset.withdraw(build, "a reason")
    with pytest.raises(StoreError, match="withdrawn: a reason"):
        dataset.copy(build.store, "photos", str(tmp_path / "copy"))
    with pytest.raises(ContractError, match=r"latest.json: dataset photos is withdrawn: a reason"):
        open_manifest(releases_of(build).folder.url, read_url)
    again = dataset.renew(build.store, "photos", {})
    assert again is not None
    assert again.release == 1, "nothing has changed"
    assert open_manifest(releases_of(build).folder.url, read_url)[1] == again


def test_a_copy_needs_nothing_else(week: Week, tmp_path: Path) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    second = week("2026-11-08", 14)
    release.publish(second)
    target = tmp_path / "copy"
    copied = dataset.copy(second.store, "photos", str(target))
    assert copied.content_digest == releases_of(second).read().content_digest
    inode = next((Path(first.out) / "shards").glob("*.tar")).stat().st_ino
    assert inode in {path.stat().st_ino for path in target.rglob("*.tar")}, "hard links take no room"
    for place in (first.out, second.out, tmp_path / "store"):
        shutil.rmtree(place)
    moved = target.rename(tmp_path / "moved")
    assert verify(moved) == []
    lists = json.loads((moved / "train.json").read_bytes())["shardlist"]
    assert all((moved / entry["url"]).stat().st_size == entry["filesize"] for entry in lists)
    assert {"README.md", "croissant.json", "manifest.json"} <= {path.name for path in moved.iterdir()}


@pytest.mark.drill(1)
def test_a_copy_of_what_was_taken_down_since_is_refused(week: Week, tmp_path: Path) -> None:
    build = week("2026-11-01", 12)
    release.publish(build)
    forget(build.store, [build], Request(urls=["folder:///mine/3.jpg"]))
    with pytest.raises(StoreError, match=r"not the file that the release lists; was something taken down since\?"):
        dataset.copy(build.store, "photos", str(tmp_path / "copy"), 1)
    with pytest.raises(StoreError, match="not empty"):
        dataset.copy(build.store, "photos", str(tmp_path))


LOST = {
    "build": ("../2026-11-01", "the folder is gone, or its disk is not mounted"),
    "shards": ("shards", "shards is gone, or holds nothing; mount its disk"),
    "manifest": ("shards/manifest.json", "manifest.json: missing, but a release needs it; run wenlan-data publish"),
    "tar": ("shards/*.tar", ".tar is missing; mount its disk or restore it, and run the same command again"),
}


@pytest.mark.drill(2)
def test_a_build_that_is_not_whole_is_named_before_a_release_lists_it(
    week: Week, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    release.publish(week("2026-11-08", 14))
    third, store = week("2026-11-15", 15), first.store
    for path, why in LOST.values():
        lost = next(Path(first.out).glob(path)).resolve()
        lost.rename(tmp_path / "lost")
        with pytest.raises(StoreError, match=rf"its release lists .*2026-11-01: .* is unreachable: .*{why}"):
            dataset.rollback(store, "photos", 1)
        with pytest.raises(StoreError, match=rf"not published, since its release would list .*2026-11-01: .*{why}"):
            release.publish(third)
        with pytest.raises(StoreError, match=why):
            dataset.copy(store, "photos", str(tmp_path / "copy"))
        assert any(why in fault for fault in verify(releases_of(first).folder.url)), why
        (tmp_path / "lost").rename(lost)
    looked_at, look = list[str](), dataset._absence
    monkeypatch.setattr(dataset, "_absence", lambda store, out: (looked_at.append(out), look(store, out))[1])
    release.publish(third)
    assert [Path(out).name for out in looked_at] == ["2026-11-01", "2026-11-08"], "each once"
    assert verify(releases_of(first).folder.url) == []


@pytest.mark.drill(2)
def test_a_build_that_a_rollback_left_out_is_not_published_again_beside_what_came_after(week: Week) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    second = week("2026-11-08", 14)
    release.publish(second)
    dataset.rollback(first.store, "photos", 1)
    third = week("2026-11-15", 14)  # keeps what the second had
    release.publish(third)
    with pytest.raises(StoreError, match=r"photos-2026-11-15-\w+ was published after this build started"):
        release.publish(second)
    assert verify(releases_of(third).folder.url) == []
    again = week("2026-11-08", 14)
    assert again.fingerprints["dedup.leaders"] != second.fingerprints["dedup.leaders"], "the command goes on from there"


@pytest.mark.drill(2)
def test_a_publish_that_was_killed_before_store_knew_of_it_is_registered_by_the_next(
    week: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = week("2026-11-01", 12)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "register", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            release.publish(build)
    assert build.store.registered() == []
    release.publish(build)
    assert [entry["build_id"] for entry in build.store.registered()] == [build.build_id]


@pytest.mark.drill(2)
def test_a_publish_after_a_killed_takedown_lists_the_shards_as_they_are(
    week: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    request = Request(urls=["folder:///mine/3.jpg"])
    with monkeypatch.context() as patch:  # its shards and its manifest are done, nothing else
        patch.setattr(rewrite_partitions, "rewritable", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            forget(first.store, [first], request)
    second = week("2026-11-08", 14)
    release.publish(second)
    assert releases_of(second).latest().withdrawn, "the takedown is not over"
    assert "folder:///mine/3.jpg" not in str(releases_of(second).read().model_dump())
    forget(first.store, [first, second], request)
    assert not releases_of(second).latest().withdrawn
    assert verify(releases_of(second).folder.url, store=first.store.url) == []


@pytest.mark.drill(2)
def test_a_build_of_which_nothing_is_left_is_published_again(week: Week) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    second = week("2026-11-08", 13)
    release.publish(second)
    forget(second.store, [first, second], Request(urls=["folder:///mine/12.jpg"]))
    release.publish(week("2026-11-08", 13))
    assert not releases_of(first).latest().withdrawn
    assert sum(releases_of(first).read().samples.values()) == 12


def test_a_rollback_takes_no_build_of_another_dataset(week: Week) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    manifest = json.loads(first.shards.read("manifest.json"))
    first.shards.write("manifest.json", json.dumps({**manifest, "build_id": "other-2026-11-01-0"}).encode())
    with pytest.raises(StoreError, match=r"2026-11-01: contains other-2026-11-01-0 instead of photos-2026-11-01-"):
        dataset.rollback(first.store, "photos", 1)


@pytest.mark.drill(2)
def test_a_takedown_that_waits_for_a_publish_renews_the_release_that_came_meanwhile(
    week: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    second = week("2026-11-08", 14)
    lock, waiting = Store.lock, [True]

    @contextlib.contextmanager
    def publishing_first(store: Store) -> Iterator[None]:
        if waiting.pop() if waiting else False:
            release.publish(second)
        with lock(store):
            yield

    with monkeypatch.context() as patch:
        patch.setattr(Store, "lock", publishing_first)
        renewed = dataset.renew(first.store, "photos", {})
    assert renewed is not None
    assert (renewed.release, len(renewed.builds)) == (2, 2)
    assert releases_of(first).read() == renewed


def test_a_build_in_which_another_command_is_at_work_is_not_published(week: Week) -> None:
    build = week("2026-11-01", 12)
    with build_json.sole_owner(build), pytest.raises(StoreError, match="another wenlan-data is running here"):
        release.publish(build)


@pytest.mark.drill(2)
def test_what_was_replaced_is_not_held(week: Week) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    second = week("2026-11-08", 12)
    assert second.earlier_samples == 12
    first.store.unregister(first.build_id, first.out)
    assert second.earlier_samples == 0


@pytest.mark.drill(2)
def test_a_build_that_is_published_while_a_takedown_looks_for_its_content_loses_it_too(
    week: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = week("2026-11-01", 12)
    release.publish(first)
    second, at_work = week("2026-11-08", 14), [True]

    def publishing_first(*arguments: Any, **options: Any) -> Any:
        if at_work.pop() if at_work else False:
            release.publish(second)
        return forget(*arguments, **options)

    monkeypatch.setattr("pipeline.takedown.forget.forget", publishing_first)
    assert cli.main(["forget", "--store", first.store.url, "--url", "folder:///mine/13.jpg"]) == 0
    assert sum(releases_of(second).read().samples.values()) == 13
    assert verify(releases_of(second).folder.url, store=first.store.url) == []


def test_a_copy_writes_nothing_out_of_its_folder(week: Week, tmp_path: Path) -> None:
    build = week("2026-11-01", 12)
    release.publish(build)
    [file] = (tmp_path / "store/datasets/photos").glob("000001.json")
    raw = json.loads(file.read_bytes())
    for name in ("../../../../climbed.tar", "/climbed.tar", "a/../../../climbed.tar"):
        raw["shards"][0]["tar"]["path"] = name
        file.write_text(json.dumps(raw), encoding="utf-8")
        with pytest.raises(StoreError, match=r"climbed.tar', which is outside its folder"):
            dataset.copy(build.store, "photos", str(tmp_path / "copy"))
        assert not list(tmp_path.rglob("climbed*"))
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)


@pytest.mark.drill(3)
def test_blurred_faces_do_not_stand_in_a_release_beside_clear_ones(week: Week) -> None:
    blurring = {"shards": {"faces": "blur"}, "regions": {"detectors": [{"name": "faces"}]}}
    release.publish(week("2026-11-01", 6))
    later = week("2026-11-08", 12, **blurring)
    with pytest.raises(StoreError, match=r"blurs faces, but .*2026-11-01.* keeps them; rebuild it"):
        release.publish(later)
    assert not later.shards.exists("manifest.json"), "nothing is published"
    release.publish(week("2026-11-01", 6, **blurring))  # in the place of the one that keeps them
    later = week("2026-11-08", 18, **blurring)
    release.publish(later)
    assert [own.snapshot for own in releases_of(later).read().builds] == ["2026-11-01", "2026-11-08"]
    clear = week("2026-11-15", 24)
    with pytest.raises(StoreError, match=r"keeps faces, but .*2026-11-08.* blurs them; set shards\.faces: blur, or"):
        release.publish(clear)
    assert releases_of(later).read().images is not None


@pytest.mark.drill(2)
def test_a_copy_that_fails_leaves_nothing_and_can_be_made_again(
    week: Week, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = week("2026-11-01", 12)
    release.publish(build)
    target, write = tmp_path / "copy", Folder.write
    for stop in (KeyboardInterrupt(), StoreError("usb", "is full")):

        def stopped(self: Folder, name: str, data: bytes, stop: BaseException = stop) -> None:
            if name == "README.md":
                raise stop
            write(self, name, data)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "write", stopped)
            with pytest.raises(type(stop)):
                dataset.copy(build.store, "photos", str(target))
        assert list(target.iterdir()) == []
    dataset.copy(build.store, "photos", str(target))
    assert verify(target) == []


@pytest.mark.drill(2)
def test_a_takedown_during_a_copy_ends_it(week: Week, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shard that is copied already nothing would be seen in the files."""
    build = week("2026-11-01", 12)
    release.publish(build)
    copied, link = [0], dataset._copy_file

    def while_somebody_forgets(*words: Any) -> None:
        link(*words)
        copied[0] += 1
        if copied[0] == len(build.packed()) * 3:  # the last one: tar, Parquet and regions of each shard
            forget(build.store, [build], Request(urls=["folder:///mine/3.jpg"], exact=True))

    monkeypatch.setattr(dataset, "_copy_file", while_somebody_forgets)
    with pytest.raises(StoreError, match="a takedown happened during the copy; run the same command again"):
        dataset.copy(build.store, "photos", str(tmp_path / "copy"))
    assert list((tmp_path / "copy").iterdir()) == []
