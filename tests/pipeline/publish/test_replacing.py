"""What a build would replace in its folder: what is refused, what it says, and what --replace takes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_specs.shard import read_manifest
from pipeline.publish import dataset, release, replacing
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.store.store import Store

pytestmark = pytest.mark.slow

Run = Callable[..., list[str]]


def of(build: Build, snapshot: str = "", **spec: Any) -> Build:
    """Another build in the same folder, as `open_build` would name it."""
    changed = build.spec.model_copy(update=spec)
    snapshot = snapshot or build.snapshot
    return replace(build, spec=changed, snapshot=snapshot, build_id=f"{changed.name}-{snapshot}-{changed.digest[:8]}")


@pytest.fixture
def begun(synthetic_build: Build, run_stage: Run) -> Build:
    """A build whose build.json says that it has shards; it is not published."""
    build = of(synthetic_build)
    run_stage(build, "shard")
    build_json.note(build)
    known = build.folder.read_json("build.json")
    shard = {"fingerprint": build.fingerprints["shard"], "partitions": 1, "funnel": {}, "seconds": 0.0}
    build.folder.write_json("build.json", {**known, "stages": {"shard": shard}})
    return build


@pytest.fixture
def published(begun: Build) -> Build:
    release.publish(begun)
    return begun


def everything(build: Build) -> dict[str, bytes]:
    places = (Path(build.out), Path(build.store.url))
    return {str(p): p.read_bytes() for place in places for p in place.rglob("*") if p.is_file() and p.name != "_lock"}


def test_an_empty_folder_and_the_build_itself_are_not_in_the_way(published: Build, tmp_path: Path) -> None:
    assert replacing.in_the_way(replace(published, out=str(tmp_path / "new"))) == []
    assert replacing.in_the_way(published) == []


def test_a_build_of_a_snapshot_published_from_another_folder_is_named_before_it_is_replaced(
    published: Build, tmp_path: Path
) -> None:
    again = replace(of(published, seed=7), out=str(tmp_path / "again"))
    held, lost, advice = replacing.displaced_builds(again)
    assert held == f"release 1 of synthetic has 30 samples of snapshot 2024-01-01, built in {published.out}"
    assert "would replace it" in lost
    assert "--replace" in advice
    for other in (published, of(again, snapshot="2024-01-02"), replace(again, generation=2), of(again, name="other")):
        assert replacing.displaced_builds(other) == []
    shutil.copytree(published.out, tmp_path / "moved")
    assert replacing.displaced_builds(replace(published, out=str(tmp_path / "moved"))) == [], "it is the same build"


def test_another_spec_is_no_matter_until_the_build_is_published(begun: Build) -> None:
    changed = of(begun, seed=7)
    assert replacing.in_the_way(changed) == []
    release.publish(begun)
    held, lost, advice = replacing.in_the_way(changed)
    digests = begun.spec.digest[:8], changed.spec.digest[:8]
    samples = ", ".join(f"{n} {split}" for split, n in read_manifest(Path(begun.out) / "shards").samples.items())
    assert held == (
        f"{begun.out}: holds dataset synthetic, snapshot 2024-01-01, spec {digests[0]}, published as revision 0: "
        f"30 samples ({samples})"
    )
    assert lost.startswith(f"dataset synthetic, snapshot 2024-01-01, spec {digests[1]}, would replace it; ")
    assert "--replace" in advice


def test_another_store_is_refused_until_the_build_is_taken_out_of_its_own(published: Build, tmp_path: Path) -> None:
    mistyped = replace(published, store=Store(str(tmp_path / "stroe")))
    held, loss, advice = replacing.in_the_way(mistyped)
    assert held == f"{published.out}: holds build {published.build_id} of STORE {published.store.url}"
    assert "takedowns" in loss
    assert "omit --store" in advice
    replacing.withdraw(mistyped)
    assert Identities(published.store).of(published.build_id) == ""
    assert published.store.known_builds() == [], "a takedown there no longer waits for this folder"
    assert not published.shards.exists("manifest.json")
    shutil.rmtree(published.store.url)
    assert replacing.in_the_way(mistyped) == [], "STORE was moved"


def test_what_is_lost_is_named(published: Build) -> None:
    same_shards = replacing.in_the_way(of(published, seed=7))[1]
    assert "its manifest (but not its shards) would be lost" in same_shards
    other = replace(of(published, seed=7), fingerprints={**published.fingerprints, "shard": "0" * 64})
    shards = len(read_manifest(Path(published.out) / "shards").shards)
    assert f"its manifest, its report and {shards} shards (" in replacing.in_the_way(other)[1]


@pytest.mark.parametrize("change", [{"name": "other"}, {"snapshot": "2024-01-08"}])
def test_another_dataset_and_another_snapshot_are_always_in_the_way(begun: Build, change: dict[str, Any]) -> None:
    before = everything(begun)
    held, lost, _ = replacing.in_the_way(of(begun, **change))
    assert held == f"{begun.out}: holds dataset synthetic, snapshot 2024-01-01, not published"
    assert "its shards and its report would be lost" in lost
    assert everything(begun) == before, "asking changes nothing"
    release.publish(begun)
    assert "published as revision 0: 30 samples" in replacing.in_the_way(of(begun, **change))[0]


def test_a_dataset_without_a_build_and_one_that_cannot_be_read_are_in_the_way(published: Build) -> None:
    published.folder.delete("build.json")
    assert f"holds the dataset of {published.build_id}, spec " in replacing.in_the_way(of(published, seed=7))[0]
    published.shards.write("manifest.json", b"{")
    assert "a dataset whose manifest cannot be read" in replacing.in_the_way(published)[0]
    published.shards.delete("manifest.json")
    assert replacing.in_the_way(of(published, seed=7)) == []
    published.folder.write("manifest.json", b"{}")
    assert "a dataset whose manifest cannot be read" in replacing.in_the_way(published)[0], "a copy of a dataset"


def test_what_is_replaced_is_taken_back_in_store_and_the_manifest_goes_last(
    published: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, identities = of(published, name="other"), Identities(published.store)
    assert identities.of(published.build_id) != ""
    with monkeypatch.context() as patch:
        patch.setattr(release, "withdraw", _killed)
        with pytest.raises(InterruptedError):
            replacing.withdraw(other)
    assert replacing.in_the_way(other) != []
    replacing.withdraw(other)
    assert identities.of(published.build_id) == ""
    assert published.store.registered() == []
    assert list((Path(published.store.url) / "identity").iterdir()) == []
    assert not published.shards.exists("manifest.json")
    assert replacing.in_the_way(of(published, seed=7)) == [], "a build that is not published"


def test_the_next_release_leaves_out_what_is_replaced(published: Build, tmp_path: Path, run_stage: Run) -> None:
    later = replace(of(published, snapshot="2024-01-08"), out=str(tmp_path / "later"))
    shutil.copytree(published.out, later.out)
    release.withdraw(later.shards)
    later.folder.delete("releases.json")
    build_json.note(later)
    later = replace(later, identities=Identities(later.store).before(later))
    release.publish(later)
    releases = published.store.releases("synthetic")
    assert [own.snapshot for own in releases.read().builds] == ["2024-01-01", "2024-01-08"]
    replacing.withdraw(of(published, seed=7))
    assert [own.snapshot for own in releases.read().builds] == ["2024-01-08"]
    assert releases.latest().withdrawn == ""

    replacing.withdraw(of(later, name="other"))
    assert f"its only build, {later.build_id}, was replaced" in releases.latest().withdrawn
    assert dataset.renew(published.store, "synthetic", {}) == releases.read(), "a takedown finds nothing to renew"
    release.publish(published)
    assert [own.snapshot for own in releases.read().builds] == ["2024-01-01"]
    assert releases.latest().withdrawn == ""


def _killed(folder: Any) -> None:
    raise InterruptedError
