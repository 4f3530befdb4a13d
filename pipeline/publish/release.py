"""Publishes a build as a dataset: checks its gates, commits its identities to STORE and writes the manifest last.

`publish` writes into BUILD/shards/: the dataset card, the shard lists of wids and croissant.json. Then, under STORE's
lock, it commits the build's identities and writes the manifest, which makes it a dataset, and part of the next release
of its dataset (`pipeline.publish.dataset`) in the same step. The order matters. If it is killed between the two, the
next publish finds the identities committed and writes the manifest, and a build that is published in between is
deduplicated against this one. The other way round, there would be a dataset that no later build knows of. Publishing an
unchanged build again changes nothing: same revision, same bytes.

BUILD/releases.json keeps the revisions of a build, because the manifest of an earlier one is removed when shards are
written again.

Limits: this checks the sizes of all shard files; their sha256 was computed while they were written, and `verify` reads
everything again. STORE's lock allows one publisher at a time while identities and manifest are written.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_specs.build import SpecError
from data_specs.shard import (
    MANIFEST,
    SCHEMA_VERSION,
    SPLITS,
    ContractError,
    Manifest,
    ShardFiles,
    StoredImages,
    content_digest,
    pretty_manifest,
)
from pipeline.detectors import detector_ids
from pipeline.errors import DetectorError, GateError, NothingNew, StageError, StoreError
from pipeline.files.folder import Folder
from pipeline.processes import observe
from pipeline.publish import card, dataset
from pipeline.report import gates, page
from pipeline.report.funnel import Funnel, read_funnels
from pipeline.rows.records import rfc3339
from pipeline.store import build_json
from pipeline.store.build import RELEASES, Build, shard_files
from pipeline.store.commits import Record
from pipeline.store.dataset import manifest_in, samples_by_split
from pipeline.store.identities import Identities
from pipeline.store.partitions import remembering

log = logging.getLogger("wenlan")

__all__ = ["publish", "renew", "withdraw"]


def publish(build: Build, accept: Sequence[str] = (), because: str = "", approved: bool = False) -> Manifest:
    """Make a finished build a dataset and return its manifest.

    accept: gates that may fail this once; `because` is the reason, recorded in the manifest. approved: a person asked
    for this publish, which is the approval that `approve: manual` requires.

    Raises GateError (the numbers, top reasons and ten examples; one line each), NothingNew if all gates hold and the
    dataset holds all that was kept already, StageError if shards are not finished, StoreError if one is missing or
    incomplete, and SpecError for an unknown gate or an acceptance without a reason.
    """
    gates.check_acceptance(build.stages, accept, because)
    with build_json.sole_owner(build), observe.about(build_id=build.build_id, stage="publish"):
        try:
            with remembering():
                manifest = _publish(build, accept, because, approved)
        except (GateError, NothingNew):
            _update_report(build)
            raise
        build.delete_working()
        _update_report(build)  # the report was written before: it says now what came of it
    return manifest


def _update_report(build: Build) -> None:
    """Updates the report after a publish; a failure to write it does not undo the publish."""
    try:
        page.update_state(build)
    except StoreError as e:
        log.warning("%s; the report of %s does not show the result of the publish", e, build.build_id)


def _publish(build: Build, accept: Sequence[str], because: str, approved: bool) -> Manifest:
    records = _finished(build)
    manifest = _manifest(build, records, dict.fromkeys(sorted(accept), because))
    try:
        before = manifest_in(build.shards)
    except ContractError as e:
        raise ContractError(build_json.damaged(e, build.out)) from None
    if before is not None and not _is_same_release(before, manifest, accepting=bool(accept)):
        before = None
    if before is None:
        dataset.check(build)
    identities = Identities(build.store)
    identities.check(build)  # before anything is removed; and once more under the lock
    if before is not None:
        manifest = before
        with build.store.lock():
            _check_takedowns(build)  # an expired build is not repeated for a takedown that has not reached it
            identities.publish(build)  # a no-op, unless they were lost
            dataset.include(build, manifest)
            build.store.register(build.out, build.noted, manifest.revision)
        _remember(build, manifest)
    else:
        dataset.check_reachable(build)
        candidates, captures = read_funnels(build)
        nothing_new = (
            not candidates.kept
            and build.earlier_samples > 0
            and not build.store.releases(build.spec.name).lists(build.build_id)
        )
        gates.check(build, candidates, captures, accept, approved or nothing_new)  # then there is nothing to approve
        if nothing_new:
            known = f"all {candidates.known:,} remaining images are already in dataset {build.spec.name}"
            raise NothingNew(build.build_id, f"nothing new: {known}, which has {build.earlier_samples:,} samples")
        manifest = _write(build, manifest, candidates, captures, identities.publish, dataset.publish)
        observe.count("wenlan_releases", dataset=build.spec.name)
    return manifest


def renew(build: Build, accepted: Mapping[str, str]) -> Manifest:
    """Publish the next revision of a build after a takedown; `accepted` is that of its last manifest.

    The release that lists it is the caller's to renew (`pipeline.publish.dataset.renew`), once for all its builds.

    No gate stops it: content that is taken down must not stay in a dataset because too little would remain. The gates
    that fail are named in the manifest. Raises as `publish` does.
    """
    candidates, captures = read_funnels(build)
    judged = gates.judge_build(build, candidates, captures)
    failing = {gate.name: "after a takedown" for gate in judged if not gate.holds}
    manifest = _manifest(build, _finished(build), dict(sorted({**failing, **accepted}.items())))
    before = manifest_in(build.shards)
    if before is not None and _is_same_release(before, manifest, accepting=False):
        return before  # the takedown was in no shard
    identify = Identities(build.store).replace
    return _write(build, manifest, candidates, captures, identify, lambda _, now, commit: commit(pretty_manifest(now)))


def _write(
    build: Build,
    manifest: Manifest,
    candidates: Funnel,
    captures: Funnel,
    identify: Callable[[Build], None],
    make_visible: Callable[[Build, Manifest, Callable[[bytes], None]], object],
) -> Manifest:
    """Write the files beside the shards, the manifest last; `identify` commits the build's identities.

    make_visible: called with the build, its manifest, and what writes the bytes of that to its place.

    Raises StoreError if a shard holds something that was taken down since the build began.
    """
    manifest = _numbered(build, manifest)
    folder = build.shards
    withdraw(folder)
    for name, data in card.files(build, manifest, candidates, captures).items():
        folder.write(name, data)
    with build.store.lock():
        _check_takedowns(build)
        identify(build)
        make_visible(build, manifest, functools.partial(folder.write, MANIFEST))
        build.store.register(build.out, build.noted, manifest.revision)
    _remember(build, manifest)
    return manifest


def withdraw(folder: Folder) -> None:
    """Turn a dataset back into a plain folder of shards, before any of them changes."""
    folder.delete(MANIFEST)


def _check_takedowns(build: Build) -> None:
    """Raise StoreError if a shard holds something that was taken down after the build read the list."""
    takedowns = build.store.takedowns()
    if not takedowns:
        return
    stage, count = build.stage("shard"), 0
    for record in build.packed():
        count += len(takedowns.taken_down_keys(stage.table(record, "parquet", list(takedowns.COLUMNS)).to_pylist()))
    if count:
        again = "" if build.expired else "wenlan-data build again, or "
        raise StoreError(
            build.out,
            f"{count} of its samples were taken down after it started; run {again}"
            f"wenlan-data forget --store {shlex.quote(build.store.url)} {shlex.quote(build.out)}",
        )


def _finished(build: Build) -> list[Record]:
    """Records of all shards, ordered by split and number. Raises StageError, and StoreError for a damaged file."""
    if "shard" not in build.fingerprints or not build.stage("shard").finished():
        raise StageError("shard", f"not finished in {build.out}; run wenlan-data build first")
    stage = build.stage("shard")
    records = build.packed()
    for record in records:
        for suffix in record.files:
            stage.check(record, suffix)
    return sorted(records, key=lambda r: (SPLITS.index(r.info["split"]), r.partition))


def _manifest(build: Build, records: list[Record], accepted: dict[str, str]) -> Manifest:
    """The manifest of a build, before it has a revision."""
    shards = [shard_files(record) for record in records]
    detectors, hides = _detectors(build, shards), build.spec.shards.faces != "keep"
    return Manifest(
        schema_version=SCHEMA_VERSION,
        build_id=build.build_id,
        spec_digest=build.spec.digest,
        content_digest=content_digest(shards),
        created_at=rfc3339(),
        samples=samples_by_split(shards),
        detectors=detectors,
        shards=tuple(shards),
        accepted=accepted,
        images=StoredImages(
            **build.spec.shards.model_dump(include=set(StoredImages.model_fields)),
            faces_blurred=next((name for name in detectors if hides and name.startswith("faces-")), ""),
        ),
    )


def _detectors(build: Build, shards: Sequence[ShardFiles]) -> tuple[str, ...]:
    """Ids of the detectors whose regions the shards have, in the order of the spec.

    Where the file of a detector is gone since, which a takedown must not wait for, by their names in the spec.
    """
    ids = dict.fromkeys(name for shard in shards for name in shard.regions)
    names = [ref.name for ref in build.spec.regions.detectors]
    try:
        order = detector_ids(build.spec)
    except (DetectorError, SpecError):
        order = []
    place = {name: order.index(name) if name in order else names.index(name.rpartition("-")[0]) for name in ids}
    return tuple(sorted(ids, key=place.__getitem__))


def _is_same_release(a: Manifest, b: Manifest, accepting: bool) -> bool:
    """True if two manifests are equal, apart from revision and time.

    The accepted gates are compared only if some are accepted now: the gates are part of the spec's digest, so a build
    that was accepted once, and is unchanged, needs no second approval.
    """
    ignored = {"revision", "parent", "created_at"} | (set() if accepting else {"accepted"})
    return a.model_dump(exclude=ignored) == b.model_dump(exclude=ignored)


def _numbered(build: Build, manifest: Manifest) -> Manifest:
    """The manifest with its revision: 0 for a build's first, otherwise one more than the last, which is its parent."""
    known = [*_releases(build), *build.store.registered()]  # there a publish that was killed before it noted it here
    revisions = [entry["revision"] for entry in known if entry["build_id"] == build.build_id]
    newest = build.store.releases(build.spec.name).newest()
    revisions += [own.revision for own in newest.builds if own.build_id == build.build_id] if newest else []
    if not revisions:
        return manifest
    last = max(revisions)
    return manifest.model_copy(update={"revision": last + 1, "parent": f"{build.build_id}/{last}"})


def _releases(build: Build) -> list[dict[str, Any]]:
    """Entries of releases.json, oldest first: those of earlier specs in the folder, with other build ids, among them.

    Raises StoreError if it is damaged.
    """
    releases = build.folder.find_json(RELEASES, [])
    if not isinstance(releases, list) or not all(isinstance(r, dict) and "build_id" in r for r in releases):
        raise StoreError(build.folder.at(RELEASES), "not a list of releases")
    return releases


def _remember(build: Build, manifest: Manifest) -> None:
    """Add a revision to releases.json, unless it is there already."""
    releases, own = _releases(build), (build.build_id, manifest.revision)
    if any((release["build_id"], release["revision"]) == own for release in releases):
        return
    release = {
        "build_id": manifest.build_id,
        "revision": manifest.revision,
        "created_at": manifest.created_at,
        "content_digest": manifest.content_digest,
        "manifest_sha256": hashlib.sha256(pretty_manifest(manifest)).hexdigest(),
        "samples": manifest.samples,
    }
    build.folder.write_json(RELEASES, [*releases, release])
