"""Results in a build's folder that another build would replace, and their withdrawal.

A folder is one build's: build.json, shards and report have fixed names in it. Another dataset, another snapshot or,
once it is published, another spec takes their place, so the command line asks for --replace first. Going on with a
build that is not published, under a changed spec, is the usual way to work and replaces nothing that is relied on.

A snapshot is in a dataset once, so a build of a snapshot that was published from another folder asks for --replace too,
and so does another STORE than the build's: takedowns there would not reach it, and their content would come back.

Limits: captures and images of what is replaced stay in the folder until `gc`, since they cost requests to others.
"""

from __future__ import annotations

from typing import Any

from data_specs.shard import MANIFEST, ContractError, Manifest
from pipeline.files.folder import Folder, place_of
from pipeline.publish import dataset, release
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.dataset import manifest_in
from pipeline.store.identities import Identities
from pipeline.store.store import Store


def in_the_way(build: Build) -> list[str]:
    """Returns a line for each thing that the build would replace in its folder, with the loss; empty if nothing.

    Raises StoreError for a folder whose build.json is damaged.
    """
    known, place = build_json.read(build.folder), _published_in(build)
    if other := _other_store(build, known):
        return [
            f"{build.out}: holds build {known['build_id']} of STORE {other}",
            f"with --store {build.store.url}, takedowns and releases of that STORE would no longer reach it",
            "omit --store, build into another folder (--out), or use --replace",
        ]
    name = known.get("name", build.spec.name)
    if place is not None:
        manifest = _manifest(place)
        if manifest is not None and manifest.build_id == build.build_id and name == build.spec.name:
            return []
        held, lost = _described(build, known, place, manifest)
    elif known and (name != build.spec.name or (_is_packed(known) and known.get("snapshot") != build.snapshot)):
        held = f"dataset {name}, snapshot {known.get('snapshot')}, not published"
        lost = "its shards and its report" if _is_packed(known) else "its work so far"
    else:
        return []
    return [
        f"{build.out}: holds {held}",
        f"dataset {build.spec.name}, snapshot {build.snapshot}, spec {build.spec.digest[:8]}, would replace it; "
        f"{lost} would be lost",
        "build into another folder (--out), or use --replace",
    ]


def displaced_builds(build: Build) -> list[str]:
    """Returns lines about a build in another folder whose place in the dataset this build would take; empty if none.

    A release has one build of a snapshot. A build that was moved to this folder is not another one.
    """
    newest = build.store.releases(build.spec.name).newest()
    if newest is None or newest.generation != build.generation:
        return []
    here, known = place_of(build.out), build_json.read(build.folder).get("build_id")
    for own in newest.builds:
        if own.snapshot == build.snapshot and own.build_id != known and place_of(own.out) != here:
            return [
                f"release {newest.release} of {build.spec.name} has {sum(own.samples.values()):,} samples of "
                f"snapshot {own.snapshot}, built in {own.out}",
                f"{build.out}: a build of the same snapshot would replace it in the dataset",
                "to add to the dataset, omit --snapshot or give another one, or use --replace",
            ]
    return []


def withdraw(build: Build) -> None:
    """Withdraw what is published in the build's folder, so that the build can replace it.

    Its identities go first, since a later build must not drop pictures for one that no dataset holds, then its place in
    releases, of which the next leaves it out; its manifest goes last, so that after a kill --replace is asked for
    again. Raises StoreError if another command is at work.
    """
    known, place = build_json.read(build.folder), _published_in(build)
    with build_json.sole_owner(build):
        other = _other_store(build, known)
        store = Store(other) if other else build.store
        manifest = _manifest(place) if place is not None else None
        kept = {""} if other else {"", build.build_id}
        names = {known.get("build_id", ""), manifest.build_id if manifest else ""} - kept
        if store.version():
            with store.lock():
                for name in sorted(names):
                    if not dataset.lies_elsewhere(store, name, build.shards.url):
                        Identities(store).withdraw(name)
                        dataset.leave_out(store, name, "was replaced by another build in the same folder")
                    store.unregister(name, build.out)
                if other:
                    store.drop(build.out)
        if place is not None:
            release.withdraw(place)


def _other_store(build: Build, known: dict[str, Any]) -> str:
    """The STORE of the build in the folder, if it is another one than this build's and is still there; else ""."""
    store: str = build_json.store_of(build.folder, known) if "store" in known else ""
    return store if store and place_of(store) != place_of(build.store.url) and Store(store).version() else ""


def _is_packed(known: dict[str, Any]) -> bool:
    """True if a build has shards."""
    return "shard" in known.get("stages", {})


def _published_in(build: Build) -> Folder | None:
    """The folder of the shards of the dataset that lies in the build's folder: a published one, or a copy of one."""
    places = (build.shards, build.folder)
    return next((place for place in places if place.exists(MANIFEST)), None)


def _manifest(place: Folder) -> Manifest | None:
    """The manifest of a folder of shards; None if it cannot be read."""
    try:
        return manifest_in(place)
    except ContractError:
        return None


def _described(build: Build, known: dict[str, Any], place: Folder, manifest: Manifest | None) -> tuple[str, str]:
    """(what a published folder holds, what would be lost of it)."""
    if manifest is None:
        return f"a dataset whose manifest cannot be read ({place.at(MANIFEST)})", "all of its content"
    ours = known.get("build_id") == manifest.build_id
    what = f"dataset {known['name']}, snapshot {known['snapshot']}" if ours else f"the dataset of {manifest.build_id}"
    samples = ", ".join(f"{count:,} {split}" for split, count in manifest.samples.items())
    size = sum(shard.tar.bytes for shard in manifest.shards) / 1e6
    total = f"{sum(manifest.samples.values()):,} samples ({samples})"
    held = f"{what}, spec {manifest.spec_digest[:8]}, published as revision {manifest.revision}: {total}"
    stages = known.get("stages", {})
    if stages.get("shard", {}).get("fingerprint") == build.fingerprints.get("shard"):
        return held, "its manifest (but not its shards)"
    return held, f"its manifest, its report and {len(manifest.shards):,} shards ({size:,.1f} MB)"
