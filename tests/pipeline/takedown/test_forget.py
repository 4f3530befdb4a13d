"""Forget: what is taken down is gone from every file, nothing else changes, and a kill anywhere can be finished."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.build import PluginRef
from data_specs.shard import decode_sample, read_manifest
from pipeline import cli, opening, run
from pipeline.errors import NothingNew, StoreError
from pipeline.files.folder import place_of
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.report.diff import diff
from pipeline.report.funnel import faults, read_funnels
from pipeline.rows.records import order_key
from pipeline.stages import STAGES
from pipeline.stages.admit import admit
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns
from pipeline.takedown import forget as forget_module
from pipeline.takedown import garbage, known_builds, rewrite_shards
from pipeline.takedown.forget import Request, forget

pytestmark = pytest.mark.slow

Run = Callable[[Build, str], None]


@pytest.fixture(scope="module")
def made(synthetic: Any, run_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The synthetic build with shards, report and manifest, made once."""
    folder = tmp_path_factory.mktemp("made")
    build: Build = synthetic.make(folder)[0]
    for name in ("shard", "report"):
        run_stage(build, name)
    release.publish(build)
    return build


@pytest.fixture
def published(made: Build, tmp_path: Path) -> Build:
    """A copy of it, and caches in STORE as the stages would leave them."""
    return copied(made, tmp_path / "own")


def copied(build: Build, folder: Path) -> Build:
    shutil.copytree(build.out, folder / "build")
    shutil.copytree(build.store.url, folder / "store")
    copy = replace(build, out=str(folder / "build"), store=Store(str(folder / "store")))
    store = copy.store
    for name, cache in (("measure", store.features("features-x")), ("detect", store.regions("grid-x"))):
        for stage in copy.history(name):
            for record in stage.records():
                suffix = next(s for s in record.files if s.endswith("parquet") and s != "decisions.parquet")
                cache.put(stage.table(record, suffix))
    [fetch] = copy.history("fetch")
    for record in fetch.records():
        rows = fetch.table(record).to_pylist()
        tar = fetch.folder.at(record.files["tar"].name)
        store.fetched().put(pa.Table.from_pylist([{**row, "tar": tar, "policy": ""} for row in rows]))
    return copy


def everything(folder: Path) -> dict[str, str]:
    """What every file below a folder says, Parquet and gzip unpacked, as text in which hex and bytes can be found."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            text = repr(pq.read_table(io.BytesIO(data)).to_pylist()) if path.suffix == ".parquet" else data.hex()
            if path.suffix not in (".parquet", ".tar", ".bin", ".arrow"):
                text = data.decode(errors="replace")
            contents[str(path.relative_to(folder))] = text
    return contents


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kept(synthetic: Any, number: int = 14) -> Any:
    return [item for item in synthetic.items() if item.stage == "shard"][number]


def shard_of(build: Build, item: Any) -> str:
    for path in (Path(build.out) / "shards").glob("*.parquet"):
        if item.candidate.candidate_id in pq.read_table(path)["candidate_id"].to_pylist():
            return path.stem
    return ""


def test_a_dry_run_says_what_would_go_and_changes_nothing(published: Build, synthetic: Any) -> None:
    item, before = kept(synthetic), tree(Path(published.out).parent)
    answer = forget(published.store, [published], Request(urls=[item.candidate.image_url]), dry_run=True)
    assert tree(Path(published.out).parent) == before
    [one] = answer["builds"]
    assert (one["candidates"], one["images"], one["shards"]) == (1, 1, [shard_of(published, item)])
    assert [sample["key"] for sample in one["samples"]] == [item.candidate.candidate_id[:32]]


def test_nothing_of_it_is_let_in_again(published: Build, synthetic: Any) -> None:
    item = kept(synthetic)
    forget(published.store, [published], Request(urls=[item.candidate.image_url]))
    takedowns = published.store.takedowns()
    elsewhere = replace(item.candidate, origin="https://x.example/", page_url="https://x.example/")
    for candidate in (item.candidate, elsewhere):
        assert [d.reason for d in admit([candidate], published.spec, takedowns)[1]] == ["forgotten"]
    [decision] = admit([elsewhere], published.spec, takedowns)[1]
    assert (decision.url, decision.page_url, decision.text) == ("", "", ""), "not even as what was refused"
    assert takedowns.images([item.sha256]) == {item.sha256}, "the same bytes elsewhere"
    [name] = (Path(published.store.url) / "forgotten").iterdir()
    raw = json.loads(name.read_bytes())
    assert all(len(value) == 64 and int(value, 16) for value in raw["hashes"]), "hashes only"
    assert item.candidate.image_url not in name.read_text("utf-8")


def test_a_domain_takes_what_was_found_there_and_leaves_pictures_that_others_show(
    published: Build, synthetic: Any, tmp_path: Path
) -> None:
    answer = forget(published.store, [published], Request(domains=["IMG1.example."]))
    removed = [i for i in synthetic.items() if i.stage == "shard" and "img1" in i.candidate.image_url]
    assert {s["key"] for s in answer["builds"][0]["samples"]} == {i.candidate.candidate_id[:32] for i in removed}
    assert verify(Path(published.out)) == []
    said = everything(Path(published.out))
    assert [path for path, text in said.items() if "img1.example" in text] == []
    assert any("img0.example" in text for text in said.values())
    assert not published.store.takedowns().images(i.sha256 for i in removed), (
        "the same picture elsewhere is no part of it"
    )


@pytest.mark.parametrize("what", ["detector", "list", "model"])
@pytest.mark.drill(3)
def test_a_takedown_does_not_wait_for_files_of_the_spec_that_are_gone(
    published: Build, synthetic: Any, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """A year later weights and lists lie elsewhere: the dataset stayed withdrawn, and all of it on the disk."""
    item, spec, nowhere = kept(synthetic, 20), published.spec, "/nowhere/gone"
    first = read_manifest(Path(published.out) / "shards")
    if what == "detector":
        onnx = PluginRef.model_validate({"name": "onnx", "weights": nowhere})
        regions = spec.regions.model_copy(update={"detectors": (*spec.regions.detectors, onnx)})
        spec = spec.model_copy(update={"regions": regions})
    else:
        options = {"name": "lexicon", "lists": {"x": nowhere}} if what == "list" else {"name": "image_faces"}
        own = PluginRef.model_validate({**options, **({"model": nowhere} if what == "model" else {})})
        spec = spec.model_copy(update={"filters": (*spec.filters, own)})
    build = replace(published, spec=spec.with_digest(published.spec.digest))
    with caplog.at_level("WARNING", "wenlan"):
        answer = forget(build.store, [build], Request(urls=[item.candidate.image_url]))
    manifest = read_manifest(Path(build.out) / "shards")
    assert answer["builds"][0]["revision"] == manifest.revision == 1
    assert manifest.detectors == first.detectors
    assert [path for path, said in everything(Path(build.out).parent).items() if item.candidate.image_url in said] == []
    assert "report deleted, since it shows taken-down content" in caplog.text
    assert f"{nowhere}: cannot be read" in caplog.text
    assert [path.name for path in (Path(build.out) / "report").rglob("*") if path.is_file()] == []
    assert not build.stage("report").finished()


@pytest.mark.drill(2)
def test_a_shard_of_which_nothing_is_left_goes(published: Build, synthetic: Any) -> None:
    removed = [i for i in synthetic.items() if i.stage == "shard" and synthetic.split_of(i) == "val"]
    forget(published.store, [published], Request(urls=[i.candidate.image_url for i in removed]))
    folder = Path(published.out) / "shards"
    assert read_manifest(folder).samples["val"] == 0
    assert not list(folder.glob("val-*"))
    assert verify(folder) == []
    assert faults(published, read_funnels(published)[0]) == []


@pytest.mark.drill(1)
def test_what_a_killed_stage_left_before_its_first_record_goes_too(published: Build) -> None:
    """No record named it, so the folder was not looked at: rows of what is taken down stayed there."""
    victim = next(published.stage("shard").records())
    [row, *_] = published.stage("shard").table(victim, "parquet", ["image_url"]).to_pylist()
    left = Path(published.out) / "curated/_nearest"
    for name in ("00000-0123abcd.parquet", ".tmp-00000-x/parquet"):
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_text(row["image_url"], encoding="utf-8")
    forget(published.store, [published], Request(urls=[row["image_url"]], exact=True))
    assert not list(left.glob("*"))


@pytest.mark.drill(2)
def test_a_takedown_that_was_noted_during_another_one_does_not_count_as_carried_out(
    weeks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one had left the build out, since this one was at work in it: its picture stayed published."""
    build = weeks.build("2026-01-01", range(6))
    release.publish(build)
    one, other = (Request(urls=[url], exact=True) for url in ("http://of.nobody/1.jpg", "folder:///album/002.jpg"))
    note = forget_module._note_in_store

    def and_meanwhile(store: Store, takedowns: Takedowns) -> str:
        name = note(store, takedowns)
        with monkeypatch.context() as patch:
            patch.setattr(forget_module, "_note_in_store", note)
            [fault] = forget(store, [opening.reopen(build.out)], other)["faults"]
        assert "another wenlan-data is running here" in fault
        return name

    with monkeypatch.context() as patch:
        patch.setattr(forget_module, "_note_in_store", and_meanwhile)
        assert forget(build.store, [opening.reopen(build.out)], one)["faults"] == []
    again = weeks.open("2026-01-01", range(6))
    list(run.run(again, until="shard", here=True))
    assert sum(release.publish(again).samples.values()) == 5


@pytest.mark.drill(2)
def test_a_takedown_that_goes_on_publishes_no_other_shards_than_it_withdrew(
    published: Build, synthetic: Any, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, and the build made anew by another spec, whose gates nobody has asked and which nobody approved."""
    request = Request(urls=[kept(synthetic).candidate.image_url])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(release, "renew", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(published.store, [published], request)
    assert not (Path(published.out) / "shards/manifest.json").exists()
    other = replace(published, fingerprints={**published.fingerprints, "shard.plan": "a" * 64, "shard": "5" * 64})
    run_stage(other, "shard")
    forget(other.store, [other], request)
    assert not (Path(published.out) / "shards/manifest.json").exists()
    release.publish(other)
    assert verify(Path(other.out)) == []


@pytest.mark.drill(2)
def test_a_takedown_reaches_a_build_that_was_begun_anew_and_killed(weeks: Any) -> None:
    """build.json does not name the shards of the published dataset then, and each takedown ended in an error."""
    first = weeks.build("2026-01-01", range(6))
    release.publish(first)
    forget(first.store, [first], Request(urls=["folder:///album/001.jpg"], exact=True))
    forget(first.store, [], Request(urls=["folder:///album/003.jpg"], exact=True))  # that has not reached the build
    build_json.note(weeks.open("2026-01-01", range(6)))  # what a run does first
    begun = opening.reopen(first.out)
    assert list(begun.fingerprints) == ["crawl", "extract", "fetch.recheck"]
    garbage.collect(first.store, STAGES)
    assert first.stage("dedup").partitions(), "what it was made from is no garbage"
    answer = forget(first.store, [begun], Request(urls=["folder:///album/002.jpg"], exact=True))
    assert [len(answer["builds"][0]["samples"]), answer["releases"]] == [2, {"weekly": 3}]
    assert sum(read_manifest(Path(first.out) / "shards").samples.values()) == 3
    assert verify(Path(first.out)) == []


@pytest.mark.drill(2)
def test_a_takedown_reaches_a_build_whose_publish_was_killed_before_store_knew_it(
    weeks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weeks.build("2026-01-01", range(6))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "register", killed)
        with pytest.raises(KeyboardInterrupt):
            release.publish(first)
    assert first.store.releases("weekly").lists(first.build_id)
    assert cli.main(["forget", "--store", weeks.store, "--exact", "--url", "folder:///album/001.jpg"]) == 0
    assert sum(read_manifest(Path(first.out) / "shards").samples.values()) == 5
    assert verify(f"{weeks.store}/datasets/weekly") == []


@pytest.mark.drill(3)
def test_a_takedown_reaches_every_folder_in_which_a_build_was_published(weeks: Any, tmp_path: Path) -> None:
    """Of two folders with the same spec and snapshot STORE knew the later one alone."""
    spec, builds = weeks.spec(range(6)), []
    for name in ("first", "second", "first"):  # the first one is published again, and is no third folder
        build = weeks.finish(opening.open_build(spec, str(tmp_path / name), weeks.store, "2026-01-01"))
        release.publish(build)
        builds.append(build)
    assert [Path(known["out"]).name for known in Store(weeks.store).registered()] == ["second", "first"]
    assert cli.main(["forget", "--store", weeks.store, "--exact", "--url", "folder:///album/001.jpg"]) == 0
    for build in builds:
        assert sum(read_manifest(Path(build.out) / "shards").samples.values()) == 5
        assert verify(Path(build.out)) == []
    assert verify(f"{weeks.store}/datasets/weekly") == []
    assert garbage.collect(Store(weeks.store), STAGES, keep=1)["deleted"] == [], "both are the newest build"


@pytest.mark.drill(9)
def test_builds_that_cannot_be_read_are_named_and_stop_no_takedown_and_no_gc_in_the_others(
    published_builds: Any, tmp_path: Path
) -> None:
    """Whatever is wrong with them; each is done once it can be read again."""
    published = published_builds(8)
    whole, gone, begun, short, zeros, looped, damaged, newer = published.outs
    moved = {
        gone: tmp_path / "gone",
        begun / "build.json": tmp_path / "begun.json",
        next((short / "images").glob("*.parquet")): tmp_path / "lost.parquet",
        next((zeros / "shards").glob("*.parquet")): tmp_path / "zeros.parquet",
        looped / "pairs/_records": tmp_path / "records",
        damaged / "shards/manifest.json": tmp_path / "manifest.json",
        newer / "build.json": tmp_path / "newer.json",
    }
    for place, aside in moved.items():
        place.rename(aside)
    (begun / "build.json").write_text("[]")
    (zeroed,) = (place for place in moved if place.parent == zeros / "shards")
    zeroed.write_bytes(bytes((tmp_path / "zeros.parquet").stat().st_size))
    (looped / "pairs/_records").symlink_to("_records")  # a disk says no better of a bad block
    (damaged / "shards/manifest.json").write_bytes(b'{"schema_')
    own = json.loads((tmp_path / "newer.json").read_bytes())
    (newer / "build.json").write_text(json.dumps({**own, "spec": {**own["spec"], "later": 1}}))
    unreadable = published.outs[1:]
    for dry_run in (True, False):
        code, said, answer = published.forget(*["--dry-run"] * dry_run)
        assert (code, answer["ok"], left(whole)) == (1, False, 6 if dry_run else 5)
        lines = {out: [line for line in said if line.startswith(f"{out}: was left out")] for out in unreadable}
        assert [len(own) for own in lines.values()] == [1] * len(unreadable)
        assert all("the same command again" in line for [line] in lines.values())
        assert "contains a spec that this wenlan cannot read" in lines[newer][0]
        delete = ("store", "delete", str(gone), "--store", published.store.url)
        assert lines[gone][0].endswith(f"if it was deleted on purpose, wenlan-data {' '.join(delete)}")
    assert verify(f"{published.store.url}/datasets/a") == []
    code, said, _ = published.run("gc")
    assert code == 1
    assert {line.partition(":")[0] for line in said if ": was left out" in line} >= {str(looped), str(gone)}
    for place, aside in moved.items():
        if place.is_symlink() or place.is_file():
            place.unlink()
        aside.rename(place)
    assert [left(folder) for folder in unreadable] == [6] * len(unreadable)
    code, said, answer = published.forget()
    assert (code, answer["ok"], answer["matched"] > 0, answer["faults"]) == (0, True, True, [])
    assert [left(out) for out in published.outs] == [5] * 8
    assert [verify(f"{published.store.url}/datasets/{name}") for name in "abcdefgh"] == [[]] * 8
    shutil.rmtree(gone)
    assert cli.main(list(delete)) == 0
    assert published.forget()[0] == 0
    assert "its only build" in published.store.releases("b").latest().withdrawn


def left(out: Path) -> int:
    """Samples of a published build."""
    return sum(read_manifest(out / "shards").samples.values())


@pytest.mark.drill(2)
@pytest.mark.parametrize("file", ["latest.json", pytest.param("000001.json", marks=pytest.mark.drill(2))])
def test_a_dataset_whose_release_is_damaged_is_named_and_stops_nothing_in_the_others(
    published_builds: Any, file: str
) -> None:
    """It ended every takedown and every gc of the STORE, before anything was done."""
    published = published_builds(2)
    whole, listed = published.outs
    place = Path(published.store.url, "datasets/b", file)
    before = place.read_bytes()
    place.write_bytes(before[: len(before) // 2])
    code, said, answer = published.forget()
    assert code == 1
    [line] = [line for line in said if "was left out" in line]
    assert line.startswith(f"dataset b: was left out, since its release cannot be read ({place}: ")
    assert line.endswith("; restore that file, and run the same command again")
    assert (left(whole), left(listed)) == (5, 6)
    assert answer["releases"] == {"a": 2}
    assert verify(f"{published.store.url}/datasets/a") == []
    code, said, answer = published.run("gc", "--keep-releases", "1")
    assert code == 1
    assert {one["place"] for one in answer["deleted"]} == {
        f"{published.store.url}/datasets/a/{name}" for name in ("000001", "000001.json")
    }
    assert [line for line in said if "was left out" in line] == answer["faults"] == [line]
    place.write_bytes(before)
    assert published.forget()[0] == published.run("gc", "--keep-releases", "1")[0] == 0
    assert left(listed) == 5
    assert verify(f"{published.store.url}/datasets/b") == []


def test_builds_of_a_store_are_found_through_links_each_once(published_builds: Any, tmp_path: Path) -> None:
    published = published_builds(1)
    [build], [out] = published.builds, published.outs
    (tmp_path / "link").symlink_to(out.parent)
    store = Store(f"{tmp_path}/link/{Path(published.store.url).name}")
    [entry] = store.registered()
    twice = [entry, {**entry, "out": str(out)}]
    assert len(known_builds.opened(store, STAGES, twice)[0]) == 1
    published.store.unregister(build.build_id, build.out)  # its publish was killed before STORE knew it
    assert [place_of(one.out) for one in known_builds.opened(store, STAGES)[0]] == [place_of(build.out)]


@pytest.mark.drill(2)
def test_a_takedown_goes_through_links_to_a_build_and_in_it(published_builds: Any, tmp_path: Path) -> None:
    published = published_builds(1)
    [out] = published.outs
    for folder in ("images", "shards"):
        (out / folder).rename(tmp_path / folder)
        (out / folder).symlink_to(tmp_path / folder)
    out.rename(tmp_path / "build")
    out.symlink_to(tmp_path / "build")
    code, said, answer = published.forget()
    assert (code, len(answer["builds"])) == (0, 1), said
    assert out.is_symlink()
    assert (out / "shards").is_symlink()
    assert [own["candidates"] for own in published.forget()[2]["builds"]] == [0], "once"
    assert published.run("forget", "--prove", "folder:///album/001.jpg")[0] == 0
    assert published.run("forget", "--prove", "folder:///album/002.jpg")[0] == 1, "the others are there"
    assert verify(f"{published.store.url}/datasets/a") == []


def test_a_build_that_was_never_published_loses_what_is_taken_down_without_being_named(
    weeks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A week that has nothing new is complete, and holds the pictures that it fetched."""
    release.publish(weeks.build("2026-01-01", range(3)))
    second = weeks.open("2026-01-08", range(3))
    assert [*run.run(second, here=True)][-1].name == "report"
    with pytest.raises(NothingNew):
        release.publish(second)
    begun = weeks.open("2026-01-15", range(3))
    assert [result.name for result in run.run(begun, until="fetch", here=True)][-1] == "fetch"
    build_json.note(weeks.open("2026-01-22", range(3)))  # of a run that was killed at once

    def held() -> dict[str, int]:
        builds = [build_json.reopen(build.out, STAGES) for build in (second, begun)]
        fetched = {build.snapshot: build.stage("fetch") for build in builds}
        return {name: sum(own.table(one).num_rows for one in own.records()) for name, own in fetched.items()}

    assert held() == {"2026-01-08": 3, "2026-01-15": 3}
    words = ["forget", "--store", weeks.store, "--exact", "--url", "folder:///album/001.jpg"]
    assert cli.main(words) == 0
    assert held() == {"2026-01-08": 2, "2026-01-15": 2}
    shutil.rmtree(begun.out)
    capsys.readouterr()
    assert cli.main(words) == 1, "it may lie on a disk that is not mounted"
    assert f"{begun.out}: was left out" in capsys.readouterr().err
    assert cli.main(["store", "delete", begun.out, "--store", weeks.store]) == 0
    assert cli.main(words) == 0
    answer = diff(*(f"{weeks.store}/datasets/weekly/00000{number}.json" for number in (1, 2)))
    assert (answer["a"]["samples"], answer["a"]["taken_down"]) == (3, 1)
    assert (answer["b"]["samples"], answer["b"]["taken_down"]) == (2, 0)
    assert answer["added"]["count"] == answer["removed"]["count"] == 0


@pytest.mark.drill(2)
def test_a_build_in_which_another_command_is_at_work_stops_no_takedown_in_the_others(published_builds: Any) -> None:
    published = published_builds(2)
    builds, (first, second) = published.builds, published.outs
    request = Request(urls=["folder:///album/001.jpg"], exact=True)
    with build_json.sole_owner(builds[0]):
        [fault] = forget(published.store, builds, request)["faults"]
    assert fault.startswith(f"{first}: was left out (another wenlan-data is running here); ")
    assert left(second) == 5
    assert forget(published.store, builds, request)["faults"] == []
    assert left(first) == 5


@pytest.mark.drill(2)
def test_images_that_stay_are_found_where_they_lie_now(published: Build, synthetic: Any) -> None:
    item, other = kept(synthetic), None
    halves = {i: order_key(i.candidate.fetch_id, 0) < "8" for i in synthetic.items() if i.stage == "shard"}
    other = next(i for i in halves if halves[i] == halves[item] and i != item)
    forget(published.store, [published], Request(urls=[item.candidate.image_url]))
    rows = published.store.fetched().get([other.candidate.fetch_id])
    assert rows is not None
    [row] = rows.to_pylist()
    data = Path(published.store.resolve_place(row["tar"])).read_bytes()
    assert data[row["offset"] : row["offset"] + row["size"]] == other.data
    assert published.store.fetched().get([item.candidate.fetch_id]) is None


@pytest.mark.drill(2)
def test_a_build_that_was_not_named_is_not_published_with_what_was_taken_down(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    item = kept(synthetic)
    forget(synthetic_build.store, [], Request(urls=[item.candidate.image_url]))
    with pytest.raises(
        StoreError, match="1 of its samples were taken down after it started; run wenlan-data build again"
    ):
        release.publish(synthetic_build)
    forget(synthetic_build.store, [synthetic_build], Request())
    assert sum(release.publish(synthetic_build).samples.values()) == synthetic.KEPT - 1


def test_a_sample_with_fewer_texts_says_so_in_all_three_places(published: Build, synthetic: Any) -> None:
    folder = Path(published.out) / "shards"
    [item] = [i for i in synthetic.items() if i.stage == "shard" and len(i.candidate.texts) == 2][:1]
    name = shard_of(published, item)
    index = pq.read_table(folder / f"{name}.parquet")
    keys = index["candidate_id"].to_pylist()
    stay = [[0] if key == item.candidate.candidate_id else None for key in keys]
    rows = rewrite_shards._repack(folder / f"{name}.tar", folder / "new.tar", index, [True] * len(keys), stay)
    row = rows[keys.index(item.candidate.candidate_id)]
    data = (folder / "new.tar").read_bytes()
    sample = decode_sample(data[row["json_offset"] :][: row["json_size"]], "it")
    assert [t.text for t in sample.texts] == [t["text"] for t in row["texts"]] == [item.candidate.texts[0].text]


@pytest.mark.drill(2)
def test_the_reports_of_a_dataset_show_nothing_of_it_and_say_what_became_of_theirs(weeks: Any) -> None:
    """The second build knows the picture under another address: it shows the first one's as a leader."""
    weeks = replace(weeks, until="report")
    first = weeks.build("2026-01-01", range(6))
    release.publish(first)
    spec = weeks.spec(range(1, 8))
    place = Path(spec.sources[0].options["path"])
    for suffix in ("jpg", "txt"):
        shutil.copy(place / f"001.{suffix}", place / f"copy.{suffix}")
    second = weeks.build_again("2026-01-08", spec)
    release.publish(second)
    folder = Path(second.out) / "report"
    before = json.loads((folder / "report.json").read_bytes())
    [cluster] = before["clusters"]
    assert cluster["held_by"] == first.build_id

    answer = forget(first.store, [first, second], Request(["folder:///album/001.jpg"], [], [], [], exact=True))
    assert answer["releases"] == {"weekly": 3}
    report = json.loads((folder / "report.json").read_bytes())
    shown = [member["url"] for group in report["clusters"] for member in group["members"]]
    assert "folder:///album/001.jpg" not in shown
    assert "folder:///album/001.jpg" not in (folder / "index.html").read_text("utf-8")
    assert (report["state"]["verdict"], report["state"]["release"]) == ("published", 2)
    own = json.loads((Path(first.out) / "report/report.json").read_bytes())["state"]
    assert (own["verdict"], own["release"], own["removed"], own["renewed"]) == ("published", 1, True, 3)
    page = (Path(first.out) / "report/index.html").read_text("utf-8")
    assert "Samples were removed since" in page
    assert report["dataset"]["release"] == 1, "compared with the release that it was compared with"


def test_exports_in_the_folder_of_a_build_go_with_the_samples_that_they_hold(published_builds: Any) -> None:
    """They kept the picture and its text; `forget --prove` found them."""
    published = published_builds(2)
    for out in published.outs:
        assert cli.main(["export", str(out), "--to", "csv"]) == 0
    (published.outs[1] / "csv").rename(published.outs[1] / "mine")
    code, said, answer = published.forget("--dry-run")
    assert (published.outs[0] / "csv/train.csv").exists()
    assert f"{published.outs[0]}/csv: would delete this export; export again" in said
    code, said, answer = published.forget()
    assert code == 0
    assert not (published.outs[0] / "csv").exists()
    assert [own["exports"] for own in answer["builds"]] == [["csv"], []]
    assert [own["foreign"] for own in answer["builds"]] == [[], ["mine"]], "a renamed one"
    line = f"{published.outs[1]}/mine: not part of the build, and not searched; delete it if it holds a copy"
    assert [own for own in said if "not part of the build" in own] == [line]
    assert any("exports and copies elsewhere are not known; forget --store" in own for own in said)
    assert cli.main(["export", str(published.outs[0]), "--to", "csv"]) == 0
    published.run("forget", "--missing-ok", "--url", "http://a.cn/of-nobody.jpg")
    assert (published.outs[0] / "csv/train.csv").exists(), "it holds nothing of that"


def test_a_takedown_by_looks_finds_a_picture_that_was_fetched_and_not_measured(weeks: Any, tmp_path: Path) -> None:
    build = weeks.open("2026-01-01", range(3))
    assert [result.name for result in run.run(build, until="fetch", here=True)][-1] == "fetch"
    source = Path(build.spec.sources[0].options["path"]) / "001.jpg"
    with Image.open(source) as image:
        image.resize((300, 254)).save(tmp_path / "taken.png")
    assert cli.main(["forget", "--store", weeks.store, "--like", str(tmp_path / "taken.png")]) == 0
    [record] = build.stage("fetch").records()
    left = build.stage("fetch").table(record)["image_url"].to_pylist()
    assert sorted(left) == ["folder:///album/000.jpg", "folder:///album/002.jpg"]
    assert all(source.read_bytes() not in path.read_bytes() for path in (Path(build.out) / "images").glob("*.tar"))
