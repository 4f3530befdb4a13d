"""Stages and passes: what a build consists of.

    crawl -> extract -> admit -> fetch -> measure -> filter -> dedup -> curate -> detect -> shard -> report

A stage is what a user names, what a line of the funnel counts and what a folder of BUILD holds. How it is done are its
passes: each goes over partitions, reads the records of the passes that it declares, and commits one record per
partition. The last pass of a stage has the stage's name; it writes the stage's decisions and rows. `STAGE.PASS` names
any other.

Each file of `pipeline.stages` ends with one `Stage`; `pipeline.stages.STAGES` is their order. Everything else asks
these objects: the run (reads, partitions, resources), the store (folders), the funnel and the report (Chinese name,
subject), `explain` (how a row is recognised), takedowns and `gc` (what may be deleted). A build carries its stages
(`Build.stages`), so that nothing below `pipeline.stages` imports it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from data_specs.build import BuildSpec
from pipeline.store.commits import DECISIONS

if TYPE_CHECKING:
    from pipeline.store.build import Build

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


def in_funnel(build: Build, first: str = "", last: str = "") -> list[str]:
    """Names of a build's stages that decide on candidates or captures, from `first` to `last`, both inclusive."""
    return [stage.name for stage in _between(build.stages, first, last) if stage.subject and stage.name in build.passes]


def _between(stages: Stages, first: str, last: str) -> Iterator[Stage]:
    names = list(stages)
    start = names.index(first) if first else 0
    end = names.index(last) + 1 if last else len(names)
    yield from (stages[name] for name in names[start:end])
