"""STORE/identity: what a build reads, when it may be published, and what a kill leaves."""

from __future__ import annotations

import errno
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_specs.build import Dedup
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.matching.image_comparison import Details
from pipeline.store.build import Build
from pipeline.store.identities import (
    DETAILS,
    PARTS,
    SIGNATURES,
    Identities,
    commit_name,
)
from pipeline.store.store import Store
from tests.stages import run_stage

pytestmark = pytest.mark.slow

STAGES = ("dedup.signatures", "dedup.copies", "dedup.edges", "dedup.leaders")


def led(build: Build) -> Build:
    """The build with its leader pass done."""
    run_stage(build, *STAGES)
    return build


def publish(build: Build) -> str:
    with build.store.lock():
        Identities(build.store).publish(build)
    return commit_name(build)


def shas(store: Store, name: str) -> set[str]:
    identities = Identities(store)
    tables = identities.batches(identities.read(name), "images.parquet", ["sha256"])
    return {row.hex() for table in tables for row in table["sha256"].to_pylist()}


@pytest.fixture
def make(tmp_path: Path, filtered: Any) -> Any:
    """make("2026-01", 1, 2, ...): a build of that snapshot that shows these pictures, leader pass done."""

    def build(snapshot: str, *pictures: int, **more: Any) -> Build:
        shown = [filtered.Shown(f"{snapshot}-{p}", p, (f"第{p}张图片",)) for p in pictures]
        return led(filtered.make(tmp_path, shown, snapshot=snapshot, **more))

    return build


def test_a_build_reads_what_others_published_by_snapshot_and_never_its_own(make: Any) -> None:
    later, earlier = make("2026-02", 1), make("2026-01", 2)
    names = [publish(later)]
    with pytest.raises(StoreError, match=r"test-2026-01-\w+: test-2026-02-\w+ was published after this build started"):
        publish(earlier)
    earlier = make("2026-01", 2)
    assert earlier.identities == tuple(names)
    names.insert(0, publish(earlier))
    identities = Identities(earlier.store)

    def before(**changes: Any) -> tuple[str, ...]:
        return identities.before(replace(later, **changes))

    assert before(build_id="new", snapshot="2026-03") == tuple(names)
    assert before() == (names[0],)
    assert before(build_id="changed-spec") == (names[0],), "it takes the place of that build"
    assert before(build_id="new", snapshot="2026-03", generation=2) == ()

    def of_another(across: Any) -> tuple[str, ...]:
        spec = later.spec.model_copy(update={"name": "another", "dedup": Dedup(across=across)})
        return before(build_id="other", spec=spec)

    assert of_another(()) == ()
    assert of_another(("test",)) == of_another("all") == tuple(names)
    assert of_another(("news",)) == ()


def test_publishing_again_replaces_what_was_there(make: Any, filtered: Any, tmp_path: Path) -> None:
    first = make("2026-01", 1)
    before = publish(first)
    assert publish(first) == before
    shown = [filtered.Shown("another", 2)]
    again = replace(filtered.make(tmp_path / "again", shown, snapshot="2026-01"), store=first.store)
    assert again.build_id == first.build_id
    after = publish(led(again))
    files = {path.name for path in (tmp_path / "store/identity").iterdir()}
    assert files == {after, *(f"{after.removesuffix('.json')}.{part}" for part in PARTS)}
    assert shas(first.store, after) == {shown[0].sha256}


def test_a_build_that_is_published_may_be_published_again_whatever_came_after(make: Any) -> None:
    first = make("2026-01", 1)
    publish(first)
    publish(make("2026-02", 2))
    publish(first)
    assert len(Identities(first.store).names()) == 2


def test_a_kill_before_the_record_leaves_nothing_that_is_read(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build = make("2026-01", 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            Identities(build.store).publish(build)
    identities = Identities(build.store)
    assert (identities.names(), identities.of(build.build_id)) == ([], "")
    publish(build)
    assert len(identities.names()) == 1


def test_a_full_disk_leaves_nothing_half_copied(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build = make("2026-01", 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", full)  # as on another disk
        patch.setattr("shutil.copyfileobj", full)
        with pytest.raises(StoreError, match=r"images\.parquet: cannot be written \(No space left"):
            publish(build)
    assert in_store(build) == set()
    publish(build)


def test_what_a_build_reads_cannot_change_under_it(make: Any, filtered: Any, tmp_path: Path) -> None:
    first = make("2026-01", 1)
    publish(first)
    shown = [filtered.Shown("c", 1)]
    reader = filtered.make(tmp_path, shown, snapshot="2026-03")
    other = replace(filtered.make(tmp_path / "again", [filtered.Shown("b", 2)], snapshot="2026-01"), store=first.store)
    publish(led(other))
    with pytest.raises(StoreError, match="replaced while this build was running; run the same command again"):
        led(reader)


def test_a_file_that_is_not_whole_is_named(make: Any, filtered: Any, tmp_path: Path) -> None:
    name = publish(make("2026-01", 1))
    path = tmp_path / f"store/identity/{name.removesuffix('.json')}.images.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=rf"{path}: missing or incomplete"):
        make("2026-02", 1)


def test_a_takedown_leaves_the_details_of_the_others_at_their_ranks(tmp_path: Path, filtered: Any) -> None:
    shown = [filtered.Shown(f"p{i}", i, (f"第{i}张图片",), 300 - i, fine=i % 3 and i) for i in range(9)]
    build = led(filtered.make(tmp_path, shown))
    name, identities = publish(build), Identities(build.store)
    (images,) = identities.batches(identities.read(name), "images.parquet")
    before, details = images["sha256"].to_pylist(), Details.read(identities.raw_at(identities.read(name), DETAILS))
    assert details.of.tolist() == [1, 2, 4, 5, 7, 8]
    expected = {before[at]: row.tobytes() for at, row in zip(details.of.tolist(), details.stored, strict=True)}
    gone = {before[0], before[4]}
    (new,) = identities.forget(lambda rows: np.array([s in gone for s in rows["sha256"].to_pylist()])).values()
    (images,) = identities.batches(identities.read(new), "images.parquet")
    after, details = images["sha256"].to_pylist(), Details.read(identities.raw_at(identities.read(new), DETAILS))
    assert details.of.tolist() == [0, 1, 3, 5, 6]
    for at, row in zip(details.of.tolist(), details.stored, strict=True):
        assert row.tobytes() == expected[after[at]]


def test_a_store_behind_a_url_works_like_a_disk(make: Any, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/store"
    first = make("2026-01", 1, 2, store=url)
    publish(first)
    second = make("2026-02", 2, 3, store=url)
    assert second.stage("dedup.leaders").record("all").counts["leaders"] == 1
    assert second.stage("dedup.leaders").record("all").counts["earlier"] == 2


def _publish(build: Build) -> None:
    try:
        publish(build)
    except StoreError:
        raise SystemExit(3) from None


@pytest.mark.drill(3)
def test_of_many_publishers_at_once_one_wins_and_the_others_are_told(make: Any) -> None:
    """None of them has seen another: if two came through, both might keep one image."""
    builds = [make(f"2026-0{i}", i) for i in range(1, 5)]
    processes = [multiprocessing.get_context("spawn").Process(target=_publish, args=(build,)) for build in builds]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert sorted(process.exitcode or 0 for process in processes) == [0, 3, 3, 3]
    assert len(Identities(builds[0].store).names()) == 1


def in_store(build: Build) -> set[str]:
    return {path.name for path in (Path(build.store.url) / "identity").iterdir()}


@pytest.mark.parametrize("part", ["json", PARTS[0], PARTS[-1]])
def test_a_takedown_that_was_killed_leaves_no_file_once_it_was_done_again(
    make: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Killed when the commit without the picture is there, and that with it is being taken away."""
    build = make("2026-01", 1, 2, 3)
    (image, *_) = shas(build.store, publish(build))
    identities, delete = Identities(build.store), Folder.delete

    def removed(rows: pa.Table) -> Any:
        return np.array([name.hex() == image for name in rows["sha256"].to_pylist()], np.bool_)

    def killed(folder: Folder, name: str) -> None:
        if name.endswith(part):
            raise KeyboardInterrupt
        delete(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            identities.forget(removed)
    identities.forget(removed)
    (name,) = identities.names()
    assert image not in shas(build.store, name)
    assert in_store(build) == {name, *(ref.name for ref in identities.read(name).files.values())}


@pytest.mark.drill(2)
def test_a_build_that_is_published_again_after_a_kill_has_one_commit(
    make: Any, filtered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two names comes first."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    orders = set[bool]()
    for at in range(8):
        first = make("2026-01", 20 + at, store=str(tmp_path / str(at)))
        before = publish(first)
        shown = [filtered.Shown("another", 100 + at)]
        made = filtered.make(tmp_path / f"again-{at}", shown, snapshot="2026-01")
        again = led(replace(made, store=first.store))
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "delete", killed)
            with pytest.raises(KeyboardInterrupt):
                publish(again)
        assert len(Identities(first.store).names()) == 2
        after = publish(again)
        assert Identities(first.store).names() == [after]
        orders.add(after < before)
    assert len(orders) == 2, "digests of these builds show both orders"


def test_a_file_behind_a_url_that_is_not_whole_is_named(make: Any, tmp_path: Path) -> None:
    build = make("2026-01", 1, 2, store=f"memory://{tmp_path.name}/store")
    identities = Identities(build.store)
    known = identities.read(publish(build))
    ref, folder = known.files[SIGNATURES], build.store.folder / "identity"
    folder.write(ref.name, folder.read(ref.name)[:-1])
    assert identities.raw(known, SIGNATURES, 0, 1, ref.bytes // 2).shape == (1, ref.bytes // 2)
    with pytest.raises(StoreError, match=f"{ref.name}: missing or incomplete; publish its build again"):
        identities.raw(known, SIGNATURES, 0, 2, ref.bytes // 2)
