"""What `pipeline.run` keeps between runs, and what it says where no stage can run. The stages: see test_build.py."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_specs.build import BuildSpec, load
from pipeline import cluster, opening, run
from pipeline.errors import SourceError, StageError, StoreError
from pipeline.publish import release
from pipeline.stages import crawl
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, Result
from pipeline.store.identities import DETAILS, IMAGE_SCHEMA, PLACEHOLDER_SCHEMA, SIGNATURES, TEXT_SCHEMA, Identities
from tests.drawn import rectangles


def spec(folder: Path) -> Path:
    path = folder / "spec.yaml"
    path.write_text(
        """
name: t
contact: mailto:x@example.org
sources: [{kind: url_table, name: t, source_kind: news, path: t.csv, columns: {texts: {alt: zh}}}]
""",
        encoding="utf-8",
    )
    (folder / "t.csv").write_text("image_url,zh\nhttp://127.0.0.1:1/a.jpg,一张图片\n", encoding="utf-8")
    return path


def test_a_build_that_is_stopped_in_its_first_stage_goes_on_with_its_snapshot(tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.PassRunner, "run", killed)
    out, plan = str(tmp_path / "out"), load(spec(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        list(run.run(opening.open_build(plan, out, snapshot="2020-02-02")))
    assert opening.open_build(plan, out).snapshot == "2020-02-02"
    assert {stage["state"] for stage in build_json.status(opening.reopen(out))["stages"].values()} == {"to do"}


def test_builds_of_one_day_have_snapshots_of_their_own_and_a_folder_keeps_its(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        hour_now = 9

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return cls(2026, 12, 1, cls.hour_now, 30, tzinfo=tz)

    monkeypatch.setattr(opening.datetime, "datetime", Clock)
    plan = load(spec(tmp_path))
    first = opening.open_build(plan, str(tmp_path / "1"), str(tmp_path / "store"))
    build_json.note(first)
    Clock.hour_now = 17
    second = opening.open_build(plan, str(tmp_path / "2"), str(tmp_path / "store"))
    assert (first.snapshot, second.snapshot) == ("2026-12-01-093000", "2026-12-01-173000")
    assert opening.open_build(plan, first.out, first.store.url).build_id == first.build_id != second.build_id


def test_stages_of_an_earlier_input_are_not_taken_for_those_of_this_build(tmp_path):
    path, out = spec(tmp_path), str(tmp_path / "out")
    results = [Result(name, False, 1, 1, 0.1, {}, Cost()) for name in ("crawl", "extract")]
    build = opening.open_build(load(path), out, snapshot="s")
    for result in results:
        build_json.note(build, result)
    assert list(opening.reopen(out).fingerprints) == ["crawl", "extract"]
    (tmp_path / "t.csv").write_text("image_url,zh\nhttp://127.0.0.1:1/another.jpg,另一张图片\n", encoding="utf-8")
    changed = opening.open_build(load(path), out)
    assert changed.build_id == build.build_id
    build_json.note(changed, results[0])
    assert opening.reopen(out).fingerprints == {"crawl": changed.fingerprints["crawl"]}


def test_a_build_begun_by_another_version_is_one_line_that_names_its_file(tmp_path):
    build = opening.open_build(load(spec(tmp_path)), str(tmp_path / "out"))
    build_json.note(build)
    path = tmp_path / "out" / "build.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    known["spec"]["colour"] = "red"
    path.write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(StoreError, match=r"build\.json: contains a spec .*colour: unknown option") as e:
        opening.reopen(str(tmp_path / "out"))
    assert "\n" not in str(e.value)


def publish(build: Build) -> None:
    """Leave what `release.publish` leaves in STORE, of a build that kept nothing."""
    with build.stage("dedup.leaders").attempt("all") as attempt:
        attempt.path(SIGNATURES).write_bytes(b"")
        attempt.path(DETAILS).write_bytes(b"")
        for part, schema in (("images", IMAGE_SCHEMA), ("texts", TEXT_SCHEMA), ("placeholders", PLACEHOLDER_SCHEMA)):
            attempt.write_table(f"{part}.parquet", schema.empty_table())
        attempt.commit({"pairs": 0}, {"features": "f", "sketch": "s"})
    with build.store.lock():
        Identities(build.store).publish(build)


def test_a_build_is_deduplicated_against_what_is_published_until_it_is_published_itself(tmp_path):
    plan, store = load(spec(tmp_path)), str(tmp_path / "store")

    def opened(snapshot: str, plan: BuildSpec = plan) -> Build:
        return opening.open_build(plan, str(tmp_path / snapshot), store=store, snapshot=snapshot)

    first, second = opened("1"), opened("2")
    assert first.identities == second.identities == ()
    publish(second)
    [name] = opened("1").identities
    assert name.startswith(second.build_id)
    assert opened("1").fingerprints["dedup.leaders"] != first.fingerprints["dedup.leaders"], "dedup is done again"
    assert opened("1").fingerprints["filter"] == first.fingerprints["filter"]

    build_json.note(second)
    second.stage("dedup").finish(["x"], 1)
    publish(opened("1"))
    assert opened("2").fingerprints == second.fingerprints, "published and unchanged, it stays as it is"
    assert opening.reopen(second.out).identities == ()
    changed = plan.model_copy(update={"seed": 1})
    assert len(opened("2", changed).identities) == 1, "changed, it is held to what others have published since"


def test_what_a_build_read_is_kept_with_it(tmp_path):
    plan, store = load(spec(tmp_path)), str(tmp_path / "store")
    publish(opening.open_build(plan, str(tmp_path / "1"), store=store, snapshot="1"))
    build = opening.open_build(plan, str(tmp_path / "2"), store=store, snapshot="2")
    publish(opening.open_build(plan, str(tmp_path / "3"), store=store, snapshot="3"))
    build_json.note(build)
    assert opening.reopen(build.out).identities == build.identities
    known = json.loads((tmp_path / "2" / "build.json").read_text(encoding="utf-8"))
    assert known["identity_revision"] == build.identity_revision


def test_without_a_crawl_only_stored_captures_are_worked_from(tmp_path):
    site = {"kind": "site", "name": "kitchen", "source_kind": "news", "start": ["http://127.0.0.1:1/"]}
    plan = BuildSpec.model_validate({"name": "t", "contact": "mailto:x@example.org", "sources": [site]})
    build = opening.open_build(plan, str(tmp_path / "out"), snapshot="2020-02-02")
    with pytest.raises(StageError, match="kitchen: not crawled for snapshot 2020-02-02"):
        list(run.run(build, until="crawl", crawls=False))
    digest = crawl._digest(build, "kitchen")
    earlier = replace(build, fingerprints={**build.fingerprints, "crawl": "0" * 64})  # another site in the spec, then
    with earlier.stage("crawl").attempt("kitchen") as attempt:
        attempt.path("warc.gz").write_bytes(b"")
        attempt.commit({"seen": 1, "kept": 1}, {"input": digest})
    [result] = list(run.run(build, until="crawl", crawls=False))
    assert (result.partitions, result.funnel["kept"]) == (1, 1)


@pytest.mark.drill(3)
def test_what_working_passes_wrote_goes_with_a_publish_and_is_made_again_where_it_is_read(tmp_path):
    def build(name: str, **dedup: int) -> tuple[Build, list[str]]:
        plan = load(path)
        plan = plan.model_copy(update={"dedup": plan.dedup.model_copy(update=dedup)})
        opened = opening.open_build(plan, str(tmp_path / name), store=str(tmp_path / f"{name}-store"), snapshot="s")
        ran = [stage.name for stage in run.run(opened, here=True) if stage.ran]
        return opened, ran

    def left(of: Build) -> list[str]:
        mapped = [file for suffix in ("arrow", "bin") for file in Path(of.out).rglob(f"*.{suffix}")]
        return [file.name for file in mapped if file.parent.name != "_leaders"]  # which STORE shares

    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: t\ncontact: mailto:x@example.org\nlicence: ours\n"
        "sources: [{kind: folder, name: p, source_kind: library, path: p, text_kind: caption}]\n"
    )
    (tmp_path / "p").mkdir()
    for number in range(8):
        rectangles(number).save(tmp_path / f"p/{number}.png")
        (tmp_path / f"p/{number}.txt").write_text(f"第{number}张图片里的风景" if number > 2 else "同一句话写在下面")
    first, ran = build("a")
    assert {"admit", "dedup"} <= set(ran)
    assert left(first)
    release.publish(first)
    assert not left(first)
    assert first.stage("admit.sort").find_reduced() == [], "the report reads it"
    kept = next((tmp_path / "a-store/identity").glob("*.images.parquet"))
    assert kept.samefile(next((tmp_path / "a/unique/_leaders").rglob("*images.parquet")))
    assert build("a")[1] == []
    values = load(path).model_dump() | {"filters": [{"name": "text_length", "min_chars": 3}]}
    other = opening.open_build(BuildSpec.model_validate(values), first.out, first.store.url, "s")
    list(run.run(other, until="filter", here=True))
    assert build("a")[1] == []
    begun = opening.reopen(first.out)
    assert begun.fingerprints == first.fingerprints, "of working passes, too, which had nothing to do"
    assert {stage["state"] for stage in build_json.status(begun)["stages"].values()} == {"done"}
    again, ran = build("a", max_pairs_per_text=1)
    assert "dedup" in ran
    assert not {"extract", "fetch", "measure", "filter"} & set(ran)
    stages = [each.stage("dedup") for each in (again, build("b", max_pairs_per_text=1)[0])]
    one, other = (stage.table(next(stage.records()))["candidate_id"].to_pylist() for stage in stages)
    assert one == other
    assert len(one) < next(first.stage("dedup").records()).counts["kept"]


@pytest.mark.slow
def test_a_partition_goes_through_fetch_measure_and_filter_before_the_next_one(tmp_path, monkeypatch):
    plan = spec(tmp_path)
    with (tmp_path / "t.csv").open("a", encoding="utf-8") as table:
        table.writelines(f"http://127.0.0.1:1/{number}.jpg,第{number}张图片\n" for number in range(5))
    plan.write_text(plan.read_text("utf-8") + "fetch: {images_per_partition: 2}\n", encoding="utf-8")
    ran, run_task = list[tuple[str, str]](), cluster.run_task

    def noted(build: Build, stage: str, own: cluster.RunPartition, partition: str, form: str) -> None:
        ran.append((partition, stage))
        run_task(build, stage, own, partition, form)

    monkeypatch.setattr(cluster, "run_task", noted)
    build = opening.open_build(load(plan), str(tmp_path / "out"), str(tmp_path / "store"))
    chained = ("fetch", "measure", "filter")
    results = {result.name: result for result in run.run(build, until="filter", here=True)}
    partitions = build.stage("fetch").partitions()
    assert len(partitions) > 1
    assert [own for own in ran if own[1] in chained] == [(name, stage) for name in partitions for stage in chained]
    assert {results[stage].ran for stage in chained} == {len(partitions)}
    build.stage("measure").uncommit(partitions[0])
    ran.clear()
    list(run.run(build, until="filter", here=True))
    assert ran == [(partitions[0], "measure"), (partitions[0], "filter")]


def test_build_json_names_the_passes_that_are_done_while_the_next_one_runs(tmp_path, monkeypatch):
    seen, run_task = dict[str, tuple[str, list[str]]](), cluster.run_task

    def looked(build: Build, stage: str, own: cluster.RunPartition, partition: str, form: str) -> None:
        known = build_json.read(build.folder)
        seen[stage] = known["running"]["name"], list(known["passes"])
        run_task(build, stage, own, partition, form)

    monkeypatch.setattr(cluster, "run_task", looked)
    build = opening.open_build(load(spec(tmp_path)), str(tmp_path / "out"), str(tmp_path / "store"))
    list(run.run(build, until="admit", here=True))
    assert seen == {
        "extract": ("extract", ["crawl"]),
        "admit.sort": ("admit.sort", ["crawl", "extract"]),
        "admit": ("admit", ["crawl", "extract", "admit.sort"]),
    }
    known = build_json.read(build.folder)
    assert (known["running"], list(known["passes"])[-1]) == (None, "admit")
    other = replace(build, fingerprints={**build.fingerprints, "extract": "0" * 64})
    (tmp_path / "t.csv").unlink()
    with pytest.raises(SourceError):
        list(run.run(other, until="extract", here=True))
    assert list(build_json.read(build.folder)["passes"]) == ["crawl", "admit.sort", "admit"]
