"""Takedown: removes content from every build and from STORE, and rejects it in future builds.

In this order, so that a kill at any moment leaves a state that the same command finishes:

    1  what the request means is looked up in all builds (`pipeline.takedown.request`)
    2  STORE/forgotten gets it, as hashes: from now on nothing of it is let in, and no build that holds it is published
    3  BUILD/_forget.json notes what this build loses, until all of it is done; exports in its folder that have samples
       of it are deleted
    4  new shards are written beside the dataset (`pipeline.takedown.rewrite_shards`); then the manifest is withdrawn,
       they take their places, and the next revision is published, which names its parent. Other shards are not touched
    5  rows of the build's tables, captures and images, and files that can be made again, which are deleted
       (`pipeline.takedown.rewrite_partitions`); and its report, which is deleted where it cannot be made again
    6  STORE's identities and caches
    7  the next release of each dataset, which lists the shards as they are now; reports say so
    8  the search indexes that are named (`pipeline.takedown.indexes`)

Builds that STORE knows, all that were begun with it, are done whether they are named or not. One that cannot be read,
or in which another command is at work, is left out and named, and so are those of a dataset whose release cannot be
read; the same command again does them. Without anything named, all that is in STORE/forgotten is removed from the
builds given. A page or a domain is removed with all that was collected from it; a picture that another page shows too
stays.

A build that meets again what was taken down before it began keeps none of it either (`carry_out`).

Limits: one process. A capture goes with any picture on it that goes, and what else the page shows is found again when
that is crawled again. Copies and exports elsewhere are out of reach: the manifest's parent says which revision to
replace. Ids and hashes of what was removed stay in decisions and STORE. Texts that a sample of an expired build took
over from a copy stay: from which is no longer known.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.errors import WenlanError
from data_specs.shard import ContractError, canonical_json
from pipeline.errors import StoreError
from pipeline.publish import dataset, release
from pipeline.report import drift, page
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import rfc3339
from pipeline.store import build_json
from pipeline.store.build import STUDIO, Build
from pipeline.store.commits import DECISIONS
from pipeline.store.dataset import manifest_in
from pipeline.store.identities import IDENTITY_STAGES, Identities, build_of
from pipeline.store.partitions import remembering
from pipeline.store.store import Store
from pipeline.store.takedowns import UNFINISHED, Takedowns
from pipeline.takedown import indexes, known_builds, rewrite_partitions, rewrite_shards
from pipeline.takedown.known_builds import left_out
from pipeline.takedown.removed_content import RemovedContent, find_removed_content
from pipeline.takedown.request import Request, resolve
from pipeline.takedown.rewrite import Removal

__all__ = ["COUNTED", "Request", "forget"]

log = logging.getLogger("wenlan")

COUNTED = ("samples", "candidates", "images", "captures")
"""Counts per build in the answer of `forget`."""


def forget(
    store: Store,
    builds: Sequence[Build],
    request: Request,
    dry_run: bool = False,
    remember: bool = True,
    searched: Sequence[Path] = (),
    faults: list[str] | None = None,
) -> dict[str, Any]:
    """Take down what `request` names, and finish interrupted takedowns.

    Returns {"builds": [what each held, and its new revision], "tombstone": name of the file in STORE/forgotten or "",
    "matched": how many candidates, images and captures of them it names, "known": whether all of it was taken down
    before, "releases": number of the newest release by dataset, "indexes": what each of `searched` lost, "faults": a
    line for each build and dataset that could not be done; the same call again does it}.
    dry_run: says what would be removed and changes nothing. remember: STORE/forgotten gets it, so that it never comes
    in again. faults: lines to which it adds its own, also where it raises. Raises SpecError for an invalid request, and
    SourceError for a picture that cannot be read.
    """
    request.check()
    faults = [] if faults is None else faults
    with contextlib.ExitStack() as locks:
        damaged = known_builds.damaged_releases(store)
        faults += [line for name, line in damaged.items() if name in {build.spec.name for build in builds}]
        builds = [build for build in builds if build.spec.name not in damaged]
        builds = [ready for build in builds if (ready := _prepared(build, locks, dry_run, faults)) is not None]
        with remembering():
            before, (takedowns, losses) = store.takedowns(), _look_up(request, store, builds, searched, faults, dry_run)
        matched = sum(loss.candidates + loss.images + loss.captures for loss in losses)
        found: dict[str, Any] = {
            "matched": matched,
            "known": takedowns.hashes <= before.hashes and takedowns.looks == before.looks,
            "faults": faults,
        }
        if dry_run:
            _add_indexes(found, store, takedowns, searched, dry_run)
            return {"dry_run": True, "builds": [loss.value() for loss in losses], "tombstone": "", **found}
        name = _note_in_store(store, takedowns) if remember else ""
        answers, builds = [], []
        for loss in losses:
            try:
                answers.append(_take_out(loss, takedowns))
                builds.append(loss.build)
            except (WenlanError, OSError) as e:
                faults.append(f"{loss.build.out}: failed ({e}); fix this and run the same command again")
        removed = {h for loss in losses for h in loss.hashes}
        if remember:
            _clean_identities(store, takedowns, removed)
        _clean_caches(store, takedowns, removed)
        for build in builds:
            if _shows(build, removed, takedowns):
                _report_again(build)
        carried_out = (takedowns if remember else before).revision
        for build in builds:
            build_json.note_takedown(build, _read_now(build), carried_out)
            build.folder.delete(UNFINISHED)
        specs = {build.build_id: build.spec for build in builds}
        numbers = _renew(store, specs, damaged, faults)
        for build in builds:
            page.update_state(build)
        _add_indexes(found, store, takedowns, searched, dry_run)
        return {"dry_run": False, "builds": answers, "tombstone": name, **found, "releases": numbers}


def _add_indexes(
    found: dict[str, Any], store: Store, takedowns: Takedowns, searched: Sequence[Path], dry_run: bool
) -> None:
    """Step 8; adds what the indexes lost to the answer, and a fault for each that could not be changed."""
    found["indexes"] = []
    for folder in searched:
        try:
            found["indexes"].append(indexes.remove_from_index(folder, store, takedowns, dry_run))
        except ContractError as e:
            found["faults"].append(str(e))
    found["matched"] += sum(loss["rows"] + loss["texts"] for loss in found["indexes"])


def _prepared(build: Build, locks: contextlib.ExitStack, dry_run: bool, faults: list[str]) -> Build | None:
    """A build whose lock is held, and in which no shards wait; None, and a fault more, if it is not to be had."""
    try:
        if not dry_run:
            locks.enter_context(build_json.sole_owner(build))
    except StoreError as e:
        faults.append(f"{build.out}: was left out ({e.message}); run the same command again when that has finished")
        return None
    try:
        build = build_json.as_it_lies(build)
        if not dry_run:
            _move_staged(build)
    except (StoreError, ContractError) as e:
        faults.append(left_out(build.out, e))
        return None
    return build


def _look_up(
    request: Request, store: Store, builds: Sequence[Build], searched: Sequence[Path], faults: list[str], dry_run: bool
) -> tuple[Takedowns, list[RemovedContent]]:
    """Step 1: all that is taken down, and what each build that can be read holds of it."""
    builds = [build for build in builds if _has_sound_manifest(build, faults)]
    while True:
        try:
            takedowns = resolve(request, store, builds, searched)
            losses = [find_removed_content(build, takedowns, dry_run) for build in builds]
            for loss in losses:  # with what an earlier takedown that was killed had noted
                loss.hashes |= set(loss.build.folder.find_json(UNFINISHED, {"hashes": []})["hashes"])
            return takedowns, losses
        except StoreError as e:
            places = [url for url in (store.url, *(build.out for build in builds)) if e.subject.startswith(f"{url}/")]
            place = max(places, key=len, default=store.url)  # STORE may lie in a build's folder
            if place == store.url:
                raise
            faults.append(left_out(place, e))
            builds = [build for build in builds if build.out != place]


def _has_sound_manifest(build: Build, faults: list[str]) -> bool:
    """True if the manifest of a build can be read, if it has one; else there is a fault more."""
    try:
        manifest_in(build.shards)
    except ContractError as e:
        finish = f"wenlan-data publish {shlex.quote(build.out)}"
        faults.append(left_out(build.out, e, f"if it is damaged, delete it, run the same command again, then {finish}"))
    except StoreError as e:
        faults.append(left_out(build.out, e))
    else:
        return True
    return False


def _renew(store: Store, specs: dict[str, BuildSpec], damaged: Collection[str], faults: list[str]) -> dict[str, int]:
    """Step 7; returns the number of each dataset's newest release. damaged: datasets that are left out."""
    numbers: dict[str, int] = {}
    for releases in (releases for releases in store.datasets() if releases.dataset not in damaged):
        try:
            release = dataset.renew(store, releases.dataset, specs)
        except (StoreError, ContractError) as e:
            faults.append(str(e))
            continue
        if release is not None:
            numbers[release.dataset] = release.release
    return numbers


def _note_in_store(store: Store, takedowns: Takedowns) -> str:
    """Add to STORE/forgotten what is not there yet; returns the name of the file, "" if there was nothing to add."""
    with store.lock():
        before = store.takedowns()
        hashes = sorted(takedowns.hashes - before.hashes)
        looks = [look.value() for look in takedowns.looks if look not in before.looks]
        if not hashes and not looks:
            return ""
        return _write_tombstone(store, {"hashes": hashes, "looks": looks})


def _write_tombstone(store: Store, value: dict[str, Any]) -> str:
    """Add a file to STORE/forgotten; returns its name."""
    value = {"version": 1, "hashes": [], **value}
    name = f"forgotten/{hashlib.sha256(canonical_json(value)).hexdigest()[:16]}.json"
    store.folder.write_json(name, {**value, "made_at": rfc3339()})
    return name


def _take_out(loss: RemovedContent, takedowns: Takedowns) -> dict[str, Any]:
    """Steps 3 to 5 for one build; returns what it held, and its new revision if it has one."""
    build, answer = loss.build, {**loss.value(), "revision": None}
    if not loss.hashes:
        return answer
    now = _state(build)
    marker = build.folder.find_json(UNFINISHED, now)
    if marker.get("of", now["of"]) != now["of"]:  # it was built again since, and that is not published
        marker = now
    noted = set(marker.get("hashes", ()))
    build.folder.write_json(UNFINISHED, {**marker, "hashes": sorted(loss.hashes)})
    for name in loss.exports:
        build.folder.delete(name)
    removal = Removal(loss.hashes, takedowns)
    if "shard" in build.fingerprints and rewrite_shards.stage_shards(build, removal):
        _move_staged(build)
    rewrite_partitions.remove(build, removal, IDENTITY_STAGES)  # what publishing hands to STORE
    if marker["published"]:
        answer["revision"] = release.renew(build, marker["accepted"]).revision
    if noted and noted != loss.hashes:  # column files that a killed takedown has left lack its rows and no others
        rewrite_partitions.remove(build, Removal(noted, takedowns), rewrite_partitions.rewritable(build))
    rewrite_partitions.remove(build, removal, rewrite_partitions.rewritable(build))
    if marker["reported"]:
        _report_again(build)
    build_json.note_counts(build, "shard")
    rewrite_shards.sweep_scratch(build)
    build.folder.delete(STUDIO)
    return answer


def carry_out(build: Build) -> None:
    """Remove from a build in progress what its crawl and its sources have brought back of what was taken down before.

    Rows that no takedown names, but whose picture was refused for its bytes or looks, go too, and STORE notes its URL:
    what a later build finds there goes although it ends before `fetch`. Captures go first: the candidates say which
    pages these are, so that after a kill the same call finishes. The caller holds the lock of the build, of which
    nothing behind `filter` has been made.
    """
    takedowns = build.store.takedowns()
    if not takedowns:
        return
    refused = set[str]()
    for rows in build.tables("fetch", DECISIONS, ["fetch_id", "reason"]):
        refused.update(rows.filter(pc.equal(rows["reason"], DropReason.FORGOTTEN.value))["fetch_id"].to_pylist())
    if new := refused - takedowns.hashes:
        _write_tombstone(build.store, {"found": sorted(new)})
        takedowns = build.store.takedowns()
    loss = find_removed_content(build, takedowns)
    removal, names = Removal(loss.hashes, takedowns), rewrite_partitions.rewritable(build)
    for some in (["crawl"], [name for name in names if name != "crawl"]) if loss.hashes else ():
        rewrite_partitions.remove(build, removal, some)


def _report_again(build: Build) -> None:
    """Make a report again that shows what was taken down; where that cannot be done, delete it.

    It reads models and word lists that the spec names, which may be gone by now: a takedown must not wait for them.
    """
    report = build.passes["report"]
    try:
        for partition in report.over(build):
            report.run(build, partition)
    except WenlanError as e:
        build.stage(report.name).retire(set(), lambda _: set())
        log.warning("%s: report deleted, since it shows taken-down content and cannot be rewritten: %s", build.out, e)


def _shows(build: Build, hashes: set[str], takedowns: Takedowns) -> bool:
    """True if a build's report shows what another build lost: a leader of duplicates, or a host of the dataset."""
    report = drift.read(build.out)
    if report is None or "report" not in build.fingerprints or not build.stage("report").finished():
        return False
    hosts = [row["name"] for part in (report.get("dataset") or {}).get("hosts", {}).values() for row in part]
    return any(
        takedowns.names(row)
        or hashes & {row["id"], row["fetch_id"], row.get("sha256", "")}
        or row.get("sha256", "") in takedowns.hashes
        for row in page.rows(report)
    ) or any(takedowns.host(f"http://{name}/") for name in hosts)


def _state(build: Build) -> dict[str, Any]:
    """State of a build before anything was taken out of it. of: the fingerprint of its shards."""
    state = {"published": False, "accepted": {}, "reported": False, "of": build.fingerprints.get("shard", "")}
    if (manifest := manifest_in(build.shards)) is not None:
        state |= {"published": True, "accepted": manifest.accepted}
    if "report" in build.fingerprints:
        state["reported"] = build.stage("report").finished()
    return state


def _move_staged(build: Build) -> None:
    """Put new shards into their places, with the manifest withdrawn meanwhile; `renew` writes the next one.

    Also those of a takedown that was killed, before anything of the build is read: until their records are written,
    files are not what the old records say.
    """
    if rewrite_shards.staged(build):
        finish = f"wenlan-data forget --store {build.store.url}"
        with build.store.lock():
            dataset.withdraw(build, f"a takedown is rewriting its shards; if none is running, run {finish}")
        release.withdraw(build.shards)
        rewrite_shards.move_staged(build)


def _clean_identities(store: Store, takedowns: Takedowns, hashes: set[str]) -> None:
    """Step 6, for builds whose folders are not accessible: the others have identities of their own files by now."""
    named = pa.array([bytes.fromhex(name) for name in sorted(takedowns.hashes)], pa.binary(32))
    candidates = pa.array([bytes.fromhex(name) for name in sorted(hashes)], pa.binary(32))

    def published(rows: pa.Table) -> Any:
        mask = pc.is_in(rows["candidate_id"], candidates)
        for name in ("fetch_id", "sha256"):
            mask = pc.or_(mask, pc.is_in(rows[name], named))
        return np.array(mask.to_pylist(), np.bool_)

    with store.lock():
        Identities(store).forget(published)


def _clean_caches(store: Store, takedowns: Takedowns, hashes: set[str]) -> None:
    """Step 6, for what all builds share."""
    removal = Removal(hashes | takedowns.hashes, takedowns)

    def removed(rows: pa.Table) -> pa.Array:
        urls = rows["image_url"].to_pylist() if "image_url" in rows.column_names else []
        hosts = pa.array([takedowns.host(url) for url in urls] or [False] * rows.num_rows, pa.bool_())
        return pc.or_(removal.mask(rows), hosts)

    for _, cache in store.caches():
        cache.forget(removed)


def _read_now(build: Build) -> list[str]:
    """Names of the identities that a build reads, of which some may have another name now."""
    identities, before = Identities(build.store), build_json.read(build.folder).get("identities", ())
    present = set(identities.names())
    names = [name if name in present else identities.of(build_of(name)) for name in before]
    return [name for name in names if name]
