"""Releases of a dataset: what each consists of, and how one becomes the newest.

A release lists the shards of the builds of one generation, oldest snapshot first. Publishing a build makes the next
release: that of before, with the build appended, or in the place of an earlier build of the same snapshot. A takedown
rewrites shards where they lie; the next release lists them as they are then, and earlier manifests no longer match.
Hence nothing that was taken down comes back: `rollback` takes the builds of an earlier release, not its files.

Limits: a release is one file, about 700 bytes per shard, which is read and written as a whole.
"""

from __future__ import annotations

import functools
import shlex
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from data_specs.build import BuildSpec
from data_specs.shard import (
    MANIFEST,
    SCHEMA_VERSION,
    ContractError,
    FileDigest,
    Manifest,
    ReleasedBuild,
    ShardFiles,
    StoredImages,
    content_digest,
    leaves_folder,
    pretty_manifest,
)
from data_specs.storage.whole_files import link
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, place_of
from pipeline.publish import card
from pipeline.rows.records import rfc3339
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.dataset import manifest_in, samples_by_split
from pipeline.store.releases import Releases
from pipeline.store.store import Store
from pipeline.store.takedowns import UNFINISHED

_Part = tuple[ReleasedBuild, Sequence[ShardFiles]]
"""A build of a release, and its shards as a release lists them."""


def check(build: Build) -> None:
    """Raise StoreError if the newest release is not one that the build continues, or makes again as a whole."""
    current = build.store.releases(build.spec.name).latest().current
    if current is None:
        return
    now = f"dataset {build.spec.name} is now at generation {current.generation}"
    if not build.made_from:
        if current.generation != build.generation:
            raise StoreError(build.build_id, f"{now}, this build at {build.generation}; run wenlan-data build again")
        check_faces(build)
        return
    if current.generation == build.generation and build.snapshot in {own.snapshot for own in current.builds}:
        return  # it is published again
    known = {own.build_id for own in build.made_from}
    unseen = [own.build_id for own in current.builds if own.build_id not in known]
    if len(unseen) == len(current.builds):
        raise StoreError(build.build_id, f"{now}, started by another build; start a new one in another folder")
    if unseen:
        since = f"{', '.join(unseen)} was published after this generation was started"
        raise StoreError(build.build_id, f"{since}; run wenlan-data build again")


def check_faces(build: Build) -> None:
    """Raise StoreError if one release would mix builds that blur faces with builds that keep them."""
    blurs = build.spec.shards.faces == "blur"
    before = build.store.releases(build.spec.name).newest()
    if build.made_from or before is None:
        return
    if before.images is not None and bool(before.images.faces_blurred) == blurs:
        return
    others = [own for own in before.builds if own.snapshot != build.snapshot]
    stored = {own.build_id: _manifest_of(own.out)[1].images for own in others}
    if unlike := [name for name, own in stored.items() if bool(own is not None and own.faces_blurred) != blurs]:
        where = f"{', '.join(unlike)} of dataset {build.spec.name}"
        remedy = "rebuild it with build --generation new"
        if blurs:
            raise StoreError(build.build_id, f"blurs faces, but {where} keeps them; {remedy}")
        raise StoreError(build.build_id, f"keeps faces, but {where} blurs them; set shards.faces: blur, or {remedy}")


def unreachable(store: Store, builds: Sequence[ReleasedBuild]) -> dict[str, str]:
    """A line for each of these builds that is not whole in its folder, by its id: what it has, and what to do."""
    return {
        own.build_id: f"{own.out}: {own.build_id} with {sum(own.samples.values()):,} samples is unreachable: {why}"
        for own in builds
        if own.out and (why := _absence(store, own.out))
    }


def _absence(store: Store, out: str) -> str:
    """Reason why not all that a release lists of a build is there, and what to do; "" if it is.

    One listing of each folder of its shards. Shards that a takedown withdrew for a while are there.
    """
    folder, again = Folder(out), "mount its disk or restore it, and run the same command again"
    if not folder.exists(build_json.NAME):
        return store.unreachable(out)
    try:
        shards, manifest = _manifest_of(out)
    except (StoreError, ContractError) as e:
        if folder.exists(UNFINISHED):
            return ""
        shards = folder / "shards"
        return str(e) if shards.names() else f"{shards.url} is gone, or holds nothing; {again}"
    listed = [file.path for own in manifest.shards for file in (own.tar, own.parquet, *own.regions.values())]
    there = {name: set((shards / name).names()) for name in {path.rpartition("/")[0] for path in listed}}
    lost = [path for path in listed if path.rpartition("/")[2] not in there[path.rpartition("/")[0]]]
    others = f" and {len(lost) - 1:,} other files are" if lost[1:] else " is"
    return f"{shards.at(lost[0])}{others} missing; {again}" if lost else ""


def check_reachable(build: Build) -> None:
    """Raise StoreError if the next release, with this build, would list one that is not there, which is named."""
    others = _other_builds(build, build.store.releases(build.spec.name).newest())
    if lines := unreachable(build.store, [own for own, _ in others]):
        raise StoreError(build.build_id, f"not published, since its release would list {_and(lines)}")


def _and(lines: Mapping[str, str]) -> str:
    return "; and ".join(lines.values())


def publish(build: Build, manifest: Manifest, commit: Callable[[bytes], None]) -> Manifest:
    """Make a build visible, and the release with it, in one step; returns the release.

    commit: writes the bytes of the build's manifest to BUILD/shards/manifest.json. The caller holds STORE's lock, and
    has called `check_reachable`. Raises StoreError as `check` does.
    """
    check(build)
    releases, data = build.store.releases(build.spec.name), pretty_manifest(manifest)
    release = _with_build(build, releases.newest(), manifest)
    name = releases.prepare(release, functools.partial(card.release_files, build.spec))
    releases.await_commit(name, build.shards.at(MANIFEST), data)
    commit(data)
    _finish_release(releases, release)
    return release


def include(build: Build, manifest: Manifest) -> Manifest:
    """Returns the newest release if it has this published build, else makes the next. The caller holds STORE's lock.

    A build of another generation than the newest release is in other releases: nothing changes.
    """
    releases = build.store.releases(build.spec.name)
    before = releases.newest()
    own, _ = _released_part(build.shards, manifest, build.snapshot, build.out)
    if before is not None and (before.generation != build.generation or own in before.builds):
        _finish_release(releases, before)
        return before
    check_reachable(build)
    release = _with_build(build, before, manifest)
    releases.make_newest(releases.prepare(release, functools.partial(card.release_files, build.spec)))
    return release


def _finish_release(releases: Releases, release: Manifest) -> None:
    """Names the newest release plainly, and ends a withdrawal if all builds of the release are accessible again."""
    releases.finish_pending()
    latest = releases.latest()
    if latest.withdrawn and latest.current is not None and all(_is_whole(build) for build in release.builds):
        releases.make_newest(latest.current)


def _is_whole(build: ReleasedBuild) -> bool:
    """True if a build is in its place, and no takedown is at work in it."""
    return _is_there(build) and not Folder(build.out).exists(UNFINISHED)


def withdraw(build: Build, why: str) -> None:
    """Closes a dataset's name to readers while shards that its newest release lists change.

    The next publish, takedown or rollback of the dataset ends it; readers are told `why`.
    """
    releases = build.store.releases(build.spec.name)
    newest = releases.newest()
    shards = place_of(build.shards.url)
    if newest is not None and any(place_of(own.folder) == shards for own in newest.builds):
        releases.withdraw(why)


def renew(store: Store, dataset: str, specs: Mapping[str, BuildSpec]) -> Manifest | None:
    """The next release, of the same builds as they are now; the newest one if they are as it lists them.

    specs: of builds that are open, by build_id. None for a dataset without a release. Raises StoreError for a build
    that is no longer there.
    """
    releases = store.releases(dataset)
    with store.lock():
        before = releases.newest()
        if before is None:
            return None
        if _remaining_ids(store, before.builds) == set():
            return before  # `leave_out` withdrew it
        parts = _as_they_are(store, before.builds)
        if tuple(entry for entry, _ in parts) == before.builds:
            withdrawn = releases.latest()
            if withdrawn.withdrawn and withdrawn.current is not None:
                releases.make_newest(withdrawn.current)
            return before
        return _add_release(releases, before, parts, specs=specs)


def leave_out(store: Store, build_id: str, why: str) -> None:
    """The next release of a dataset without one of its builds. The caller holds STORE's lock.

    why: what happened to the build, e.g. "was deleted". A dataset that consists of this build alone is withdrawn until
    another build of it is published.
    """
    for releases in _listing(store, build_id):
        before = releases.read()
        parts = [part for part in _parts_of(before) if part[0].build_id != build_id]
        if parts:
            _add_release(releases, before, parts)
        else:
            releases.withdraw(f"its only build, {build_id}, {why}")


def lies_elsewhere(store: Store, build_id: str, folder: str) -> bool:
    """True if a newest release lists a build in another folder of shards: it was published there since."""
    listed = (own for releases in _listing(store, build_id) for own in releases.read().builds)
    return any(own.build_id == build_id and place_of(own.folder) != place_of(folder) for own in listed)


def _listing(store: Store, build_id: str) -> Iterator[Releases]:
    """Datasets whose newest release lists a build, by what `latest.json` says: a damaged release of another dataset is
    not read. Raises for a `latest.json` that cannot be read only where the build may be of that dataset."""
    for releases in store.datasets():
        try:
            is_listed = releases.lists(build_id)
        except (StoreError, ContractError):
            if build_id.startswith(f"{releases.dataset}-"):
                raise
            continue
        if is_listed:
            yield releases


def _remaining_ids(store: Store, builds: Sequence[ReleasedBuild]) -> set[str]:
    """Ids of those builds that were not replaced: STORE knows them there, or their manifest is in its place.

    Either suffices, since a takedown withdraws manifests for a while, and a publish may be killed before STORE knows.
    """
    known = defaultdict[str, set[str]](set)
    for entry in store.registered():
        known[entry["build_id"]].add(entry["out"])

    def is_known(build: ReleasedBuild) -> bool:
        outs = known[build.build_id]
        return build.out in outs or place_of(build.out) in map(place_of, outs)

    return {build.build_id for build in builds if is_known(build) or _is_there(build)}


def _is_there(build: ReleasedBuild) -> bool:
    shards = Folder(build.out) / "shards"
    return shards.exists(MANIFEST) and _manifest_of(build.out)[1].build_id == build.build_id


def _as_it_is(part: _Part) -> _Part:
    """A build with the shards that it has now; while it is withdrawn, with those that it had."""
    build, _ = part
    return _released_part(*_manifest_of(build.out), build.snapshot, build.out) if _is_there(build) else part


def rollback(store: Store, dataset: str, number: int) -> Manifest:
    """The next release, of the builds that release `number` had, as they are now.

    Raises StoreError for a missing release, or one with a missing build.
    """
    releases = store.releases(dataset)
    with store.lock():
        earlier = releases.read(number)
        return _add_release(releases, releases.read(), _as_they_are(store, earlier.builds), like=earlier)


def _add_release(
    releases: Releases,
    before: Manifest,
    parts: Sequence[_Part],
    like: Manifest | None = None,
    specs: Mapping[str, BuildSpec] | None = None,
) -> Manifest:
    """Make the release after `before` the newest. like: a release of the same builds; `before` if none is given."""
    like = like or before
    release = _composed(before.dataset, like.generation, before, parts, like, like.images)
    newest = release.builds[-1]
    spec = (specs or {}).get(newest.build_id) or spec_of(newest.out)
    releases.make_newest(releases.prepare(release, functools.partial(card.release_files, spec)))
    return release


def spec_of(out: str) -> BuildSpec:
    """The spec of a build of a release. Raises StoreError."""
    folder = Folder(out)
    try:
        return BuildSpec.model_validate(folder.read_json("build.json")["spec"])
    except (KeyError, TypeError, ValueError):
        why = "contains no readable spec, but a release needs it; restore the file"
        raise StoreError(folder.at("build.json"), why) from None


def _as_they_are(store: Store, builds: Sequence[ReleasedBuild]) -> list[_Part]:
    """Builds with the shards that they have now. Raises StoreError if one is not in its folder."""
    if lines := unreachable(store, builds):
        raise StoreError(builds[0].build_id, f"its release lists {_and(lines)}")
    parts = [_released_part(*_manifest_of(build.out), build.snapshot, build.out) for build in builds]
    for build, (now, _) in zip(builds, parts, strict=True):
        if now.build_id != build.build_id:
            raise StoreError(build.out, f"contains {now.build_id} instead of {build.build_id}, which the release needs")
    return parts


def _other_builds(build: Build, before: Manifest | None) -> list[_Part]:
    """The builds that the release after `before` lists beside a build; one of the same snapshot is replaced by it."""
    parts = _parts_of(before) if before is not None and before.generation == build.generation else []
    left = _remaining_ids(build.store, [part[0] for part in parts])
    place = place_of(build.shards.url)
    return [
        part
        for part in parts
        if part[0].build_id in left and part[0].snapshot != build.snapshot and place_of(part[0].folder) != place
    ]


def _with_build(build: Build, before: Manifest | None, manifest: Manifest) -> Manifest:
    """The release after `before` with a build in it: the last, or in the place of one of the same snapshot."""
    own, others = _released_part(build.shards, manifest, build.snapshot, build.out), _other_builds(build, before)
    if build.store.releases(build.spec.name).latest().withdrawn:  # a takedown may have changed what `before` lists
        others = [_as_it_is(part) for part in others]
    ordered = sorted([*others, own], key=lambda part: (part[0].snapshot, part[0].build_id))
    same_images = before is None or not others or before.images == manifest.images
    images = manifest.images if same_images else None
    return _composed(build.spec.name, build.generation, before, ordered, manifest, images)


def _parts_of(release: Manifest) -> list[_Part]:
    shards: dict[str, list[ShardFiles]] = {build.build_id: [] for build in release.builds}
    for shard in release.shards:
        shards[shard.build].append(shard)
    return [(build, shards[build.build_id]) for build in release.builds]


def _manifest_of(out: str) -> tuple[Folder, Manifest]:
    """The shard folder of a published build, and its manifest.

    Raises StoreError if it has none, and ContractError for one that cannot be read.
    """
    folder = Folder(out)
    shards = folder / "shards"
    try:
        manifest = manifest_in(shards)
    except ContractError as e:
        raise ContractError(build_json.damaged(e, out)) from None
    if manifest is None:
        todo = "restore the build, or roll back"
        if folder.exists(build_json.NAME):
            todo = f"run wenlan-data publish {shlex.quote(out)} to recreate it"
        raise StoreError(shards.at(MANIFEST), f"missing, but a release needs it; {todo}")
    return shards, manifest


def _released_part(shards: Folder, manifest: Manifest, snapshot: str, out: str) -> _Part:
    entry = ReleasedBuild(
        build_id=manifest.build_id,
        revision=manifest.revision,
        snapshot=snapshot,
        folder=shards.url,
        out=out,
        spec_digest=manifest.spec_digest,
        content_digest=manifest.content_digest,
        samples=manifest.samples,
    )
    return entry, [shard.model_copy(update={"build": manifest.build_id}) for shard in manifest.shards]


def _composed(
    dataset: str,
    generation: int,
    before: Manifest | None,
    parts: Sequence[_Part],
    newest: Manifest,
    images: StoredImages | None,
) -> Manifest:
    """The release after `before`. newest: the manifest from which it takes what is not listed build by build. images:
    how all of its builds store them, None where they differ."""
    shards = [shard for _, own in parts for shard in own]
    number = before.release + 1 if before is not None else 1
    return Manifest(
        schema_version=SCHEMA_VERSION,
        build_id=f"{dataset}@{number}",
        parent=before.build_id if before is not None else None,
        spec_digest=parts[-1][0].spec_digest,
        content_digest=content_digest(shards),
        created_at=rfc3339(),
        samples=samples_by_split(shards),
        detectors=tuple(d for d in newest.detectors if all(d in shard.regions for shard in shards)),
        shards=tuple(shards),
        accepted=newest.accepted,
        images=images,
        dataset=dataset,
        release=number,
        generation=generation,
        builds=tuple(entry for entry, _ in parts),
    )


def copy(store: Store, dataset: str, target: str, number: int = 0) -> Manifest:
    """Copy a release into a new folder that needs nothing else: a folder of shards per build, manifest and card.

    On one disk the files are hard links, which take no room. The manifest is written last; of a copy that fails nothing
    is left. Raises StoreError for a folder that is not empty, for a file that is missing or was changed since, if
    something is taken down meanwhile, and for a missing release.
    """
    releases, out, takedowns = store.releases(dataset), Folder(target), store.takedowns()
    if why := releases.latest().withdrawn:
        raise StoreError(releases.folder.url, f"withdrawn: {why}")
    release = releases.read(number)
    if lines := unreachable(store, release.builds):
        raise StoreError(f"release {release.release} of {dataset}", f"lists {_and(lines)}")
    if out.names():
        raise StoreError(out.url, "not empty; a copy needs a new folder")
    with out.emptied_on_failure():
        copied = _copied(releases, release, out)
        if store.takedowns() != takedowns:  # what was copied before may hold it
            raise StoreError(out.url, "a takedown happened during the copy; run the same command again")
        out.write(MANIFEST, pretty_manifest(copied))
    return copied


def _copied(releases: Releases, release: Manifest, out: Folder) -> Manifest:
    """Copy all but the manifest, which is returned."""
    for shard in release.shards:
        source, place = Folder(release.folder_of(shard, releases.folder.url)), out / shard.build
        for file in (shard.tar, shard.parquet, *shard.regions.values()):
            if leaves_folder(file.path) or leaves_folder(shard.build):
                raise StoreError(releases.folder.url, f"lists {file.path!r}, which is outside its folder")
            _copy_file(source, place, file)
    spec = spec_of(release.builds[-1].out)
    builds = tuple(build.model_copy(update={"folder": build.build_id, "out": ""}) for build in release.builds)
    copied = release.model_copy(update={"builds": builds})
    for name, data in card.release_files(spec, copied).items():
        out.write(name, data)
    return copied


_MISSING = "missing, but the release lists it; restore it, or copy another release"


def _copy_file(source: Folder, place: Folder, file: FileDigest) -> None:
    """Link or copy one file. Raises StoreError if it is not what the release lists, by its size."""
    if not source.exists(file.path):
        raise StoreError(source.at(file.path), _MISSING)
    with source.local(file.path) as path:
        if path.stat().st_size != file.bytes:
            raise StoreError(
                source.at(file.path), "not the file that the release lists; was something taken down since?"
            )
        if place.is_local and source.is_local:
            target = Path(place.at(file.path))
            target.parent.mkdir(parents=True, exist_ok=True)
            link(path, target)
            return
        with place.making(file.path) as f, path.open("rb") as data:
            shutil.copyfileobj(data, f)
