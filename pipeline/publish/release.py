"""A build becomes a dataset: gates, card, manifest last, identities to STORE.

`publish` writes into BUILD/shards/: the shard lists as wids reads them, the dataset card, croissant.json, and Energon's
index if the spec wants it; then, under
STORE's lock, it commits the build's identities and writes the manifest, which makes it a dataset. In this order: killed
between the two, the next publish finds its identities committed and writes the manifest, and whoever publishes in
between is held to what this build keeps. The other way round there would be a dataset that no later build knows of.
Publishing what is published already, and unchanged, changes nothing: same revision, same bytes.

BUILD/releases.json keeps the revisions of a build, since the manifest of an earlier one is removed when shards are
written anew.

Limits: sizes of all shard files are checked here, their sha256 were taken while they were written; `verify` reads
everything again. One publisher at a time, held by STORE's lock while identities and manifest are written.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_specs.shard import (
    SCHEMA_VERSION,
    SPLITS,
    FileDigest,
    Manifest,
    ShardFiles,
    StoredImages,
    canonical_json,
    content_digest,
    parse_manifest,
)
from pipeline.detectors import detector_ids
from pipeline.errors import StageError, StoreError
from pipeline.files.folder import Folder
from pipeline.publish import card, energon
from pipeline.report import gates
from pipeline.report.funnel import Funnel, read_funnels
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.store.partitions import Record

__all__ = ["publish", "renew", "withdraw"]


def publish(build: Build, accept: Sequence[str] = (), because: str = "", approved: bool = False) -> Manifest:
    """Make a finished build a dataset and return its manifest.

    accept: gates that may fail this once; `because` says why and goes into the manifest. approved: a person asked for
    this publish, which is what `approve: manual` waits for.

    Raises GateError (the numbers, top reasons and ten examples; one line each), StageError if shards are not finished,
    StoreError if one is missing or not whole, and SpecError for an unknown gate or an acceptance without a reason.
    """
    gates.check_acceptance(build.stages, accept, because)
    records = _finished(build)
    identities = Identities(build.store)
    identities.check(build)  # before anything is taken away; and once more under the lock
    manifest, before = _manifest(build, records, dict.fromkeys(sorted(accept), because)), _published(build)
    if before is not None and _same(before, manifest, accepting=bool(accept)):
        manifest = before
        with build.store.lock():
            identities.publish(build)  # a no-op, unless they were lost
        _remember(build, manifest)
    else:
        candidates, captures = read_funnels(build)
        gates.hold(build, candidates, captures, accept, approved)
        manifest = _write(build, manifest, candidates, captures, identities.publish)
    return manifest


def renew(build: Build, accepted: Mapping[str, str]) -> Manifest:
    """The next revision of a published build out of which something was taken; `accepted` as its manifest had it.

    No gate holds it back: what is taken down must not stay in a dataset because too little is left. Those that do not
    hold are named in the manifest. Raises as `publish` does.
    """
    candidates, captures = read_funnels(build)
    failing = {
        g.name: "after a takedown" for g in gates.judge(build.spec, build.stages, candidates, captures) if not g.holds
    }
    manifest = _manifest(build, _finished(build), dict(sorted({**failing, **accepted}.items())))
    before = _published(build)
    if before is not None and _same(before, manifest, accepting=False):
        return before  # nothing of it was in a shard
    return _write(build, manifest, candidates, captures, Identities(build.store).replace)


def _write(
    build: Build, manifest: Manifest, candidates: Funnel, captures: Funnel, identify: Callable[[Build], None]
) -> Manifest:
    """Write what lies beside the shards, the manifest last. Raises StoreError for what was taken down since."""
    manifest = _numbered(build, manifest)
    folder = build.folder / "shards"
    withdraw(folder)
    if build.spec.shards.energon:
        energon.write(folder, manifest)
    for name, data in card.files(build, manifest, candidates, captures).items():
        folder.write(name, data)
    with build.store.lock():
        _hold_takedowns(build)
        identify(build)
        if build.spec.shards.energon:
            energon.complete(folder, manifest)
        folder.write("manifest.json", _pretty(manifest))
        build.store.register(build, manifest.revision)
    _remember(build, manifest)
    return manifest


def withdraw(folder: Folder) -> None:
    """Make a shard folder no dataset, before anything of it changes: the manifest goes first, then Energon's index."""
    folder.delete("manifest.json")
    energon.withdraw(folder)


def _hold_takedowns(build: Build) -> None:
    """Raise StoreError if a shard holds something that was taken down after the build had read the list."""
    takedowns = build.store.takedowns()
    if not takedowns:
        return
    stage, count = build.stage("shard"), 0
    for record in build.packed():
        count += len(takedowns.among(stage.table(record, "parquet", list(takedowns.COLUMNS))))
    if count:
        raise StoreError(
            build.out,
            f"{count} of its samples were taken down since it began; run wenlan-data build again, or "
            f"wenlan-data forget --store {build.store.url} {build.out}",
        )


def _finished(build: Build) -> list[Record]:
    """Records of all shards, in order of split and number, with the sizes of their files checked."""
    if "shard" not in build.fingerprints or not build.stage("shard").finished():
        raise StageError("shard", f"is not finished in {build.out}; run wenlan-data build first")
    stage = build.stage("shard")
    records = build.packed()
    for record in records:
        for suffix in record.files:
            with stage.file(record, suffix):
                pass
    return sorted(records, key=lambda r: (SPLITS.index(r.info["split"]), r.partition))


def _manifest(build: Build, records: list[Record], accepted: dict[str, str]) -> Manifest:
    """The manifest as it follows from the build, before it has a revision."""
    detectors = detector_ids(build.spec)
    shards = [
        ShardFiles(
            split=record.info["split"],
            samples=record.counts["kept"],
            tar=_digest(record, "tar"),
            parquet=_digest(record, "parquet"),
            regions={detector: _digest(record, f"regions/{detector}") for detector in detectors},
        )
        for record in records
    ]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        build_id=build.build_id,
        spec_digest=build.spec.digest,
        content_digest=content_digest(shards),
        created_at=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        samples={split: sum(shard.samples for shard in shards if shard.split == split) for split in SPLITS},
        detectors=tuple(detectors),
        shards=tuple(shards),
        accepted=accepted,
        images=StoredImages(**build.spec.shards.model_dump(include=set(StoredImages.model_fields))),
    )


def _digest(record: Record, suffix: str) -> FileDigest:
    ref = record.files[suffix]
    return FileDigest(path=ref.name, bytes=ref.bytes, sha256=ref.sha256)


def _published(build: Build) -> Manifest | None:
    folder = build.folder / "shards"
    if not folder.exists("manifest.json"):
        return None
    return parse_manifest(folder.read("manifest.json"), folder.at("manifest.json"))


def _same(a: Manifest, b: Manifest, accepting: bool) -> bool:
    """Whether two manifests say the same, whenever they were written and whatever revision they are.

    What was accepted counts only if something is accepted now: the gates are part of the spec's digest, so a build that
    was let through once, and is unchanged, needs no second word.
    """
    leave = {"revision", "parent", "created_at"} | (set() if accepting else {"accepted"})
    return a.model_dump(exclude=leave) == b.model_dump(exclude=leave)


def _numbered(build: Build, manifest: Manifest) -> Manifest:
    """The manifest with its revision: 0 for a build's first, one more than the last otherwise, which is its parent."""
    releases = _releases(build)
    if not releases:
        return manifest
    last = releases[-1]["revision"]
    return manifest.model_copy(update={"revision": last + 1, "parent": f"{build.build_id}/{last}"})


def _all_releases(build: Build) -> list[dict[str, Any]]:
    known = build.folder.read_json("releases.json") if build.folder.exists("releases.json") else []
    if not isinstance(known, list) or not all(isinstance(release, dict) and "build_id" in release for release in known):
        raise StoreError(build.folder.at("releases.json"), "is not a list of releases")
    return known


def _releases(build: Build) -> list[dict[str, Any]]:
    """Releases of this build, oldest first; a folder may hold those of an earlier spec too, which do not count."""
    return [release for release in _all_releases(build) if release["build_id"] == build.build_id]


def _remember(build: Build, manifest: Manifest) -> None:
    if any(release["revision"] == manifest.revision for release in _releases(build)):
        return
    release = {
        "build_id": manifest.build_id,
        "revision": manifest.revision,
        "created_at": manifest.created_at,
        "content_digest": manifest.content_digest,
        "manifest_sha256": hashlib.sha256(_pretty(manifest)).hexdigest(),
        "samples": manifest.samples,
    }
    build.folder.write_json("releases.json", [*_all_releases(build), release])


def _pretty(manifest: Manifest) -> bytes:
    """The manifest's bytes: canonical values, one shard a line, so that two releases can be compared by eye."""
    raw = manifest.model_dump(mode="json")
    shards = ",\n  ".join(canonical_json(shard).decode() for shard in raw.pop("shards"))
    head = json.dumps(raw, indent=1, ensure_ascii=False, sort_keys=True)
    return f'{head.removesuffix("}").rstrip()},\n "shards": [\n  {shards}\n ]\n}}\n'.encode()
