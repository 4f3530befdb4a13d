"""A stage: one step of a build, and all that is known of it.

    crawl -> extract -> gather -> admit -> fetch -> measure -> filter -> signatures -> copies -> edges -> leaders
        -> dedup -> screen -> marks -> watermark -> score -> choose -> vectors -> nearest -> semantic_dedup
        -> concepts -> balance -> detect -> shard -> tally -> report

Each file of `pipeline/stages/` ends with one `Stage`; `pipeline.stages.STAGES` is the order. Everything else asks the
object: the run (inputs, partitions, resources), the store (folder), the funnel and the report (Chinese name, what
drops), `explain` (how a row is recognised), takedowns (how rows are removed), `gc` (what may be deleted). So a stage is
added by one file and one line.

A build carries its stages (`Build.stages`), so that what lies below `pipeline.stages` needs no import of it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_specs.build import BuildSpec
from pipeline.store.partitions import DECISIONS, Record

if TYPE_CHECKING:
    from pipeline.store.build import Build
    from pipeline.store.rewrite import Removal, Rewrite


@dataclass(frozen=True, slots=True)
class StageFile:
    """A kind of file that a stage commits for a partition.

    suffix: as in the partition's record, a pattern as `fnmatch` takes it. schema: of a Parquet file with one fixed
    schema. row_key: the column by which a row belongs to a candidate or an image; "" for a file that `explain` does not
    look into.
    """

    suffix: str
    schema: pa.Schema | None = None
    row_key: str = ""


def one_cpu(spec: BuildSpec) -> dict[str, float]:
    """Default resources of a partition, as options of a Ray task."""
    return {"num_cpus": 1.0}


def remove_rows(rewrite: Rewrite) -> None:
    """Default takedown: removes rows from the tables of a partition."""
    rewrite.remove_rows()


def nothing_moved(build: Build, before: Record, after: Record) -> None:
    """Default: nothing in STORE points into the stage's files."""


def no_state(build: Build, removal: Removal) -> None:
    """Default: the stage keeps nothing beside its committed files."""


@dataclass(frozen=True)
class Stage:
    """One stage. `token` and `resources` are pure functions.

    name, zh: as specs, records and reports call it. folder: where it writes, within BUILD. inputs: stages it reads.

    version: raised when the same input gives another output. Never raised for crawl and fetch by a mere code change.
    token(build): JSON value of its part of the spec, the versions of its plug-ins, and what it reads outside the build.
    partitions(build): names of its partitions, once its inputs are finished. That of `shard` also clears its folder for
    a new fingerprint, so only the driver calls it.
    run(build, partition): does one partition and commits it.
    resources(spec): what a partition asks of the cluster, as options of a Ray task.
    files: what it commits for a partition, beside its decisions.

    subject: what it decides on: "candidate", "capture", or "" for a stage that drops nothing itself.
    came_later: builds of specs that do not ask for it have no row of it in their funnels, as before there was one.
    max_drop: the share that it may drop of a source, 0 to 1, where the spec's table of gates does not name it.

    fixed_partitions: how many partitions it has does not grow with the candidates (`plan --estimate`).

    unit, done: for people, what its progress is counted in, and the counts of a record whose sum that is.
    network: its results cost requests to other servers, so `gc` keeps those of other specs.
    fixed_names: its files have names that two fingerprints share, so they are neither swept nor rewritten in place.
    expires: `gc --keep` deletes its folder from expired builds.
    rewrites_others: whether a takedown rewrites the partitions that other specs committed. If not, they are deleted:
    they cost no network, and follow from all rows together.
    without(rewrite): removes from one committed partition what a takedown names.
    stored(build, partition): for a stage that reads what changes outside: whether it has a result of the partition
    under another fingerprint, which is then adopted. `build --no-crawl` runs no partition without one.
    moved(build, before, after): tells STORE where files of a rewritten partition lie now.
    forget_state(build, removal): removes it from what the stage keeps beside its committed files.
    """

    name: str
    zh: str
    folder: str
    inputs: tuple[str, ...]
    version: int
    token: Callable[[Build], Any]
    partitions: Callable[[Build], list[str]]
    run: Callable[[Build, str], None]
    resources: Callable[[BuildSpec], dict[str, float]] = one_cpu
    files: tuple[StageFile, ...] = ()
    subject: str = "candidate"
    came_later: bool = False
    max_drop: float | None = None
    fixed_partitions: bool = False
    unit: str = "rows"
    done: tuple[str, ...] = ("seen",)
    network: bool = False
    fixed_names: bool = False
    expires: bool = True
    rewrites_others: bool = True
    stored: Callable[[Build, str], bool] | None = None
    without: Callable[[Rewrite], None] = remove_rows
    moved: Callable[[Build, Record, Record], None] = nothing_moved
    forget_state: Callable[[Build, Removal], None] = no_state

    @property
    def prepares(self) -> bool:
        """Whether it drops nothing itself and only prepares what a later stage decides."""
        return not self.subject

    def file(self, suffix: str) -> StageFile | None:
        """What a committed file is, by its suffix; None for decisions and whatever else is not declared."""
        if suffix == DECISIONS:
            return None
        return next((file for file in self.files if fnmatch.fnmatchcase(suffix, file.suffix)), None)


Stages = Mapping[str, Stage]
"""Stages by name, in the order in which a candidate meets them."""


def deciding(stages: Stages, first: str = "", last: str = "") -> list[str]:
    """Names of the stages that decide on candidates or captures, from `first` to `last`, both inclusive."""
    return [stage.name for stage in _between(stages, first, last) if not stage.prepares]


def in_funnel(build: Build, first: str = "", last: str = "") -> list[str]:
    """`deciding` of a build, without those that came later and have nothing to do in it."""
    later = {name for name, stage in build.stages.items() if stage.came_later}
    busy = {name for name in later if name in build.fingerprints and build.stage(name).records()}
    return [name for name in deciding(build.stages, first, last) if name not in later - busy]


def _between(stages: Stages, first: str, last: str) -> Iterator[Stage]:
    names = list(stages)
    start = names.index(first) if first else 0
    end = names.index(last) + 1 if last else len(names)
    yield from (stages[name] for name in names[start:end])
