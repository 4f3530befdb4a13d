"""STORE/datasets/NAME as files: what is prepared is not seen, and what is withdrawn comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.shard import SCHEMA_VERSION, Manifest, ReleasedBuild
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.store.releases import Releases
from pipeline.store.store import Store


def manifest(number: int, builds: int = 1, generation: int = 1) -> Manifest:
    entries = [
        ReleasedBuild(
            build_id=f"d-{n}",
            revision=0,
            snapshot=f"2026-01-0{n}",
            folder="/nowhere",
            spec_digest="",
            content_digest="",
            samples={"train": 10 * n},
        )
        for n in range(1, builds + 1)
    ]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        build_id=f"d@{number}",
        spec_digest="",
        content_digest="",
        created_at="",
        samples={"train": sum(entry.samples["train"] for entry in entries)},
        detectors=(),
        shards=(),
        dataset="d",
        release=number,
        generation=generation,
        builds=tuple(entries),
    )


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(Folder(str(tmp_path / "datasets/d")))


def test_a_prepared_release_is_seen_when_its_commit_is_written(releases: Releases, tmp_path: Path) -> None:
    assert (releases.newest(), releases.numbers(), Store(str(tmp_path)).datasets()) == (None, [], [])
    name = releases.prepare(manifest(1), lambda _: {"README.md": b"card"})
    releases.await_commit(name, str(tmp_path / "commit"), b"data")
    assert (releases.newest(), releases.numbers()) == (None, [])
    with pytest.raises(StoreError, match="no release 1 of dataset d; releases: none"):
        releases.read(1)
    (tmp_path / "commit").write_bytes(b"data")
    assert (releases.read(), releases.numbers()) == (manifest(1), [1])
    releases.finish_pending()
    (tmp_path / "commit").unlink()
    assert releases.read() == manifest(1), "it is named plainly"
    assert (tmp_path / "datasets/d/000001/README.md").read_bytes() == b"card"
    assert [own.dataset for own in Store(str(tmp_path)).datasets()] == ["d"]


def test_a_store_leads_wherever_its_own_builds_lie(releases: Releases) -> None:
    """STORE on a disk and builds on another file system: a publish left a latest.json that nothing could read."""
    out = Folder("memory://elsewhere/build")
    own = manifest(1).builds[0].model_copy(update={"folder": f"{out.url}/shards", "out": out.url})
    release = manifest(1).model_copy(update={"builds": (own,)})
    releases.await_commit(releases.prepare(release, lambda _: {}), out.at("commit"), b"data")
    assert releases.newest() is None
    out.write("commit", b"data")
    releases.finish_pending()
    assert releases.newest() == release
    out.delete("")


def test_a_release_that_never_came_is_written_over_by_the_next(releases: Releases, tmp_path: Path) -> None:
    releases.make_newest(releases.prepare(manifest(1), lambda _: {}))
    releases.await_commit(releases.prepare(manifest(2), lambda _: {}), str(tmp_path / "commit"), b"data")
    assert releases.numbers() == [1]
    releases.make_newest(releases.prepare(manifest(2, builds=2), lambda _: {}))
    assert releases.read() == manifest(2, builds=2)


def test_a_withdrawal_ends_with_the_next_release(releases: Releases) -> None:
    releases.withdraw("before there is one")
    assert not releases.latest().withdrawn
    releases.make_newest(releases.prepare(manifest(1), lambda _: {}))
    releases.withdraw("a takedown")
    releases.finish_pending()
    assert releases.latest().withdrawn == "a takedown"
    assert releases.read() == manifest(1), "those who rewrite it read it"
    releases.make_newest(releases.prepare(manifest(2), lambda _: {}))
    assert not releases.latest().withdrawn


def test_what_a_dataset_holds_beside_a_build(releases: Releases) -> None:
    releases.make_newest(releases.prepare(manifest(1, builds=3), lambda _: {}))
    known = {"d-1", "d-2", "d-3"}
    assert releases.other_samples(1, "2026-02-01", known) == 60
    assert releases.other_samples(1, "2026-01-02", known) == 40, "a build takes the place of one of its snapshot"
    assert releases.other_samples(2, "2026-02-01", known) == 0, "another generation begins with nothing"
    assert releases.other_samples(1, "2026-02-01", {"d-1"}) == 10
    assert (releases.lists("d-2"), releases.lists("d-4")) == (True, False)
