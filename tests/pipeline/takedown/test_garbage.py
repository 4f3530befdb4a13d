"""Gc: what goes is garbage or what `--keep` expires, and nothing that a build or STORE still needs."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline import cli, opening, run
from pipeline.commands import plan
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.files.folder import Folder
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.store.store import Store
from pipeline.store.takedowns import UNFINISHED
from pipeline.takedown import garbage
from pipeline.takedown.forget import forget
from pipeline.takedown.request import Request
from tests.kept import Kept

pytestmark = pytest.mark.slow

DEAD = ("00000-of-00002-dead.parquet", "_decisions/00000-of-00002-dead.decisions.parquet")
"""What a killed attempt leaves of a stage."""


@pytest.fixture(scope="module")
def _once(
    synthetic: Any, run_stage: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kept, list[Build]]:
    folder = tmp_path_factory.mktemp("builds")
    older: Build = synthetic.make(folder)[0]
    run_stage(older, "shard", "report")
    newer = replace(older, out=str(folder / "newer"), build_id="synthetic-newer", snapshot="2025-01-01")
    shutil.copytree(older.out, newer.out)
    (Path(older.out) / "build.json").write_text("{}", encoding="utf-8")
    (Path(newer.out) / "build.json").write_text("{}", encoding="utf-8")
    release.publish(older)
    identity = [path.name for path in (Path(newer.store.url) / "identity").glob("*.json")]
    newer = replace(newer, identities=tuple(identity))
    release.publish(newer)
    stage = older.stage("fetch")
    for record in stage.records():
        tar = stage.folder.at(record.files["tar"].name)
        rows = [{**row, "tar": tar if row["ok"] else "", "policy": ""} for row in stage.table(record).to_pylist()]
        older.store.fetched().put(pa.Table.from_pylist(rows))
    return Kept(folder), [older, newer]


@pytest.fixture
def builds(_once: tuple[Kept, list[Build]]) -> list[Build]:
    """Two published builds of one dataset, an older and a newer one, and STORE/fetched that points into the older."""
    _once[0].restore()
    return [replace(build) for build in _once[1]]


def collect(builds: list[Build], **options: Any) -> dict[str, Any]:
    known, reopen = {build.out: build for build in builds}, build_json.reopen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_json, "reopen", lambda out, stages: known[out] if out in known else reopen(out, stages))
        return garbage.collect(builds[0].store, STAGES, **options)


def scored(build: Build) -> Build:
    """The same build, of a spec that asks for scores of pairs."""
    return replace(build, fingerprints={**build.fingerprints, "curate.score": "5" * 64})


def files(folder: str) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file() and path.name != "_lock"
    }


def occupied(folder: Path) -> int:
    """Bytes of all files but those of STORE/fetched, each once however many names it has."""
    found = (path.stat() for path in folder.rglob("*") if path.is_file() and "fetched" not in path.parts)
    return sum({one.st_ino: one.st_size for one in found}.values())


def test_nothing_goes_where_there_is_no_garbage(builds: list[Build]) -> None:
    before = [files(build.out) for build in builds] + [files(builds[0].store.url)]
    assert collect(builds) == {"deleted": [], "bytes": 0, "left": [], "faults": []}
    assert [files(build.out) for build in builds] + [files(builds[0].store.url)] == before


def test_leftovers_and_other_specs_go_and_images_of_other_specs_stay(builds: list[Build], synthetic: Any) -> None:
    build = builds[0]
    before = files(build.out)
    (Path(build.out) / "pairs/.tmp-00000").mkdir()
    for dead in DEAD:
        (Path(build.out) / "pairs" / dead).write_bytes(b"half")
    for name in ("dedup", "fetch"):
        other = replace(build, fingerprints={**build.fingerprints, name: "0" * 64}).stage(name)
        with other.attempt("00000-of-00001") as attempt:
            attempt.path("parquet").write_bytes(b"x")
            attempt.commit({})
    (Path(build.store.url) / "features/features-000000000000").mkdir(parents=True)
    dry = collect(builds, dry_run=True)
    assert {one["place"].rpartition("/pairs/")[2] for one in dry["deleted"]} >= set(DEAD)
    assert {Path(one["place"]).name for one in dry["deleted"]} >= {"0" * 16}
    assert files(build.out) > before
    collect(builds)
    remaining = files(build.out) - before
    assert {path.split("/")[0] for path in remaining} == {"images"}, "they cost the network"
    assert not (Path(build.store.url) / "features/features-000000000000").exists()


def test_a_takedown_reaches_a_build_that_was_expired(builds: list[Build], synthetic: Any) -> None:
    """The files that it handed to STORE are gone; what STORE has of them is cleaned, and its shards are.

    What its report says of its splits is gone, too.
    """
    old = builds[0]
    shards = old.spec.shards.model_copy(update={"apart": "texts"})
    builds[0] = old = replace(old, spec=old.spec.model_copy(update={"shards": shards}))
    collect(builds, keep=1)
    item = next(item for item in synthetic.items() if item.stage == "shard")
    answer = forget(old.store, builds, Request(urls=[item.candidate.image_url]))
    assert [len(build["samples"]) for build in answer["builds"]] == [1, 1]
    for build in builds:
        assert verify(Path(build.out)) == []
        for path in (Path(build.out) / "shards").glob("*.tar"):
            assert item.candidate.image_url.encode() not in path.read_bytes()
    identities = Identities(old.store)
    assert len(identities.names()) == len(builds)
    for name in identities.names():
        [images] = identities.batches(identities.read(name), "images.parquet", ["fetch_id"])
        assert bytes.fromhex(item.candidate.fetch_id) not in images["fetch_id"].to_pylist()


def test_a_build_in_which_a_takedown_was_interrupted_keeps_what_that_needs_to_go_on(builds: list[Build]) -> None:
    """Texts that its samples took over from copies that go are known by the stages before the shards alone."""
    old = builds[0]
    old.folder.write_json(UNFINISHED, {"hashes": [], "published": True, "accepted": {}, "reported": True})
    before = files(old.out)
    answer = collect(builds, keep=1)
    assert answer["deleted"] == []
    assert answer["left"] == [
        f"{old.out}: left to the next gc (a takedown was interrupted there; run wenlan-data forget --store "
        f"{old.store.url})"
    ]
    assert files(old.out) == before
    forget(old.store, [old], Request())
    assert collect(builds, keep=1)["bytes"] > 10_000


@pytest.mark.parametrize("by", ["like", "like, as STORE knows it", "key"])
def test_a_takedown_finds_a_picture_that_only_an_expired_build_holds(
    builds: list[Build], synthetic: Any, tmp_path: Path, by: str
) -> None:
    """Its fetched images and features are gone: its shards tell what it has."""
    old, newer = builds
    newer.folder.write_json("build.json", {"spec": newer.spec.model_dump(mode="json")})  # the next release reads it
    item = [item for item in synthetic.items() if item.stage == "shard"][20]
    if by.endswith("knows it"):
        for rows in old.tables("measure", "parquet"):
            old.store.features(feature_id()).put(rows)
    collect(builds, keep=1)
    with Image.open(io.BytesIO(item.data)) as image:
        image.convert("RGB").resize((image.width // 2, image.height // 2)).save(tmp_path / "seen.jpg", quality=60)
    key, like = Request(items=[item.candidate.candidate_id[:32]]), Request(pictures=[tmp_path / "seen.jpg"])
    answer = forget(old.store, [old], key if by == "key" else like)
    assert [sample["key"] for sample in answer["builds"][0]["samples"]] == [item.candidate.candidate_id[:32]]
    assert verify(Path(old.out)) == []
    assert item.sha256 in old.store.takedowns().hashes
    for path in (Path(old.out) / "shards").glob("*.tar"):
        assert item.data[:400] not in path.read_bytes()


@pytest.mark.drill(2)
def test_a_takedown_of_an_expired_build_does_not_say_that_nothing_was_dropped(
    builds: list[Build], synthetic: Any
) -> None:
    old = builds[0]
    collect(builds, keep=1)
    card = Path(old.out) / "shards/README.md"
    assert "Of 54 candidates 30 were kept." in card.read_text("utf-8")
    item = next(item for item in synthetic.items() if item.stage == "shard")
    forget(old.store, builds, Request(urls=[item.candidate.image_url]))
    assert "candidates 29 were kept" not in card.read_text("utf-8")
    assert "What was dropped before the samples were packed is no longer on record" in card.read_text("utf-8")
    reports = [json.loads((Path(build.out) / "report/report.json").read_bytes()) for build in builds]
    assert [len(report["faults"]) for report in reports] == [1, 0]
    assert reports[0]["faults"][0].startswith("gc has deleted the output of the stages before shard")
    assert "Of 54 candidates 29 were kept." in (Path(builds[1].out) / "shards/README.md").read_text("utf-8")


@pytest.mark.drill(3)
def test_the_command_of_an_expired_build_changes_nothing_and_asks_nobody(
    weeks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a build that somebody runs again a year later is made anew, of what is still to be had."""
    weeks = replace(weeks, until="report")
    first = weeks.build("2026-01-01", range(6))
    release.publish(first)
    release.publish(weeks.build("2026-01-08", range(4, 9)))
    garbage.collect(first.store, STAGES, keep=1)
    forget(first.store, [], Request(urls=["http://of.nobody/1.jpg"]))  # builds read the list of takedowns
    before, known = files(first.out), build_json.read(first.folder)
    again = weeks.open("2026-01-01", range(6))
    assert again.fingerprints == first.fingerprints
    with caplog.at_level("WARNING", "wenlan"):
        assert [result.name for result in run.run(again, here=True)] == ["crawl", "shard", "report"]
    assert "gc has deleted the input of its shards" in caplog.text
    assert release.publish(again).revision == 0
    assert files(first.out) == before
    assert build_json.read(first.folder)["stages"]["dedup"] == known["stages"]["dedup"]
    assert verify(Path(first.out)) == []
    report = (Path(first.out) / "report/report.json").read_bytes()
    assert cli.main(["report", first.out, "--baseline", str(Path(first.out).with_name("2026-01-08"))]) == 1
    assert (Path(first.out) / "report/report.json").read_bytes() == report
    for stages in (build_json.status(opening.reopen(first.out))["stages"], plan._stages(again, False)):
        assert [stages[name]["state"] for name in ("crawl", "extract", "dedup", "shard")] == [
            "done", "expired", "expired", "done"
        ]  # fmt: skip
    answer = forget(first.store, [opening.reopen(first.out)], Request(urls=["folder:///album/000.jpg"], exact=True))
    assert len(answer["builds"][0]["samples"]) == 1
    assert verify(Path(first.out)) == []
    assert json.loads((Path(first.out) / "report/report.json").read_bytes())["totals"]["kept"] == 5


@pytest.mark.drill(2)
def test_an_expired_build_that_a_takedown_has_not_reached_is_named_when_it_is_published_again(weeks: Any) -> None:
    """Nothing is there to do it again from, so it was left as it is: its command succeeded, and the picture stayed."""
    first = weeks.build("2026-01-01", range(6))
    release.publish(first)
    release.publish(weeks.build("2026-01-08", range(4, 9)))
    garbage.collect(first.store, STAGES, keep=1)
    forget(first.store, [opening.reopen(first.out)], Request(urls=["folder:///album/001.jpg"], exact=True))
    forget(first.store, [], Request(urls=["folder:///album/002.jpg"], exact=True))  # that has not reached the build
    again = weeks.open("2026-01-01", range(6))
    list(run.run(again, here=True))
    todo = (
        f"1 of its samples were taken down after it started; run wenlan-data forget --store {weeks.store} {first.out}"
    )
    with pytest.raises(StoreError, match=f"{todo}$"):
        release.publish(again)
    forget(first.store, [opening.reopen(first.out)], Request())
    assert sum(release.publish(weeks.open("2026-01-01", range(6))).samples.values()) == 4


def test_half_written_files_of_a_day_ago_go_wherever_they_are_in_store(builds: list[Build]) -> None:
    store = Path(builds[0].store.url)
    places = ["", "identity", "fetched", "fetched/_index", "features/pair-x", "features/pair-x/_index",
              "regions/grid-x", "regions/grid-x/_index", "datasets/synthetic"]  # fmt: skip
    for place in places:
        (store / place).mkdir(parents=True, exist_ok=True)
        for name in (".tmp-old", ".tmp-young"):
            (store / place / name).write_bytes(b"half")
        os.utime(store / place / ".tmp-old", (0, 0))
    collect(builds)
    assert sorted(store.rglob(".tmp-old")) == []
    assert len(list(store.rglob(".tmp-young"))) == len(places), "somebody may be writing them"


@pytest.mark.parametrize("spelled", [True, pytest.param(False, marks=pytest.mark.drill(2))])
def test_an_old_build_is_expired_and_its_images_are_found_in_the_newer_one(
    builds: list[Build], synthetic: Any, tmp_path: Path, spelled: bool
) -> None:
    """spelled: its folder was named through a link when they were fetched."""
    old, new = builds
    if spelled:
        (tmp_path / "link").symlink_to(old.out)
        item = next(item for item in synthetic.items() if item.stage == "shard")
        rows = old.store.fetched().get([item.candidate.fetch_id])
        assert rows is not None
        old.store.fetched().put(
            pa.Table.from_pylist(
                [
                    {**row, "tar": old.store.resolve_place(row["tar"]).replace(old.out, f"{tmp_path}/link")}
                    for row in rows.to_pylist()
                ]
            )
        )
    for build in builds:
        (Path(build.out) / "studio").mkdir()
        for name in ("index-0123456789abcdef.duckdb", ".01234567.duckdb.wal"):
            (Path(build.out) / "studio" / name).write_bytes(b"{}")
    whole = files(new.out)
    before = occupied(Path(old.out).parent)
    collected = collect(builds, keep=1)
    assert collected["bytes"] == before - occupied(Path(old.out).parent) > 10_000, (
        "what STORE shares with it is not free"
    )
    assert {path.name for path in Path(old.out).iterdir() if path.name != "_lock"} == {
        "build.json", "captures", "releases.json", "report", "shards"
    }  # fmt: skip
    assert verify(Path(old.out)) == []
    assert files(new.out) == whole
    item = next(item for item in synthetic.items() if item.stage == "shard")
    known = old.store.fetched().get([item.candidate.fetch_id])
    assert known is not None
    [row] = known.to_pylist()
    tar = old.store.resolve_place(row["tar"])
    assert tar.startswith(new.out)
    data = Path(tar).read_bytes()
    assert data[row["offset"] : row["offset"] + row["size"]] == item.data


@pytest.mark.drill(6)
def test_a_build_that_cannot_be_read_is_named_and_loses_nothing_and_the_others_are_done(
    published_builds: Any, tmp_path: Path
) -> None:
    """A folder that was not there was skipped in silence, and its images were forgotten; a damaged one ended gc."""
    published = published_builds(4)
    whole, gone, begun, short = published.outs
    row = {"fetch_id": "0" * 64, "tar": str(next((gone / "images").glob("*.tar"))), "sha256": "1" * 64}
    store = published.store
    store.fetched().put(pa.Table.from_pylist([row]))
    (whole / "pairs/00000-of-00001-dead.parquet").write_bytes(b"half")
    gone.rename(tmp_path / "gone")
    damaged = {path: path.read_bytes() for path in (begun / "build.json", *(short / "pairs/_records").rglob("*.*"))}
    for path in damaged:
        path.write_bytes(b"[]")
    code, said, answer = published.run("gc")
    assert (code, answer["ok"], len(answer["faults"])) == (1, False, 3)
    for folder in (gone, begun, short):
        [line] = [line for line in said if line.startswith(f"{folder}: was left out")]
        assert "run the same command again" in line
    assert not (whole / "pairs/00000-of-00001-dead.parquet").exists()
    assert store.fetched().get(["0" * 64]) is not None
    (tmp_path / "gone").rename(gone)
    for path, data in damaged.items():
        path.write_bytes(data)
    assert published.run("gc")[0] == 0
    assert store.fetched().get(["0" * 64]) is not None


@pytest.mark.drill(2)
@pytest.mark.parametrize("linked", ["build", "images"])
def test_images_of_a_build_that_cannot_be_read_are_not_forgotten_where_links_lead_to_them(
    published_builds: Any, tmp_path: Path, linked: str
) -> None:
    """STORE knows a build by its last spelling, and rows of STORE/fetched by that under which they were fetched."""
    published = published_builds(1)
    [build], [out] = published.builds, published.outs
    row = {"fetch_id": "0" * 64, "tar": str(next((out / "images").glob("*.tar"))), "sha256": "1" * 64}
    published.store.fetched().put(pa.Table.from_pylist([row]))
    if linked == "build":
        (tmp_path / "link").symlink_to(out.parent)
        published.store.register(f"{tmp_path}/link/{out.name}", build.noted, 1)
        out.rename(tmp_path / "gone")
    else:  # to a disk that is not mounted
        (out / "images").rename(tmp_path / "gone")
        (out / "images").symlink_to(tmp_path / "mounted")
        (out / "build.json").write_bytes(b"[]")
    assert published.run("gc")[0] == 1
    assert published.store.fetched().get(["0" * 64]) is not None


def test_a_build_in_which_a_command_is_at_work_is_named_and_left_to_the_next_gc(published_builds: Any) -> None:
    """It was passed over without a word, and whoever made room wondered why there was none."""
    published = published_builds(2)
    for out in published.outs:
        (out / "pairs/00000-of-00001-dead.parquet").write_bytes(b"half")
    with build_json.sole_owner(published.builds[0]):
        code, said, answer = published.run("gc")
    line = f"{published.outs[0]}: left to the next gc (another wenlan-data is running here)"
    assert (code, answer["left"]) == (0, [line])
    assert line in said
    assert [(out / "pairs/00000-of-00001-dead.parquet").exists() for out in published.outs] == [True, False]
    code, said, answer = published.run("gc")
    assert (code, answer["left"], len(answer["deleted"])) == (0, [], 1)


def test_nobody_asks_for_the_images_of_a_build_whose_store_cannot_be_reached(
    published_builds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc waited for each of its tars, and ended at the first: what it had deleted was not said, nor what to do."""
    [build] = published_builds(1).builds
    row = {"fetch_id": "0" * 64, "tar": f"{build.out}/images/0.tar", "sha256": "1" * 64}
    build.store.fetched().put(pa.Table.from_pylist([row]))

    def unless_away(of: Callable[..., Any]) -> Callable[..., Any]:
        def asked(folder: Folder, *given: Any) -> Any:
            if f"{folder.url}/".startswith(f"{build.out}/"):
                raise StoreError(folder.url, "cannot be reached: timed out")
            return of(folder, *given)

        return asked

    for name in ("exists", "find"):
        monkeypatch.setattr(Folder, name, unless_away(getattr(Folder, name)))
    [fault] = garbage.collect(build.store, STAGES)["faults"]
    assert fault.startswith(f"{build.out}: was left out, since it cannot be read (")
    assert build.store.fetched().get(["0" * 64]) is not None


def test_rows_whose_bytes_are_gone_go(builds: list[Build], synthetic: Any) -> None:
    for path in (Path(builds[0].out) / "images").glob("*.tar"):
        path.unlink()
    store = Store(builds[0].store.url)
    lost = [item for item in synthetic.items() if item.reason == "http_status"]
    collect(builds)
    item = next(item for item in synthetic.items() if item.stage == "shard")
    assert store.fetched().get([item.candidate.fetch_id]) is None
    known = store.fetched().get(i.candidate.fetch_id for i in lost)
    assert known is not None
    assert known.num_rows == len(lost), "failures are remembered"


def test_old_releases_go_and_shards_that_none_needs(builds: list[Build]) -> None:
    older, newer = builds
    releases = older.store.releases(older.spec.name)
    assert releases.numbers() == [1, 2]
    assert collect(builds, keep_releases=1)["bytes"] > 0
    assert releases.numbers() == [2]
    assert not releases.folder.exists("000001")
    assert len(releases.read().builds) == 2, "nothing that the newest release lists has gone"
    releases.make_newest(
        releases.prepare(releases.read().model_copy(update={"release": 3, "builds": ()}), lambda _: {})
    )
    dry = collect(builds, keep_releases=1, dry_run=True)
    assert {one["what"] for one in dry["deleted"]} == {"old release", "of no release"}
    assert older.shards.exists("manifest.json")
    collect(builds, keep_releases=2)
    assert older.shards.exists("manifest.json"), "release 2 is kept, and needs it"
    collect(builds, keep_releases=1)
    assert not older.shards.exists("manifest.json")
    assert not newer.folder.exists("shards")
    assert newer.folder.exists("captures")


def test_features_go_with_the_last_build_that_was_scored_by_their_model(builds: list[Build]) -> None:
    builds = older, newer = [scored(build) for build in builds]
    for build, models in ((older, ["pair-image-old", "pair-text-both"]), (newer, ["pair-text-both"])):
        with build.stage("curate.score").attempt("00000-of-00001") as attempt:
            attempt.commit({}, {"models": models})
    features = Path(older.store.url) / "features"
    names = {"pair-image-old", "pair-text-both", "pair-image-of-nobody-known"}
    for name in names:
        (features / name).mkdir(parents=True)
    collect(builds)
    assert {path.name for path in features.glob("pair-*")} == names
    collect(builds, keep=1, dry_run=True)
    assert {path.name for path in features.glob("pair-*")} == names
    gone = replace(older, build_id="synthetic-gone", out=f"{older.out}-gone")
    older.store.register(gone.out, gone.noted, 0)
    assert len(collect(builds, keep=1, dry_run=True)["faults"]) == 1
    collect(builds, keep=1)
    assert {path.name for path in features.glob("pair-*")} == names, "who knows what a build was scored by that is gone"
    left = older.stage("curate.score").partitions()
    assert left == [], "the build does not say any more by which models it was scored"
    older.store.drop(gone.out)
    noted = older.store.folder.read(garbage.EXPIRED)
    older.store.folder.write_json(garbage.EXPIRED, 1)
    with pytest.raises(StoreError, match=r"expired\.json: not a list of caches; delete it and run"):
        collect(builds)
    older.store.folder.write(garbage.EXPIRED, noted)
    answer = collect(builds)
    assert {path.name for path in features.glob("pair-*")} == names - {"pair-image-old"}
    assert "features of expired builds" in {one["what"] for one in answer["deleted"]}
    assert not older.store.folder.exists(garbage.EXPIRED)


@pytest.mark.drill(2)
@pytest.mark.parametrize("why", ["a command is at work in it", "a takedown was interrupted in it"])
def test_features_of_a_build_that_is_left_to_the_next_gc_stay(builds: list[Build], why: str) -> None:
    """STORE noted them when another build of the same model expired."""
    builds = older, _ = [scored(build) for build in builds]
    with older.stage("curate.score").attempt("00000-of-00001") as attempt:
        attempt.commit({}, {"models": ["pair-text-both"]})
    features = Path(older.store.url) / "features/pair-text-both"
    features.mkdir(parents=True)
    older.store.folder.write_json(garbage.EXPIRED, ["pair-text-both"])
    if "takedown" in why:
        older.folder.write_json(UNFINISHED, {"hashes": [], "published": True, "accepted": {}, "reported": True})
        collect(builds, keep=1)
        older.folder.delete(UNFINISHED)
    else:
        with build_json.sole_owner(older):
            collect(builds, keep=1)
    assert features.exists()
    collect(builds, keep=1)
    assert not features.exists()
