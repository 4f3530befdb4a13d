"""One build: the location of its stages' results, by the fingerprints that follow from its spec."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import FileDigest, ShardFiles, canonical_json
from pipeline.files.folder import Folder
from pipeline.store.commits import Record
from pipeline.store.partitions import StageDir
from pipeline.store.stage import EVERY, Pass, Stages, passes_of
from pipeline.store.store import Store

STUDIO = "studio"
"""Folder of a build in which the studio keeps what it has prepared."""

RELEASES = "releases.json"
"""File in a build's folder with its revisions."""

REGIONS = "regions/"
"""Beginning of the suffixes of a shard's regions, before the detector's id."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A build that a new generation is made from. identities: its commit in STORE/identity."""

    build_id: str
    snapshot: str
    out: str
    identities: str


def sha256_of(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class Build:
    """One build: its spec, its folder, its STORE, and the fingerprint of each pass. Sent to every Ray task."""

    spec: BuildSpec
    out: str
    store: Store
    build_id: str
    snapshot: str
    fingerprints: dict[str, str] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    """Commits that it is deduplicated against: names in STORE/identity, as they were when the build was opened."""
    forgotten: str = ""
    """Digest of the takedowns that it began with, where later ones were carried out in it since; else ""."""
    generation: int = 1
    """Generation of its dataset, whose releases it continues."""
    made_from: tuple[Earlier, ...] = ()
    """For a build that begins a generation: the builds of the release that it remakes, oldest first."""
    tokens: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """sha256 of each pass's token, as its fingerprint was made of it; none in a trial and a build that is reopened."""
    on: Build | None = None
    """For a trial: the build whose finished stages and images it reads, and never writes to."""
    stages: Stages = field(default_factory=dict, repr=False, compare=False)
    """Stages in order (`pipeline.stages.STAGES`)."""

    def is_token(self, name: str, token: Any) -> bool:
        """True if a pass's fingerprint was made of this token; True where the token is unknown."""
        return self.tokens.get(name) in (None, sha256_of(token))

    @property
    def folder(self) -> Folder:
        return Folder(self.out)

    @functools.cached_property
    def passes(self) -> dict[str, Pass]:
        """The passes that its spec asks for, by name and in their order."""
        return passes_of(self.stages, self.spec)

    def lasting_passes(self) -> list[str]:
        """Names of the passes that have begun and whose files stay when the build is published."""
        return [name for name, own in self.passes.items() if name in self.fingerprints and not own.working]

    def all_passes(self) -> Iterator[Pass]:
        """The passes of all stages, whether its spec asks for them or not: another spec in its folder may have."""
        return (own for stage in self.stages.values() for own in stage.passes)

    def reads(self, name: str) -> tuple[str, ...]:
        """Names of the passes of this build that a pass reads."""
        names = list(self.passes)
        if self.passes[name].reads == EVERY:
            return tuple(names[: names.index(name)])
        return tuple(other for other in self.passes[name].reads if other in self.passes)

    def stage(self, name: str) -> StageDir:
        """Folder of a pass, or of a stage's last one, at this build's fingerprint; of what a trial has not changed,
        that of the build it is on, which no longer has what working passes wrote."""
        same = self.on is not None and self.on.fingerprints.get(name) == self.fingerprints[name]
        if self.on is not None and same and not self.passes[name].working:
            return self.on.stage(name)
        return self.stage_at(name, self.fingerprints[name])

    def stage_at(self, name: str, fingerprint: str) -> StageDir:
        """Folder of a pass at any fingerprint."""
        stage = self.stages[name.partition(".")[0]]
        return StageDir(self.folder / stage.folder_of(name), name, fingerprint)

    @property
    def asks(self) -> bool:
        """True if it may send requests to sites. A trial, or what begins a generation, works from what is stored."""
        return not self.made_from and self.on is None and self.spec.egress.network == "allowed"

    @property
    def images_build(self) -> Build | None:
        """The build that has the other images of a trial with its own stage `fetch`; None for other builds."""
        if self.on is not None and self.on.fingerprints["fetch"] != self.fingerprints["fetch"]:
            return self.on
        return None

    def records(self, name: str) -> list[Record]:
        """The records of a pass, or of a stage's last one; empty where it lacks such a pass."""
        return list(self.stage(name).records()) if name in self.fingerprints else []

    def counted(self, name: str, what: str) -> int:
        """The sum of what the records of a pass count under a name."""
        records = self.stage(name).records() if name in self.fingerprints else ()
        return sum(record.counts.get(what, 0) for record in records)

    def history(self, name: str) -> list[StageDir]:
        """Folder of a pass at each fingerprint that has committed something there, this build's or not."""
        return self.stage_at(name, "").of_all_fingerprints()

    def delete_working(self) -> None:
        """Deletes the files of working passes, at every fingerprint. What they reduced to stays, for the report."""
        for own in (own for own in self.all_passes() if own.working):
            for directory in self.history(own.name):
                directory.delete_records()
            self.stage_at(own.name, "").sweep()

    def tables(self, name: str, suffix: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """One file of every partition of a pass, whichever spec of the build made it; None: all columns."""
        for stage in self.history(name):
            for record in stage.records():
                if suffix in record.files:
                    yield stage.table(record, suffix, columns)

    @property
    def earlier_samples(self) -> int:
        """Number of samples that its dataset holds already, in the newest release of the same generation."""
        known = {entry["build_id"] for entry in self.store.registered()}
        return self.store.releases(self.spec.name).other_samples(self.generation, self.snapshot, known)

    @property
    def shards(self) -> Folder:
        """The folder of the shards: a dataset, once there is a manifest in it."""
        return self.folder / self.stages["shard"].folder

    def packed(self) -> list[Record]:
        """Records of the shards that hold a sample: after a takedown a shard may have nothing but its decisions."""
        return [record for record in self.records("shard") if "tar" in record.files]

    @property
    def expired(self) -> bool:
        """True if its shards are there, and all that the stages before them wrote was deleted (`gc --keep`)."""
        done = "shard" in self.fingerprints and self.stage("shard").finished()
        return done and not any(
            self.history(name) for name, own in self.passes.items() if self.stages[own.stage].expires
        )

    @functools.cached_property
    def forgotten_revision(self) -> str:
        """Digest of the takedowns that the build reads, as they were when it was first asked for."""
        return self.forgotten or self.store.forgotten_revision()

    @property
    def identity_revision(self) -> str:
        """Digest of the identities that the build reads."""
        return hashlib.sha256(canonical_json(list(self.identities))).hexdigest()[:16]


def shard_files(record: Record) -> ShardFiles:
    """The files of a packed shard, as a manifest lists them."""
    files = {
        suffix: FileDigest(path=ref.name, bytes=ref.bytes, sha256=ref.sha256) for suffix, ref in record.files.items()
    }
    return ShardFiles(
        split=record.info["split"],
        samples=record.counts["kept"],
        tar=files["tar"],
        parquet=files["parquet"],
        regions={name.removeprefix(REGIONS): file for name, file in files.items() if name.startswith(REGIONS)},
    )
