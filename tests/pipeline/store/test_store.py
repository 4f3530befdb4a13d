"""store: what STORE knows of builds, caches and takedowns, who may write to it, and which version it has."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.store.store import Store
from tests.fetched import begun


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match="has version 99, but this wenlan supports 2; upgrade"):
        Store(str(tmp_path)).check()


def test_published_builds_are_known_by_snapshot_until_they_are_taken_back(tmp_path):
    store = Store(str(tmp_path / "store"))
    builds = [begun(tmp_path, snapshot=f"2026-01-0{day}", store=store.url) for day in (3, 1, 2)]
    for revision, build in enumerate(builds):
        store.register(build, revision)
    store.register(builds[0], 7)  # again, as after a takedown
    assert [(entry["snapshot"], entry["revision"]) for entry in store.registered()] == [
        ("2026-01-01", 1),
        ("2026-01-02", 2),
        ("2026-01-03", 7),
    ]
    assert [entry["out"] for entry in store.registered()] == [builds[number].out for number in (1, 2, 0)]
    store.unregister(builds[1].build_id, builds[1].out)
    store.unregister(builds[1].build_id, builds[1].out)
    assert [entry["build_id"] for entry in store.registered()] == [builds[2].build_id, builds[0].build_id]


def test_the_newest_publish_of_a_build_is_its_last_entry_after_a_kill_too(tmp_path, monkeypatch):
    """Before the entry of an earlier publish in the same folder was deleted; an older wenlan never deletes it."""
    store = Store(str(tmp_path / "store"))
    builds = [begun(tmp_path / name, snapshot="2026-01-01", store=store.url) for name in ("a", "b")]
    first, second = sorted(builds, key=lambda build: hashlib.sha256(build.out.encode()).hexdigest())
    for build in (first, second):
        store.register(build, 0)

    def killed(folder, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            store.register(first, 1)
    assert [(entry["out"], entry["revision"]) for entry in store.registered()] == [(second.out, 0), (first.out, 1)]
    store.unregister(first.build_id, first.out)
    assert [entry["out"] for entry in store.registered()] == [second.out]


def test_entries_of_one_folder_under_several_names_are_one_build(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    store = Store(str(tmp_path / "store"))
    entry = {"build_id": "b", "name": "news", "snapshot": "2026-01", "revision": 0}
    for name, out in (("b", str(link)), ("b.00000000", str(real)), ("b.00000001", f"{real}/../real")):
        store.folder.write_json(f"builds/{name}.json", {**entry, "out": out})
    assert [one["out"] for one in store.registered()] == [str(link)]
    other = replace(begun(tmp_path / "other", snapshot="2026-01", store=store.url), build_id="b")
    store.register(other, 1)
    assert [one["out"] for one in store.registered()] == [str(link), other.out]
    store.unregister("b", str(real))
    assert [one["out"] for one in store.registered()] == [other.out]


def test_a_build_is_noted_and_taken_back_without_a_look_at_what_is_noted_of_others(tmp_path, monkeypatch):
    """Each was one request more for every build of STORE, under the lock for which others wait a minute."""
    store = Store(str(tmp_path / "store"))
    first, second = (begun(tmp_path / name, snapshot="2026-01-01", store=store.url) for name in ("a", "b"))
    other = replace(first, build_id=f"{first.build_id}-g2")
    for build in (other, first, second):
        store.register(build, 0)
    (tmp_path / f"store/builds/{other.build_id}.json").write_text("not to be read")
    store.register(first, 1)
    store.unregister(second.build_id, second.out)
    assert [path.name for path in sorted((tmp_path / "store/builds").iterdir())] == [
        f"{other.build_id}.json",
        f"{first.build_id}.json",
    ]


def test_no_folder_is_looked_at_of_a_build_that_is_noted_once(tmp_path, monkeypatch):
    """One look at each of 10,000, under the lock; and the disk of a dataset that nobody asks for may not answer."""
    store = Store(str(tmp_path / "store"))
    builds = [begun(tmp_path / day, snapshot=day, store=store.url) for day in ("2026-01-01", "2026-01-02")]
    for build in builds:
        store.register(build, 0)
    monkeypatch.setattr("pipeline.store.store.place_of", None)
    assert [entry["out"] for entry in store.registered()] == [build.out for build in builds]


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
    monkeypatch.setattr("pipeline.store.store.time.sleep", lambda seconds: None)
    with store.lock(), pytest.raises(StoreError, match=r"_lock: held by another publish"), store.lock():
        pass
    with store.lock():
        store.must_exist()
