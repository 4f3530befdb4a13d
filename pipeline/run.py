"""THE PAGE: a spec becomes a build. Read it and you know the system.

    crawl -> extract -> admit -> fetch -> measure -> filter
        -> rank -> lead -> dedup -> screen -> detect -> shard -> report -> (publish)

A stage is one object (`pipeline.store.stage.Stage`), `STAGES` is their order. It is cut into partitions; each runs as
one Ray task, which commits its own record (`pipeline.store`). A stage's fingerprint is made of its version, its token
(its part of the spec and what it reads outside the build) and its inputs' fingerprints: same fingerprint, same result,
so a finished stage is skipped and a killed one goes on with the partitions that have no record. Ray starts only if
there is something to run.

The driver holds partition names and counts, nothing that grows with the rows of a dataset.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from data_specs.build import BuildSpec, SpecError
from data_specs.shard import canonical_json
from pipeline import observe, plugins
from pipeline.cluster import Cluster
from pipeline.errors import StageError
from pipeline.files.folder import Folder
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, Running, StageResult, counts_of
from pipeline.store.identities import Identities
from pipeline.store.partitions import Record
from pipeline.store.stage import Stages
from pipeline.store.store import Store

log = logging.getLogger("wenlan")


Progress = Callable[[str, int, int], None]
"""Called with (stage, partitions done, partitions in all)."""


def open_build(spec: BuildSpec, out: str, store: str = "", snapshot: str = "", stages: Stages = STAGES) -> Build:
    """A build with its fingerprints computed. Touches nothing on disk.

    snapshot: the id of what is crawled; a build goes on with its own, a new one takes today's date (UTC).
    stages: what it consists of.

    Raises SpecError, SourceError (a source that cannot be read at all) and StoreError.
    """
    plugins.check(spec)
    folder = Folder(out)
    known = build_json.read(folder)
    if not snapshot:
        own = known.get("snapshot") if known.get("name") == spec.name else ""  # another dataset's says nothing of ours
        snapshot = own or datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", snapshot):
        raise SpecError([f"--snapshot {snapshot}: letters, digits and . _ - only, since it becomes part of file names"])
    build = Build(
        spec=spec,
        out=folder.url,
        store=Store(Folder(store).url if store else folder.at("store")),
        build_id=f"{spec.name}-{snapshot}-{spec.digest[:8]}",
        snapshot=snapshot,
        stages=stages,
    )
    identities = Identities(build.store)
    read = tuple(known.get("identities", ()))
    if identities.of(build.build_id) and known.get("build_id") == build.build_id:
        # published: what others have published since is no reason to do it again, as long as nothing else has changed
        as_it_is = _fingerprinted(replace(build, identities=read))
        if as_it_is.stage("dedup").finished():
            return as_it_is
    return _fingerprinted(replace(build, identities=identities.before(build)))


def reopen(out: str) -> Build:
    """The build that was begun in a folder, as it was begun. Raises StoreError if there is none."""
    return build_json.reopen(out, STAGES)


def _fingerprinted(build: Build) -> Build:
    for stage in build.stages.values():
        inputs = [build.fingerprints[name] for name in stage.inputs]
        value = [stage.name, stage.version, stage.token(build), inputs]
        fingerprint = hashlib.sha256(canonical_json(value)).hexdigest()
        build = replace(build, fingerprints={**build.fingerprints, stage.name: fingerprint})
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
            names = list(build.stages)
            for name in names[: names.index(until) + 1]:
                with observe.about(stage=name):
                    result = _run_stage(build, name, cluster, progress or (lambda *_: None), crawls)
                    build_json.note(build, result)
                yield result
        finally:
            cluster.close()


def _run_stage(build: Build, name: str, cluster: Cluster, progress: Progress, crawls: bool) -> StageResult:
    stage, directory = build.stages[name], build.stage(name)
    started = time.monotonic()
    if directory.finished():
        return _result(build, name, ran=0, skipped=True, seconds=0.0)
    partitions = stage.partitions(build)
    committed = set(directory.partitions())
    missing = [p for p in partitions if p not in committed]
    if stage.stored is not None and not crawls:
        missing = [p for p in missing if not stage.stored(build, p)]
        if missing:
            why = f"not crawled for snapshot {build.snapshot}, and a crawl cannot visit the past"
            raise StageError(", ".join(missing), why)
    fingerprint = build.fingerprints[name]
    build_json.note(build, running=Running(name, fingerprint, build_json.now(), len(committed), len(partitions)))
    log.info("stage begins", extra={"partitions": len(partitions), "committed": len(committed)})
    progress(name, len(partitions) - len(missing), len(partitions))
    committing = cluster.each(build, name, stage.run, stage.resources(build.spec), missing)
    for done, partition in enumerate(committing, start=1):
        _tell(directory.record(partition))
        progress(name, len(partitions) - len(missing) + done, len(partitions))
    directory.finish(partitions, stage.version)
    result = _result(build, name, len(missing), False, time.monotonic() - started)
    log.info("stage done", extra={"seconds": result.seconds, "funnel": result.funnel})
    return result


def _tell(record: Record) -> None:
    """Log and count a partition that was just committed."""
    with observe.about(partition=record.partition):
        log.info("partition done", extra={"seconds": record.seconds, "counts": record.counts})
        for fate in ("kept", "dropped", "known"):
            observe.count("wenlan_rows", record.counts.get(fate, 0), fate=fate)
        observe.count("wenlan_partitions")
        observe.count("wenlan_partition_seconds", record.seconds)
        observe.count("wenlan_cpu_seconds", record.cpu_seconds)
        observe.count("wenlan_written_bytes", sum(file.bytes for file in record.files.values()))


def _result(build: Build, name: str, ran: int, skipped: bool, seconds: float) -> StageResult:
    records = build.stage(name).records()
    cost = Cost.of(records, build.stages[name].resources(build.spec).get("num_gpus", 0.0))
    return StageResult(name, skipped, len(records), ran, round(seconds, 2), counts_of(records), cost)
