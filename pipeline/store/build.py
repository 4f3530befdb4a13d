"""Stages, their passes, and the build that consists of them.

    crawl -> extract -> admit -> fetch -> measure -> filter -> dedup -> curate -> detect -> shard -> report

A stage is what a user names, what a line of the funnel counts and what a folder of BUILD holds. How it is done are its
passes: each goes over partitions, reads the records of the passes that it declares, and commits one record per
partition. The last pass of a stage has the stage's name; it writes the stage's decisions and rows. `STAGE.PASS` names
any other.

Each file of `pipeline.stages` ends with one `Stage`; `pipeline.stages.STAGES` is their order. Everything else asks
these objects: the run (reads, partitions, resources), the store (folders), the funnel and the report (Chinese name,
subject), `explain` (how a row is recognised), takedowns and `gc` (what may be deleted). A `Build` carries its stages,
so that nothing below `pipeline.stages` imports it, and the fingerprints that follow from its spec: together they say
where the results of each pass lie.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import FileDigest, ShardFiles, canonical_json
from pipeline.files.folder import Folder
from pipeline.store.commits import DECISIONS, Record
from pipeline.store.partitions import StageDir
from pipeline.store.store import Store

STUDIO = "studio"
"""Folder of a build in which the studio keeps what it has prepared."""

RELEASES = "releases.json"
"""File in a build's folder with its revisions."""

REGIONS = "regions/"
"""Beginning of the suffixes of a shard's regions, before the detector's id."""


ID_COLUMNS = ("candidate_id", "id", "key", "fetch_id", "url", "host", "sha256")
"""Columns by which a takedown recognises a row; the first that a table has decides. url: of a page."""

Kind = Literal[
    "rows",  # a table with one of ID_COLUMNS: loses rows
    "columns",  # row by row those of another pass: loses the same rows
    "captures",  # content that cannot be made again, rewritten by `pipeline.takedown.rewrite_partitions`
    "images",
    "identities",
    "shards",  # by `pipeline.takedown.rewrite_shards`
    "figures",  # names no candidate, page or picture: stays
    "derived",  # everything else: deleted with its record, and made again by the next `build`
    "state",  # of a running pass, beside its committed files: deleted
]
"""Kinds of files, by what a takedown does with them."""


@dataclass(frozen=True, slots=True)
class PassFile:
    """A file that a pass commits for a partition.

    suffix: as in the partition's record, a pattern as `fnmatch` takes it. schema: of a file with one fixed schema.
    row_key: the column by which a row belongs to a candidate or an image; "" for a file that `explain` does not look
    into. aligned: the pass whose rows of the same partition these are row by row; "" for a table of its own. kind:
    where it is not given, what the schema says.
    """

    suffix: str
    schema: pa.Schema | None = None
    row_key: str = ""
    aligned: str = ""
    kind: Kind | None = None

    @property
    def holds(self) -> Kind:
        """Its kind, given or not."""
        return self.kind or ("columns" if self.aligned else "rows" if self.id_column else "derived")

    @property
    def id_column(self) -> str:
        """The column by which a takedown recognises its rows; "" for none."""
        return next((name for name in ID_COLUMNS if self.schema is not None and name in self.schema.names), "")


def one_cpu(spec: BuildSpec) -> dict[str, float]:
    """Default of `Pass.resources`."""
    return {"num_cpus": 1.0}


def always(spec: BuildSpec) -> bool:
    """Default of `Pass.when`: every build has it."""
    return True


def no_partitions(build: Build) -> list[str]:
    """`Pass.over` of a pass that only reduces."""
    return []


def no_run(build: Build, partition: str) -> None:
    """`Pass.run` of a pass that only reduces."""
    raise AssertionError(f"a pass without partitions was asked for {partition}")


def no_preparation(build: Build) -> None:
    """Does nothing: the default of `Pass.begin`."""


EVERY = ("*",)
"""`Pass.reads` of a pass that reads all passes before it."""


@dataclass(frozen=True)
class Pass:
    """One step of a stage over partitions. `over`, `token`, `when` and `resources` are pure functions.

    name: `STAGE.PASS`, or the stage's name for its last pass.
    over(build): names of its partitions, once what it reads is finished.
    reads: passes whose records it opens, in any of its functions; those that a build does not have are left out. A
    pass that opens the records of another one fails (`pipeline.store.partitions.reading`).
    run(build, partition): does one partition and commits it.
    version: raised when the same input gives another output.
    token(build): JSON value of its part of the spec, the versions of its plug-ins, and what it reads outside the build.
    reduce(build): JSON value that the driver makes of the committed partitions, read as `StageDir.reduced`; small.
    when(spec): whether a build of the spec has this pass.
    begin(build): called by the driver before partitions of an unfinished pass run.
    resources(spec): `num_cpus` of a partition's task, and `num_gpus` of each process that runs models for the tasks.
    files: what it commits for a partition, beside its decisions, and what a takedown does with each.
    unit, done: for people, what progress is counted in, and the counts of a record whose sum that is.
    follows: its partitions are those of the pass before it, and the task that does one of these goes on with its own.
    working: its files serve other passes while these run, and nothing else: it runs where one of those is to run, and
    publishing deletes its files. What it reduces to stays.
    stored(build, partition): for a pass that reads what changes outside: whether it has a result of the partition
    under another fingerprint, which is then adopted. `build --no-crawl` runs no partition without one.
    """

    name: str
    over: Callable[[Build], list[str]]
    reads: tuple[str, ...]
    run: Callable[[Build, str], None]
    token: Callable[[Build], Any]
    version: int = 1
    reduce: Callable[[Build], Any] | None = None
    when: Callable[[BuildSpec], bool] = always
    begin: Callable[[Build], None] = no_preparation
    resources: Callable[[BuildSpec], dict[str, float]] = one_cpu
    files: tuple[PassFile, ...] = ()
    unit: str = "rows"
    done: tuple[str, ...] = ("seen",)
    follows: bool = False
    working: bool = False
    stored: Callable[[Build, str], bool] | None = None

    @property
    def stage(self) -> str:
        return self.name.partition(".")[0]

    def file(self, suffix: str) -> PassFile | None:
        """Declaration of a committed file, by its suffix; None for decisions and for files that are not declared."""
        if suffix == DECISIONS:
            return None
        return next((file for file in self.files if fnmatch.fnmatchcase(suffix, file.suffix)), None)


@dataclass(frozen=True)
class Stage:
    """One stage.

    name, zh: as specs, records and reports call it. folder: where it writes, within BUILD; passes but the last one
    have a folder `_PASS` in it. passes: in their order.

    subject: what it decides on: "candidate", "capture", or "" for a stage that drops nothing.
    max_drop: the share that it may drop of a source, 0 to 1, where the spec's table of gates does not name it.
    network: its results cost requests to other servers, so `gc` keeps those of other specs.
    fixed_names: its files have names that two fingerprints share, so they are neither swept nor rewritten in place.
    expires: `gc --keep` deletes its folder from expired builds.
    """

    name: str
    zh: str
    folder: str
    passes: tuple[Pass, ...]
    subject: str = "candidate"
    max_drop: float | None = None
    network: bool = False
    fixed_names: bool = False
    expires: bool = True

    def __post_init__(self) -> None:
        assert self.passes[-1].name == self.name, f"the last pass of {self.name} has another name"
        assert all(own.stage == self.name for own in self.passes), f"a pass of {self.name} belongs elsewhere"

    def folder_of(self, name: str) -> str:
        """Folder of one of its passes, within BUILD."""
        return self.folder if name == self.name else f"{self.folder}/_{name.partition('.')[2]}"

    @property
    def main(self) -> Pass:
        """The pass that writes the stage's decisions and rows."""
        return self.passes[-1]


Stages = Mapping[str, Stage]
"""Stages by name, in the order in which a candidate meets them."""


def passes_of(stages: Stages, spec: BuildSpec) -> dict[str, Pass]:
    """The passes that a build of a spec has, by name and in their order."""
    return {own.name: own for stage in stages.values() for own in stage.passes if own.when(spec)}


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
    on: Build | None = None
    """For a trial: the build whose finished stages and images it reads, and never writes to."""
    stages: Stages = field(default_factory=dict, repr=False, compare=False)
    """Stages in order (`pipeline.stages.STAGES`)."""

    @property
    def noted(self) -> dict[str, str]:
        """Identity of the build, which STORE notes beside its folder."""
        return {"build_id": self.build_id, "name": self.spec.name, "snapshot": self.snapshot}

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


def in_funnel(build: Build, first: str = "", last: str = "") -> list[str]:
    """Names of a build's stages that decide on candidates or captures, from `first` to `last`, both inclusive."""
    names = list(build.stages)
    between = names[names.index(first) if first else 0 : names.index(last) + 1 if last else len(names)]
    return [name for name in between if build.stages[name].subject and name in build.passes]
