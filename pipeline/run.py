"""THE PAGE: a spec becomes a build. Read it and you know the system.

    crawl -> extract -> admit -> fetch -> measure -> filter
        -> rank -> lead -> dedup -> screen -> detect -> shard -> report -> (publish)

A stage is a module with the five names of `Stage`. It is cut into partitions; each runs as one Ray task, which commits
its own record (`pipeline.store`). A stage's fingerprint is made of its VERSION, its token (its part of the spec and
what it reads outside the build) and its inputs' fingerprints: same fingerprint, same result, so a finished stage is
skipped and a killed one goes on with the partitions that have no record. Ray starts only if there is something to run.

The driver holds partition names and counts, nothing that grows with the rows of a dataset.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from data_specs.build import BuildSpec
from data_specs.shard import canonical_json
from pipeline import observe, plugins
from pipeline.cluster import Cluster
from pipeline.errors import StageError
from pipeline.files.folder import Folder
from pipeline.stages import (
    admit,
    crawl,
    dedup,
    detect,
    extract,
    fetch,
    filter,
    lead,
    measure,
    rank,
    report,
    screen,
    shard,
)
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, Running, StageResult
from pipeline.store.identities import Identities
from pipeline.store.partitions import Record
from pipeline.store.store import Store

log = logging.getLogger("wenlan")


class Stage(Protocol):
    """What a stage module has. All of it is pure but `run_partition`, which commits one record."""

    VERSION: int
    """Raised when the same input gives another output. Never raised for crawl and fetch by a mere code change."""
    INPUTS: tuple[str, ...]
    """Stages it reads."""

    def token(self, build: Build) -> Any:
        """JSON value: its part of the spec, versions of its plug-ins, and what it reads outside the build."""

    def partitions(self, build: Build) -> list[str]:
        """Names of its partitions; called when its inputs are finished."""

    def run_partition(self, build: Build, partition: str) -> None:
        """Do one partition and commit it."""


STAGES: dict[str, Stage] = {
    "crawl": crawl,
    "extract": extract,
    "admit": admit,
    "fetch": fetch,
    "measure": measure,
    "filter": filter,
    "rank": rank,
    "lead": lead,
    "dedup": dedup,
    "screen": screen,
    "detect": detect,
    "shard": shard,
    "report": report,
}


Progress = Callable[[str, int, int], None]
"""Called with (stage, partitions done, partitions in all)."""


def open_build(spec: BuildSpec, out: str, store: str = "", snapshot: str = "") -> Build:
    """A build with its fingerprints computed. Touches nothing on disk.

    Snapshot: the id of what is crawled; a build goes on with its own, a new one takes today's date (UTC).
    Raises SpecError, SourceError (a source that cannot be read at all) and StoreError.
    """
    plugins.check(spec)
    folder = Folder(out)
    known = folder.read_json("build.json") if folder.exists("build.json") else {}
    if not snapshot:
        snapshot = known.get("snapshot") or datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    build = Build(
        spec=spec,
        out=folder.url,
        store=Store(Folder(store).url if store else folder.at("store")),
        build_id=f"{spec.name}-{snapshot}-{spec.digest[:8]}",
        snapshot=snapshot,
    )
    identities = Identities(build.store)
    read = tuple(known.get("identities", ()))
    if identities.of(build.build_id) and known.get("build_id") == build.build_id:
        # published: what others have published since is no reason to do it again, as long as nothing else has changed
        as_it_is = _fingerprinted(replace(build, identities=read))
        if as_it_is.stage("dedup").finished():
            return as_it_is
    return _fingerprinted(replace(build, identities=identities.before(build.build_id, spec.name, snapshot)))


def _fingerprinted(build: Build) -> Build:
    for name, stage in STAGES.items():
        inputs = [build.fingerprints[i] for i in stage.INPUTS]
        value = [name, stage.VERSION, stage.token(build), inputs]
        fingerprint = hashlib.sha256(canonical_json(value)).hexdigest()
        build = replace(build, fingerprints={**build.fingerprints, name: fingerprint})
    return build


def run(
    build: Build,
    *,
    until: str = "report",
    crawls: bool = True,
    address: str = "",
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[StageResult]:
    """Run the stages up to `until`, giving each one's result as it ends. The caller publishes.

    crawls: False to work from stored captures only; a site that was not crawled for this snapshot is then an error.
    Raises WenlanError: whatever was committed stays, and the same call goes on from there.
    """
    with build_json.sole_owner(build), observe.about(build_id=build.build_id):
        build.store.check()
        cluster = Cluster(address, workers)
        build_json.note(build)  # the snapshot, from the start: a crawl that is killed before its end goes on tomorrow
        try:
            for name in list(STAGES)[: list(STAGES).index(until) + 1]:
                with observe.about(stage=name):
                    result = _run_stage(build, name, cluster, progress or (lambda *_: None), crawls)
                    build_json.note(build, result)
                yield result
        finally:
            cluster.close()


def _run_stage(build: Build, name: str, cluster: Cluster, progress: Progress, crawls: bool) -> StageResult:
    stage, directory = STAGES[name], build.stage(name)
    started = time.monotonic()
    if directory.finished():
        return _result(build, name, ran=0, skipped=True, seconds=0.0)
    partitions = stage.partitions(build)
    committed = set(directory.partitions())
    missing = [p for p in partitions if p not in committed]
    if name == "crawl" and not crawls:
        missing = [p for p in missing if not crawl.is_stored(build, p)]
        if missing:
            why = f"not crawled for snapshot {build.snapshot}, and a crawl cannot visit the past"
            raise StageError(", ".join(missing), why)
    fingerprint = build.fingerprints[name]
    build_json.note(build, running=Running(name, fingerprint, build_json.now(), len(committed), len(partitions)))
    log.info("stage begins", extra={"partitions": len(partitions), "committed": len(committed)})
    progress(name, len(partitions) - len(missing), len(partitions))
    committing = cluster.each(build, name, stage.run_partition, _resources(build, name), missing)
    for done, partition in enumerate(committing, start=1):
        _tell(directory.record(partition))
        progress(name, len(partitions) - len(missing) + done, len(partitions))
    directory.finish(partitions, stage.VERSION)
    result = _result(build, name, len(missing), False, time.monotonic() - started)
    log.info("stage done", extra={"seconds": result.seconds, "funnel": result.funnel})
    return result


def _tell(record: Record) -> None:
    """Log and count a partition that was just committed."""
    with observe.about(partition=record.partition):
        log.info("partition done", extra={"seconds": record.seconds, "counts": record.counts})
        for fate in ("kept", "dropped"):
            observe.count("wenlan_rows", record.counts.get(fate, 0), fate=fate)
        observe.count("wenlan_partitions")
        observe.count("wenlan_partition_seconds", record.seconds)
        observe.count("wenlan_cpu_seconds", record.cpu_seconds)
        observe.count("wenlan_written_bytes", sum(file.bytes for file in record.files.values()))


def _resources(build: Build, name: str) -> dict[str, float]:
    """What a task of a stage asks of the cluster, as options of a Ray task: one CPU, unless the stage says more."""
    found: dict[str, float] = getattr(STAGES[name], "resources", lambda spec: {"num_cpus": 1.0})(build.spec)
    return found


def _result(build: Build, name: str, ran: int, skipped: bool, seconds: float) -> StageResult:
    records = build.stage(name).records()
    funnel: dict[str, int] = {}
    for record in records:
        for key, value in record.counts.items():
            funnel[key] = funnel.get(key, 0) + value
    cost = Cost.of(records, _resources(build, name).get("num_gpus", 0.0))
    return StageResult(name, skipped, len(records), ran, round(seconds, 2), funnel, cost)
