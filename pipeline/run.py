"""THE PAGE: a spec becomes a build. Read it and you know the system.

    crawl -> extract -> gather -> admit -> fetch -> measure -> filter -> signatures -> copies -> edges -> leaders
        -> dedup -> screen -> marks -> watermark -> score -> choose -> vectors -> nearest -> semantic_dedup
        -> concepts -> balance -> detect -> shard -> tally -> report -> (publish)

A stage is one object (`pipeline.store.stage.Stage`), `STAGES` is their order. It is cut into partitions; each runs as
one Ray task, which commits its own record (`pipeline.store`). A stage's fingerprint is made of its version, its token
(its part of the spec and what it reads outside the build) and its inputs' fingerprints: same fingerprint, same result,
so a finished stage is skipped and a killed one goes on with the partitions that have no record. Ray starts only if
there is something to run.

The driver holds partition names and counts, nothing that grows with the rows of a dataset.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from data_specs.build import BuildSpec, SpecError
from pipeline import observe, plugins
from pipeline.cluster import Cluster, Here
from pipeline.errors import StageError, StoreError
from pipeline.files.folder import Folder
from pipeline.sources import sources_of
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build, Earlier, sha256_of
from pipeline.store.build_json import Bounds, Cost, Running, StageResult
from pipeline.store.identities import Identities
from pipeline.store.partitions import Record
from pipeline.store.progress import Progress, Silent, Watch, counts_of
from pipeline.store.stage import Stage, Stages
from pipeline.store.store import Store

log = logging.getLogger("wenlan")


def open_build(
    spec: BuildSpec,
    out: str,
    store: str = "",
    snapshot: str = "",
    stages: Stages = STAGES,
    new_generation: bool = False,
) -> Build:
    """A build with its fingerprints computed. Touches nothing on disk.

    snapshot: the id of what is crawled; a build goes on with its own, a new one takes today's date (UTC).
    stages: what it consists of.
    new_generation: make the whole dataset anew, from what its newest release was made from. A build that has begun a
    generation goes on with it in any case, and any other build continues that of the newest release.

    Raises SpecError, SourceError (a source that cannot be read at all) and StoreError.
    """
    plugins.check(spec)
    folder = Folder(out)
    known = build_json.read(folder)
    shared = Store(Folder(store).url if store else folder.at("store"))
    generation, made_from = _generation(spec.name, shared, folder, known, new_generation)
    if not snapshot:
        own = known.get("snapshot") if known.get("name") == spec.name else ""  # another dataset's says nothing of ours
        snapshot = own or datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", snapshot):
        raise SpecError([f"--snapshot {snapshot}: letters, digits and . _ - only, since it becomes part of file names"])
    if made_from and not snapshot.endswith(f"-g{generation}"):  # that of a build which crawls is never in its place
        snapshot = f"{snapshot}-g{generation}"
    build = Build(
        spec=spec,
        out=folder.url,
        store=shared,
        build_id=_build_id(spec, snapshot, generation),
        snapshot=snapshot,
        generation=generation,
        made_from=made_from,
        stages=stages,
    )
    identities = Identities(shared)
    was = replace(build, **build_json.reads_of(known))
    was = replace(was, build_id=_build_id(spec, snapshot, was.generation))
    if known.get("build_id") == was.build_id and identities.of(was.build_id):
        # published: what others have published since is no reason to do it again, as long as nothing else has changed
        as_it_is = _fingerprinted(was)
        noted = {name: known["stages"][name]["fingerprint"] for name in stages if name in known["stages"]}
        if (begun := replace(was, fingerprints=as_it_is.fingerprints | noted)).expired:
            return begun  # a takedown may have changed the others since; nothing is there to do it again from
        seen = identities.is_released(was) or set(identities.before(was)) <= set(was.identities)
        if seen and as_it_is.stage("dedup").finished():
            return as_it_is
        if seen and (left := _left_by_takedowns(was, known)) is not None:
            return left
    return _fingerprinted(replace(build, identities=identities.before(build)))


def _left_by_takedowns(was: Build, known: Mapping[str, Any]) -> Build | None:
    """A published build as takedowns have left it, if nothing else has changed since it began, and no other one is due.

    Its stages have the fingerprints that they began with: what was taken down is out of their files.
    """
    done = known.get("taken_down")
    if not done or done["carried_out"] != was.store.forgotten_revision():
        return None
    began = replace(was, forgotten=done["forgotten_revision"], identities=tuple(done["identities"]))
    left = replace(_fingerprinted(began), identities=was.identities)
    return left if left.stage("shard").finished() else None


def _build_id(spec: BuildSpec, snapshot: str, generation: int) -> str:
    """A build's id: unlike that of a build of the same snapshot in another generation."""
    suffix = f"-g{generation}" if generation > 1 and not snapshot.endswith(f"-g{generation}") else ""
    return f"{spec.name}-{snapshot}-{spec.digest[:8]}{suffix}"


def _generation(
    dataset: str, store: Store, folder: Folder, known: Mapping[str, Any], begins: bool
) -> tuple[int, tuple[Earlier, ...]]:
    """The generation of the build in a folder, and what it makes anew if it begins it. Raises StoreError."""
    releases = store.releases(dataset)
    current = releases.latest().current
    begun = build_json.reads_of(known)["made_from"]
    if not begins and not begun:
        return current.generation if current is not None else 1, ()
    if known and not begun:
        what = f"holds build {known['build_id']} of generation {known.get('generation', 1)}"
        raise StoreError(folder.url, f"{what}; a new generation needs another folder")
    if current is None:
        raise StoreError(store.url, f"dataset {dataset} has no release that could be made anew; build without it first")
    if begun and not {own.build_id for own in begun} & {own.build_id for own in current.builds}:
        return known["generation"], begun  # published, or the dataset is of another generation now: `publish` says so
    generation = known["generation"] if begun else releases.last_generation() + 1
    identities = Identities(store)
    builds = releases.read().builds
    return generation, tuple(Earlier(b.build_id, b.snapshot, b.out, identities.of(b.build_id)) for b in builds)


COMPARED = "balance"
"""The last stage of a trial: what it keeps would be packed."""


def open_trial(spec: BuildSpec, on: Build, out: str) -> Build:
    """A trial of a spec: the build `on` as this spec would have made it, in a scratch folder, up to stage COMPARED.

    Stages whose part of the spec is the same are those of `on`; the others run in `out`, without a request to anybody.
    Touches nothing on disk. Raises SpecError where the spec asks for other pages or images, and StageError where `on`
    is not finished.
    """
    plugins.check(spec)
    changed = [name for name in ("egress", "fetch", "seed") if getattr(spec, name) != getattr(on.spec, name)]
    if [own.identity() for own in sources_of(spec)] != [own.identity() for own in sources_of(on.spec)]:
        changed.insert(0, "sources")
    if changed:
        raise SpecError([f"{name}: differs from that of {on.build_id}; try cannot crawl or fetch" for name in changed])
    names = list(on.stages)
    names = names[: names.index(COMPARED) + 1]
    unfinished = [name for name in names if name not in on.fingerprints or not on.stage(name).finished()]
    if unfinished:
        raise StageError(unfinished[0], f"is not finished in {on.out}; run wenlan-data build first")
    on = replace(on, fingerprints={name: on.fingerprints[name] for name in names})
    trial = replace(on, spec=spec, out=Folder(out).url, on=on)
    mine = theirs = {name: on.fingerprints[name] for name in ("crawl", "extract")}  # of sources as they were
    for name in (name for name in names if name not in mine):
        stage = on.stages[name]
        theirs = {**theirs, name: _fingerprint(stage, replace(on, fingerprints=theirs))[0]}
        mine = {**mine, name: _fingerprint(stage, replace(trial, fingerprints=mine, on=None))[0]}
    same = {name for name in names if mine[name] == theirs[name]}
    fingerprints = {name: on.fingerprints[name] if name in same else mine[name] for name in names}
    return replace(trial, fingerprints=fingerprints, tokens={})


def reopen(out: str) -> Build:
    """The build that was begun in a folder, as it was begun. Raises StoreError if there is none."""
    return build_json.reopen(out, STAGES)


def _fingerprinted(build: Build) -> Build:
    for stage in build.stages.values():
        fingerprint, token = _fingerprint(stage, build)
        fingerprints, tokens = {**build.fingerprints, stage.name: fingerprint}, {**build.tokens, stage.name: token}
        build = replace(build, fingerprints=fingerprints, tokens=tokens)
    return build


def _fingerprint(stage: Stage, build: Build) -> tuple[str, str]:
    """A stage's fingerprint in a build that has those of its inputs, and the sha256 of its token."""
    token, inputs = stage.token(build), [build.fingerprints[name] for name in stage.inputs]
    return sha256_of([stage.name, stage.version, token, inputs]), sha256_of(token)


def run(
    build: Build,
    *,
    until: str = "report",
    crawls: bool = True,
    address: str = "",
    workers: int = 0,
    here: bool = False,
    progress: Progress = Silent(),  # noqa: B008 (holds nothing)
) -> Iterator[StageResult]:
    """Run the stages up to `until`, giving each one's result as it ends. The caller publishes.

    here: run everything in this process, without Ray.
    crawls: False to work from stored captures only; a site that was not crawled for this snapshot is then an error.
    Raises WenlanError: whatever was committed stays, and the same call goes on from there.
    """
    with build_json.sole_owner(build), observe.about(build_id=build.build_id):
        build.store.check()
        cluster = Here() if here else Cluster(address, workers)
        build_json.note(build)  # the snapshot, from the start: a crawl that is killed before its end goes on tomorrow
        try:
            names = list(build.stages)
            names = names[: names.index(until) + 1]
            if build.expired:  # published, and unchanged since
                log.warning("%s: gc has deleted what its shards were made from; they stay as they are", build.out)
                names = [name for name in names if not build.stages[name].expires]
            for name in names:
                with observe.about(stage=name):
                    result = _run_stage(build, name, cluster, progress, crawls)
                    build_json.note(build, result)
                yield result
            observe.count("wenlan_builds", fate="done")
        except Exception:
            observe.count("wenlan_builds", fate="failed")
            raise
        finally:
            cluster.close()


def _run_stage(build: Build, name: str, cluster: Cluster | Here, progress: Progress, crawls: bool) -> StageResult:
    stage, directory = build.stages[name], build.stage(name)
    started = time.monotonic()
    if directory.finished():
        return _result(stage, build, directory.records(), ran=0, skipped=True)
    partitions = stage.partitions(build)
    committed = set(directory.partitions())
    missing = [p for p in partitions if p not in committed]
    if stage.stored is not None and not crawls and build.asks:
        missing = [p for p in missing if not stage.stored(build, p)]
        if missing:
            why = f"not crawled for snapshot {build.snapshot}, and a crawl cannot visit the past"
            raise StageError(", ".join(missing), why)
    fingerprint = build.fingerprints[name]
    if missing:
        build_json.note(build, running=Running(name, fingerprint, build_json.now(), len(committed), len(partitions)))
    log.info("stage begins", extra={"partitions": len(partitions), "committed": len(committed)})
    if missing and not cluster.started:
        asked = time.monotonic()
        with progress.starting("Ray"):
            cluster.start()
        started += time.monotonic() - asked  # it is no part of the stage
    before = (directory.record(partition) for partition in partitions if partition in committed)
    handed_out = time.monotonic()
    with Watch(build, name, len(partitions), before, progress) as watch:
        for partition in cluster.each(build, name, stage.run, stage.resources(build.spec), missing):
            record = directory.record(partition)
            _tell(record)
            watch.commit(record)
    done = time.monotonic()
    directory.finish(partitions, stage.version)
    records = directory.records()
    ended = time.monotonic()
    bounds = Bounds.of(records, (handed_out - started) + (ended - done))
    result = _result(stage, build, records, len(missing), False, ended - started, bounds)
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


def _result(
    stage: Stage,
    build: Build,
    records: list[Record],
    ran: int,
    skipped: bool,
    seconds: float = 0.0,
    bounds: Bounds | None = None,
) -> StageResult:
    cost = Cost.of(records, stage.resources(build.spec).get("num_gpus", 0.0))
    funnel = dict(counts_of(records))
    return StageResult(stage.name, skipped, len(records), ran, round(seconds, 2), funnel, cost, bounds or Bounds())
