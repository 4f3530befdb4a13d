"""Garbage collection: deletes what is no longer needed. `wenlan-data gc --store DIR [--keep N] [--keep-releases N]`.

Always: files that killed attempts left, and what other specs left in the folders of published builds; rows of
STORE/fetched whose bytes are gone; features of another version, which no build asks for; files of STORE that are half
written since a day, as a build may be writing younger ones; what was prepared of what builds kept (STORE/dealt) for
another version, or of what was replaced since.

`--keep N` also expires builds: of each dataset the N newest builds stay whole, older ones keep what cannot be had
again or is what they are for: captures, shards, report, build.json, releases.json. Their other stages go,
and the index that the studio has made of them. Before images go, STORE/fetched learns of newer builds that hold the
same, so that they are not fetched again. Features of images and texts go with the last build that was
scored by their model.

`--keep-releases N` deletes all but the N newest releases of each dataset, and the shards of published builds that no
release needs any more: those of an earlier generation, and those that a rollback has left out. Their captures stay.

Unpublished builds are not touched. Builds in which a command is running or a takedown was interrupted are not either,
and named. A build that cannot be read is named, and nothing goes that it may need: it goes with a later gc.

Limits: what is deleted by hand stays noted in STORE, until `wenlan-data store delete` is told of it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shlex
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from data_specs.shard import ContractError
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.files.folder import Folder, place_of
from pipeline.store import build_json
from pipeline.store.build import STUDIO, Build, Stages
from pipeline.store.identities import DEALT, Identities, is_of_now
from pipeline.store.releases import Releases, file_name
from pipeline.store.store import Store
from pipeline.store.takedowns import UNFINISHED
from pipeline.takedown import known_builds
from pipeline.takedown.page_pictures import store_page_pictures
from pipeline.takedown.rewrite import repoint_images

EXPIRED = "expired.json"
"""In STORE: names of caches of features of builds that were expired."""

ABANDONED_S = 24 * 3600.0
"""No lock tells whether a build is writing to STORE's caches: a piece of STORE/dealt takes it minutes."""


def collect(
    store: Store, stages: Stages, keep: int = 0, dry_run: bool = False, keep_releases: int = 0
) -> dict[str, Any]:
    """Delete garbage, expire all but the `keep` newest builds and delete all but the `keep_releases` newest releases of
    each dataset, with the shards that only these need (0: none).

    stages: what builds consist of. Returns {"deleted": [{"what", "place", "bytes"}], "bytes": their sum, "left": a
    line for each build that is left to the next gc, since something is at work in it, "faults": a line for each build
    that could not be read; what may be needed by one stays}. Raises StoreError.
    """
    store.version()
    deletions, left = Deletions(dry_run), list[str]()
    builds, models, staying = dict[str, list[Build]](), dict[str, set[str]](), set[str]()
    entries = store.known_builds()
    known, faults = known_builds.opened(store, stages, entries)
    there = {place_of(build.out) for build in known}
    unread = {out for out in (entry["out"] for entry in entries) if place_of(out) not in there}
    published = {place_of(entry["out"]) for entry in entries if entry["revision"] is not None}
    for build in (build for build in known if place_of(build.out) in published):
        try:
            build = build_json.as_it_lies(build)
            models[build.out] = _models(build)
            if build.folder.exists(UNFINISHED):  # it needs its stages to go on
                finish = f"a takedown was interrupted there; run wenlan-data forget --store {shlex.quote(store.url)}"
                left.append(f"{build.out}: left to the next gc ({finish})")
                staying |= models[build.out]
            else:
                builds.setdefault(build.spec.name, []).append(build)
        except StoreError as e:
            faults.append(known_builds.left_out(build.out, e))
            unread.add(build.out)
    stay = dict[str, list[Build]]()
    for name, own in builds.items():
        newest = list(dict.fromkeys(build.build_id for build in own))[
            -keep:
        ]  # all for 0; a build may lie in several folders
        stay[name] = [build for build in own if build.build_id in newest]
    going = [build for name, own in builds.items() for build in own if build not in stay[name]]
    expired = _note_expired(store, {model for build in going for model in models[build.out]}, dry_run)
    for name, own in builds.items():
        needed = None
        if keep_releases:
            try:
                needed = _expire_releases(store.releases(name), keep_releases, deletions)
            except (StoreError, ContractError) as e:
                faults.append(known_builds.release_left_out(store.releases(name), e))
        for build in own:
            unneeded = needed is not None and build.build_id not in needed
            try:
                busy = _clean(store, build, stay[name], unneeded, deletions)
            except StoreError as e:
                faults.append(known_builds.left_out(build.out, e))
                unread.add(build.out)
                continue
            if busy:
                left.append(f"{build.out}: left to the next gc ({busy})")
            if busy or build in stay[name]:
                staying |= models[build.out]
    if not unread:
        for name in sorted(expired - staying):  # a build that stays says so itself when it expires
            deletions.delete("features of expired builds", store.folder / "features", name)
        if not dry_run:
            store.folder.delete(EXPIRED)
    _tidy_store(store, deletions, tuple(f"{spelled}/" for out in unread for spelled in (out, place_of(out))))
    freed = sum(one["bytes"] for one in deletions.deleted)
    return {"deleted": deletions.deleted, "bytes": freed, "left": left, "faults": faults}


def _note_expired(store: Store, names: set[str], dry_run: bool) -> set[str]:
    """Caches of features of builds that expire, those of earlier gcs among them. They are noted in STORE before
    anything of their builds is deleted, until they are deleted themselves.

    They wait for builds that cannot be read, whose features they may be too, and may survive a gc that is killed; by
    then the builds themselves no longer say by which models they were scored.
    """
    listed = store.folder.find_json(EXPIRED, [])
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        todo = "delete it and run the same command again; these features are then kept"
        raise StoreError(store.folder.at(EXPIRED), f"not a list of caches; {todo}")
    noted = set(listed)
    if not names <= noted and not dry_run:
        store.folder.write_json(EXPIRED, sorted(noted | names))
    return noted | names


def _clean(store: Store, build: Build, stay: list[Build], unneeded: bool, deletions: Deletions) -> str:
    """Expire a build that does not stay, or delete the leftovers of one that does; nothing while a command runs in it.

    unneeded: whether its shards go too. Returns why nothing was done, "" if it was.
    """
    with contextlib.ExitStack() as held:
        try:
            if not deletions.dry_run:
                held.enter_context(build_json.sole_owner(build))
        except StoreError as e:
            return e.message
        if build in stay:
            _tidy(build, deletions)
        else:
            _expire(store, build, stay, deletions)
        if unneeded:
            deletions.delete("of no release", build.folder, build.stages["shard"].folder)
    return ""


def _models(build: Build) -> set[str]:
    """Caches of the features by which a build's pairs were scored."""
    records = build.stage("curate.score").records() if "curate.score" in build.fingerprints else iter(())
    return {model for record in itertools.islice(records, 1) for model in record.info["models"]}


def _expire_releases(releases: Releases, keep: int, deletions: Deletions) -> set[str] | None:
    """Delete all but the newest releases of a dataset; returns the ids of the builds that these need.

    None for a dataset without a release: which of its builds are needed is not known.
    """
    numbers = releases.numbers()
    if not numbers:
        return None
    needed = {build.build_id for number in numbers[-keep:] for build in releases.read(number).builds}
    for number in numbers[:-keep]:
        for name in (file_name(number), file_name(number).removesuffix(".json")):
            deletions.delete("old release", releases.folder, name)
    return needed


class Deletions:
    """Collects deletions and performs them unless `dry_run`."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.deleted: list[dict[str, Any]] = []

    def delete(self, what: str, folder: Folder, name: str) -> None:
        if not folder.exists(name):
            return
        self.deleted.append({"what": what, "place": folder.at(name), "bytes": size_of(folder.at(name))})
        if not self.dry_run:
            folder.delete(name)


def size_of(url: str) -> int:
    """Bytes that are free without a file, or all files in a folder: those of a file with another name, such as the
    identities that STORE shares with a build, stay."""
    fs, path = fsspec.url_to_fs(url)
    return sum(about["size"] for about in fs.find(path, detail=True).values() if about.get("nlink", 1) == 1)


def _tidy(build: Build, deletions: Deletions) -> None:
    """Delete leftovers in a build that stays."""
    for own in build.all_passes():
        stage, ours = build.stages[own.stage], build.stage_at(own.name, build.fingerprints.get(own.name, ""))
        if stage.fixed_names:
            continue
        named = set[str]()
        for directory in build.history(own.name):
            if stage.network or directory.mark == ours.mark:
                named |= {ref.name for record in directory.records() for ref in record.files.values()}
            else:
                deletions.delete("of another spec", ours.folder, directory.records_name)
        for file in ours.committable():
            if file not in named:
                deletions.delete("left over", ours.folder, file)


def _expire(store: Store, build: Build, others: list[Build], deletions: Deletions) -> None:
    """Delete from an old build the folders of all stages that expire."""
    if not deletions.dry_run:
        _find_elsewhere(store, build, others)
        store_page_pictures(build)
    for stage in build.stages.values():
        if stage.expires:
            deletions.delete("expired", build.folder, stage.folder)
    deletions.delete("expired", build.folder, STUDIO)


def _find_elsewhere(store: Store, build: Build, others: list[Build]) -> None:
    """Point rows of STORE/fetched that lie in a build to a newer build that holds the same image."""
    directories = build.history("fetch")
    if not directories:
        return
    start, place = f"{place_of(directories[0].folder.url)}/", functools.cache(place_of)
    for stage in (other.stage("fetch") for other in others if "fetch" in other.fingerprints):
        for record in stage.records():
            repoint_images(store, stage, record, lambda tar: place(store.resolve_place(tar)).startswith(start))


def _is_abandoned(folder: Folder, name: str) -> bool:
    """True if a file or folder of STORE is half-written, and has not been written to for ABANDONED_S seconds."""
    if not name.startswith(".tmp-") or not folder.is_local:  # what goes to a URL is unfinished elsewhere
        return False
    with contextlib.suppress(FileNotFoundError):  # finished, or taken back, meanwhile
        return time.time() - Path(folder.at(name)).stat().st_mtime > ABANDONED_S
    return False


def _tidy_store(store: Store, deletions: Deletions, unread: tuple[str, ...] = ()) -> None:
    """Delete what STORE itself does not need. unread: folders whose tars may be there, though they are not seen now."""
    caches = [cache.folder for _, cache in store.caches()]
    of_datasets = [releases.folder for releases in store.datasets()]
    own = [store.folder, store.folder / "identity", store.folder / "forgotten"]
    for folder in (*own, *of_datasets, *caches, *(cache / "_index" for cache in caches)):
        for name in folder.names():
            if _is_abandoned(folder, name):
                deletions.delete("left over", folder, name)
    dealt, strays = store.folder / DEALT, Identities(store).strays()
    for stem in dealt.names():
        if stem in strays:
            deletions.delete("pieces of a commit that was replaced", dealt, stem)
            continue
        for name in (dealt / stem).names():
            if _is_abandoned(dealt / stem, name):
                deletions.delete("left over", dealt / stem, name)
            elif not name.startswith(".") and not is_of_now(name):
                deletions.delete("pieces for another version", dealt / stem, name)
    features = store.folder / "features"
    for name in features.names():
        if name.startswith("features-") and name != feature_id():
            deletions.delete("features of another version", features, name)
    missing: dict[str, bool] = defaultdict(bool)

    def is_unread(tar: str) -> bool:  # as it is spelled, or as links lead there
        return bool(unread) and (tar.startswith(unread) or place_of(tar).startswith(unread))

    def lost(rows: pa.Table) -> pa.Array:
        tars = [tar and store.resolve_place(tar) for tar in rows["tar"].to_pylist()]
        for tar in {tar for tar in tars if tar} - set(missing):
            folder, _, name = tar.rpartition("/")
            missing[tar] = not is_unread(tar) and not Folder(folder).exists(name)
        return pa.array([bool(tar) and missing[tar] for tar in tars], pa.bool_())

    if deletions.dry_run:
        return
    rows = store.fetched().forget(lost)
    if rows:
        deletions.deleted.append(
            {
                "what": f"{rows:,} entries of fetched images whose tar was deleted, or rewritten by a takedown",
                "place": store.folder.at("fetched"),
                "bytes": 0,
            }
        )
