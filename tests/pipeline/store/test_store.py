"""store: what STORE knows of builds, caches and takedowns, who may write to it, and which version it has."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.store.store import Store
from tests.fetched import begun


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (99, "has version 99, but this wenlan supports 3; upgrade"),
        (2, "has version 2, which did not note every build; build into a new STORE"),
    ],
)
def test_a_store_of_another_version_is_refused(tmp_path, version, said):
    (tmp_path / "store.json").write_text(f'{{"version": {version}}}')
    with pytest.raises(StoreError, match=re.escape(said)):
        Store(str(tmp_path)).check()
    assert json.loads((tmp_path / "store.json").read_bytes()) == {"version": version}


def test_a_build_is_known_from_its_beginning_until_it_is_dropped(tmp_path):
    store = Store(str(tmp_path / "store"))
    builds = [begun(tmp_path, snapshot=f"2026-01-0{day}", store=store.url) for day in (3, 1, 2)]
    for revision, build in enumerate(builds):
        store.begin(build.out, build.noted)
        assert store.known_builds()[-1 if not revision else revision - 1]["revision"] is None
        store.register(build.out, build.noted, revision)
    store.register(builds[0].out, builds[0].noted, 7)  # again, as after a takedown
    store.begin(builds[0].out, builds[0].noted)  # run again: it stays published
    revisions = {"2026-01-01": 1, "2026-01-02": 2, "2026-01-03": 7}
    assert {entry["snapshot"]: entry["revision"] for entry in store.registered()} == revisions
    assert [entry["out"] for entry in store.known_builds()] == [builds[number].out for number in (1, 2, 0)]
    store.unregister(builds[1].build_id, builds[1].out)
    assert [entry["build_id"] for entry in store.registered()] == [builds[2].build_id, builds[0].build_id]
    assert store.known_builds()[0]["build_id"] == builds[1].build_id, "what it wrote is still there"
    other = begun(tmp_path, snapshot="2026-02-01", store=store.url)
    store.begin(builds[2].out, other.noted)
    assert [(entry["snapshot"], entry["revision"]) for entry in store.known_builds()] == [
        ("2026-01-01", None),
        ("2026-01-03", 7),
        ("2026-02-01", None),
    ], "a folder has one build"
    store.drop(builds[1].out)
    assert [entry["snapshot"] for entry in store.known_builds()] == ["2026-01-03", "2026-02-01"]


def test_of_a_build_in_two_folders_the_newest_publish_comes_last(tmp_path):
    store = Store(str(tmp_path / "store"))
    first, second = (begun(tmp_path / name, snapshot="2026-01-01", store=store.url) for name in ("a", "b"))
    for build, revision in ((first, 0), (second, 0), (first, 1)):
        store.register(build.out, build.noted, revision)
    assert [(entry["out"], entry["revision"]) for entry in store.registered()] == [(second.out, 0), (first.out, 1)]


def test_a_folder_has_one_record_however_it_is_spelled(tmp_path):
    store, real, link = Store(str(tmp_path / "store")), tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    build = begun(tmp_path, store=store.url)
    store.begin(str(link), build.noted)
    store.register(f"{tmp_path}/x/../real", build.noted, 1)
    assert [(one["out"], one["revision"]) for one in store.known_builds()] == [(str(real), 1)]
    store.drop(str(link))
    assert store.known_builds() == []


def test_a_build_is_noted_without_a_look_at_what_is_noted_of_others(tmp_path, monkeypatch):
    """Over S3 that would be a request each."""
    store = Store(str(tmp_path / "store"))
    first, second = (begun(tmp_path / name, name=name, store=store.url) for name in ("a", "b"))
    for build in (first, second):
        store.register(build.out, build.noted, 0)
    (tmp_path / "store" / store._record_of(first.out)).write_text("[")
    store.register(second.out, second.noted, 1)
    assert store._find(second.out)["revision"] == 1
    store.unregister(second.build_id, second.out)
    assert store._find(second.out)["revision"] is None
    store.drop(second.out)
    assert store._find(second.out) is None


@pytest.mark.parametrize("linked", [False, True])
def test_builds_beside_store_are_found_after_both_were_moved(tmp_path, linked):
    """A link leads to STORE's own folder: `..` leads from there to its parent."""
    place, away = tmp_path / "disk", begun(tmp_path / "elsewhere", name="away")
    place.mkdir()
    store = Store(str(place / "store"))
    builds = [begun(place / "builds", name=name, store=store.url) for name in ("a", "b")]
    store.check()
    if linked:
        (tmp_path / "link").symlink_to(place / "store")
        store = Store(str(tmp_path / "link"))
    for build in (*builds, away):
        store.begin(build.out, build.noted)
    place.rename(tmp_path / "moved")
    moved = Store(str(tmp_path / "moved/store"))
    places = [build.out.replace(str(place), str(tmp_path / "moved")) for build in builds]
    assert [entry["out"] for entry in moved.known_builds()] == [places[0], away.out, places[1]]
    moved.begin(places[0], builds[0].noted)
    assert len(moved.known_builds()) == 3


def test_every_cache_that_was_written_to_is_listed_by_its_place(tmp_path):
    store = Store(str(tmp_path))
    rows = pa.table({"sha256": ["a" * 64], "value": [1]})
    for cache in (store.features("f-1"), store.features("f-2"), store.regions("grid-0")):
        cache.put(rows)
    listed = dict(store.caches())
    assert list(listed) == ["fetched", "features/f-1", "features/f-2", "regions/grid-0"]
    assert listed["features/f-2"].get(["a" * 64]).num_rows == 1
    assert listed["fetched"].get(["a" * 64]) is None


def test_the_revision_of_takedowns_follows_what_they_hold_and_not_how_it_is_filed(tmp_path):
    store = Store(str(tmp_path))
    revisions = [store.forgotten_revision()]
    for name, hashes in (("one", ["a"]), ("two", ["b"]), ("three", ["a", "b"])):
        store.folder.write_json(f"forgotten/{name}.json", {"hashes": hashes})
        revisions.append(store.forgotten_revision())
    assert store.takedowns().hashes == {"a", "b"}
    assert len(set(revisions[:3])) == 3
    assert revisions[3] == revisions[2]


def test_one_process_at_a_time_holds_the_lock_and_a_store_is_made_by_it(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"))
    with pytest.raises(StoreError, match="not a STORE"):
        store.must_exist()
    monkeypatch.setattr("pipeline.store.store.WAIT_S", 0.2)
    held = r"_lock: is held by another process for more than 0\.2 s; try again"
    with store.lock(), pytest.raises(StoreError, match=held), store.lock():
        pass
    with store.lock():
        store.must_exist()
