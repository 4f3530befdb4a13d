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
from pipeline.files.folder import Folder, place_of
from pipeline.publish import release, replacing
from pipeline.publish.verify import verify
from pipeline.records import order_key
from pipeline.report.diff import diff
from pipeline.report.funnel import faults, read_funnels
from pipeline.stages import STAGES
from pipeline.stages.admit import admit
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.partitions import StageDir
from pipeline.store.store import Store
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.takedown import forget as forget_module
from pipeline.takedown import garbage, known_builds, rewrite_shards
from pipeline.takedown.forget import Request, forget
from pipeline.takedown.rewrite import Removal
from pipeline.takedown.rewrite_partitions import borrowed_texts

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


@pytest.mark.parametrize("by", ["sha256", "like"])
@pytest.mark.drill(4)
def test_what_is_taken_down_is_in_no_file_and_all_else_is_as_it_was(
    published: Build, synthetic: Any, tmp_path: Path, by: str
) -> None:
    item, other = kept(synthetic, 20), kept(synthetic, 14)
    name, folder = shard_of(published, item), Path(published.out) / "shards"
    request = Request(sha256s=[item.sha256])
    if by == "like":
        with Image.open(io.BytesIO(item.data)) as image:
            image.convert("RGB").resize((image.width // 2, image.height // 2)).save(tmp_path / "seen.jpg", quality=60)
        request = Request(pictures=[tmp_path / "seen.jpg"])
    before, first = tree(folder), read_manifest(folder)
    funnel = read_funnels(published)[0]

    answer = forget(published.store, [published], request)

    manifest, after = read_manifest(folder), tree(folder)
    assert (manifest.revision, manifest.parent) == (1, f"{published.build_id}/0")
    assert answer["builds"][0]["shards"] == [name]
    assert sum(manifest.samples.values()) == sum(first.samples.values()) - 1
    changed = {path for path in before if before[path] != after.get(path)}
    own = {f"{name}.tar", f"{name}.parquet", f"_decisions/{name}.parquet"}
    assert {path for path in changed if not path.startswith(("_records", "regions"))} == {
        *own, "manifest.json", "README.md", "croissant.json", f"{name.split('-')[0]}.json"
    }  # fmt: skip
    assert {Path(path).stem for path in changed if path.startswith("regions")} == {name}
    assert verify(folder) == []
    remaining = read_funnels(published)[0]
    assert (remaining.total, remaining.kept) == (funnel.total, funnel.kept - 1)
    assert faults(published, remaining) == []
    said = "".join(everything(Path(published.out).parent).values())
    assert item.candidate.image_url not in said
    assert item.data[:400].hex() not in said
    assert other.candidate.image_url in everything(Path(published.out))["report/report.json"]
    assert release.publish(published) == manifest, "and it can be published again"
    again = tree(Path(published.out).parent)
    assert forget(published.store, [published], request)["tombstone"] == ""
    assert tree(Path(published.out).parent) == again


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


def test_texts_that_were_lent_are_looked_for_among_the_copies_of_what_goes_alone(
    published: Build, synthetic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build of 30 million candidates has as many copies as make gigabytes."""
    read, table = list[int](), StageDir.table

    def counted(self: StageDir, record: Any, suffix: str = "parquet", columns: Any = None, filters: Any = None) -> Any:
        rows = table(self, record, suffix, columns, filters)
        read.append(rows.num_rows)
        return rows

    monkeypatch.setattr(StageDir, "table", counted)
    copy = next(i for i in synthetic.items() if i.stage == "dedup")
    alone = kept(synthetic, 20).candidate.candidate_id
    for removed, leaders, most in ((alone, set[str](), 0), (copy.candidate.candidate_id, {copy.leader}, 9)):
        read.clear()
        borrowed = borrowed_texts(published, Removal({removed}, NO_TAKEDOWNS))
        assert set(borrowed.allowed) == leaders
        assert sum(read) <= most


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


def test_a_shard_of_which_nothing_is_left_goes(published: Build, synthetic: Any) -> None:
    removed = [i for i in synthetic.items() if i.stage == "shard" and synthetic.split_of(i) == "val"]
    forget(published.store, [published], Request(urls=[i.candidate.image_url for i in removed]))
    folder = Path(published.out) / "shards"
    assert read_manifest(folder).samples["val"] == 0
    assert not list(folder.glob("val-*"))
    assert verify(folder) == []
    assert faults(published, read_funnels(published)[0]) == []


def test_another_detector_after_samples_were_left_out_packs_what_is_left(
    published: Build, synthetic: Any, run_stage: Run
) -> None:
    """Rows behind a sample that is gone move up: the old tars would stand beside regions of other samples."""
    item = next(i for i in synthetic.items() if i.stage == "shard" and shard_of(published, i) == "train-000000")
    forget(published.store, [published], Request(urls=[item.candidate.image_url], exact=True), remember=False)
    more = synthetic.spec(regions={"detectors": [{"name": "grid", "n": 3}, {"name": "grid"}]})
    fingerprints = {**published.fingerprints, "detect": "d" * 64, "shard": "5" * 64, "report": "e" * 64}
    build = replace(published, spec=more, fingerprints=fingerprints)
    for partition in synthetic._ranges():
        here = [i for i in synthetic.items() if i.stage == "shard" and synthetic._within(i, partition)]
        synthetic._write(build, "detect", partition, here)
    run_stage(build, "shard")
    assert sum(release.publish(build).samples.values()) == synthetic.KEPT - 1
    assert verify(Path(build.out)) == []


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


@pytest.mark.drill(7)
def test_a_published_build_that_is_run_again_after_a_takedown_stays_as_the_takedown_left_it(weeks: Any) -> None:
    """It went on from `admit`, and its dataset was withdrawn until somebody published it again."""
    weekly = {"2026-01-01": range(6), "2026-01-08": range(9)}
    for snapshot, pictures in weekly.items():
        release.publish(weeks.build(snapshot, pictures))
    for number in ("001", "007"):  # the second one after a run that had nothing to do
        builds = [opening.reopen(str(weeks.folder / snapshot)) for snapshot in weekly]
        forget(builds[0].store, builds, Request(urls=[f"folder:///album/{number}.jpg"], exact=True))
        releases = builds[0].store.releases("weekly")
        for snapshot, pictures in weekly.items():
            build, before = weeks.open(snapshot, pictures), read_manifest(weeks.folder / snapshot / "shards")
            for result in run.run(build, here=True):
                made = result.skipped or result.name in ("admit", "dedup", "report")
                assert made, "runs in between are made again, of what is left"
                assert read_manifest(weeks.folder / snapshot / "shards") == before
                assert not releases.latest().withdrawn
            newest = releases.latest()
            assert release.publish(weeks.open(snapshot, pictures)) == before
            assert releases.latest() == newest
    assert sum(releases.read().samples.values()) == 7
    assert verify(releases.folder.url, store=weeks.store) == []
    fewer = weeks.open("2026-01-08", range(9), filters=[{"name": "text_length", "min_chars": 3}])
    assert not fewer.stage("admit").finished(), "another spec is another build"
    forget(Store(weeks.store), [], Request(urls=["folder:///album/008.jpg"], exact=True))
    build = weeks.open("2026-01-08", range(9))
    assert not build.stage("admit").finished(), "a takedown that has not reached it"
    list(run.run(build, here=True))
    assert sum(release.publish(build).samples.values()) == 1
    assert sum(releases.read().samples.values()) == 6


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


@pytest.mark.drill(2)
def test_a_build_that_was_replaced_in_one_of_its_folders_is_no_fault_of_a_takedown(weeks: Any, tmp_path: Path) -> None:
    """Its dataset is withdrawn till another build is published, and lists the folder in which it is no longer."""
    spec = weeks.spec(range(6))
    for name in ("first", "second"):
        release.publish(weeks.finish(opening.open_build(spec, str(tmp_path / name), weeks.store, "2026-01-01")))
    other = weeks.spec(range(6), filters=[{"name": "text_length", "min_chars": 3}])
    replacing.withdraw(opening.open_build(other, str(tmp_path / "second"), weeks.store, "2026-01-01"))
    builds = [opening.reopen(str(tmp_path / "first"))]
    answer = forget(Store(weeks.store), builds, Request(urls=["folder:///album/001.jpg"], exact=True))
    assert answer["faults"] == []
    assert sum(read_manifest(tmp_path / "first/shards").samples.values()) == 5


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


@pytest.mark.parametrize("text", ["[]", '{"spec": {"later": 1}}'])
@pytest.mark.drill(4)
def test_a_release_that_cannot_be_made_anew_for_its_newest_build_is_a_fault_and_no_traceback(
    weeks: Any, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for n in (1, 2):
        release.publish(weeks.build(f"2026-01-0{n}", range(n * 3, n * 3 + 3)))
    older, newest = (weeks.folder / f"2026-01-0{n}" for n in (1, 2))
    before = (newest / "build.json").read_bytes()
    (newest / "build.json").write_text(text)
    words = ["forget", "--store", weeks.store, "--exact", "--url", "folder:///album/003.jpg"]
    capsys.readouterr()
    assert cli.main(words) == 1
    said = capsys.readouterr().err.splitlines()
    assert f"{newest}/build.json: contains no readable spec, but a release needs it; restore the file" in said
    assert sum(read_manifest(older / "shards").samples.values()) == 2
    assert Store(weeks.store).releases("weekly").latest().withdrawn
    (newest / "build.json").write_bytes(before)
    assert cli.main(words) == 0
    assert verify(f"{weeks.store}/datasets/weekly", store=weeks.store) == []


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


@pytest.mark.drill(2)
def test_who_deletes_a_damaged_manifest_is_told_to_publish_which_makes_it_anew(
    published_builds: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """publish said what is wrong with it and not what to do, forget that the build is to be restored or rolled back."""
    published = published_builds(2)
    whole, damaged = published.outs
    manifest = damaged / "shards/manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:500])
    capsys.readouterr()
    assert cli.main(["publish", str(damaged)]) == 1
    said = capsys.readouterr().err
    assert said.endswith(f"; if it is damaged, delete it and run wenlan-data publish {damaged}\n")
    assert len(said.splitlines()) == 1
    manifest.unlink()
    code, said, answer = published.forget()
    assert code == 1
    [fault] = answer["faults"]
    assert fault.endswith(
        f"{manifest}: missing, but a release needs it; run wenlan-data publish {damaged} to recreate it"
    )
    assert cli.main(["publish", str(damaged)]) == 0
    assert (left(whole), left(damaged)) == (5, 5)
    assert published.forget()[0] == 0
    assert verify(f"{published.store.url}/datasets/b") == []


@pytest.mark.parametrize(
    "spelled", ["link", *(pytest.param(form, marks=pytest.mark.drill(2)) for form in ("relative", "file"))]
)
def test_a_folder_is_one_build_however_it_is_spelled(
    published_builds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    """It was two: the second one met the first one's lock, and STORE by another name was another STORE."""
    published = published_builds(1)
    [out] = published.outs
    (tmp_path / "link").symlink_to(out.parent)
    monkeypatch.chdir(out.parent)
    form = {"relative": "{name}", "link": f"{tmp_path}/link//{{name}}/",
            "file": f"file://{out.parent}/{{name}}"}[spelled]  # fmt: skip
    build, store = form.format(name=out.name), form.format(name=Path(published.store.url).name)
    words = ["forget", build, "--store", store, "--exact", "--url", "folder:///album/001.jpg"]
    assert cli.main(words) == 0
    assert left(out) == 5
    assert cli.main(["publish", build]) == 0
    published.store.register(Folder(build).url, published.builds[0].noted, 2)
    assert len(published.store.registered()) == 1
    assert cli.main(["gc", "--store", store]) == 0
    assert cli.main([*words[:-1], "folder:///album/002.jpg"]) == 0
    assert left(out) == 4
    assert verify(f"{published.store.url}/datasets/a") == []


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
def test_who_takes_down_what_only_a_build_that_cannot_be_read_knows_is_told_of_that_build(
    published_builds: Any,
) -> None:
    """The command said that no build has such a key, and nothing of the build that has it."""
    published = published_builds(2)
    first, second = published.outs
    table = pq.read_table(next((first / "shards").glob("*.parquet")))
    (second / "build.json").write_text("[]")
    path = next((first / "images").glob("*.parquet"))
    path.rename(path.with_suffix(".away"))
    code, said, _ = published.run("forget", "--item", table["key"][0].as_py())
    assert code == 1
    assert any("no key, ID or sha256 with this prefix" in line for line in said)
    for out in published.outs:
        assert any(line.startswith(f"{out}: was left out, since it cannot be read (") for line in said)


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


def test_an_export_in_a_build_lies_where_a_takedown_looks(
    published_builds: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export under another name kept the picture and its text, and forget exited with 0."""
    published = published_builds(2)
    one, other = published.outs
    (tmp_path / "link").symlink_to(one)
    release_of = f"{published.store.url}/datasets/b/latest.json"
    for place, out in ((one, one / "mine"), (one, one / "shards/csv"), (one, tmp_path / "link/deep/csv")):
        assert cli.main(["export", str(place), "--to", "csv", "--out", str(out)]) == 2
        assert f"is in the build {one}, where no takedown would find it; give {one}/csv, or" in capsys.readouterr().err
    for place in (str(other), release_of):
        assert cli.main(["export", place, "--to", "csv", "--out", str(one / "csv")]) == 2
    assert not any(path.name in ("mine", "csv", "deep") for path in one.rglob("*"))
    assert cli.main(["export", str(one / "shards"), "--to", "csv"]) == 0
    assert (one / "csv/train.csv").exists()
    assert cli.main(["export", str(one), "--to", "csv", "--out", str(tmp_path / "mine")]) == 0


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
