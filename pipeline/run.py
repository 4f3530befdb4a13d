"""THE PAGE: a spec becomes a build. Read it and you know the system.

    crawl -> extract -> admit -> fetch -> measure -> filter -> dedup -> curate -> detect -> shard -> report -> (publish)

A stage is one object (`pipeline.store.stage.Stage`), `STAGES` is their order, and each has its passes. A pass is cut
into partitions; each runs as one task, which commits its own record (`pipeline.store.partitions`). A pass's
fingerprint is made of its version, its token (its part of the spec and what it reads outside the build) and the
fingerprints of the passes that it reads: same fingerprint, same result, so a finished pass is skipped and a killed one
goes on with the partitions without a record. Ray starts for the first pass that has several.

Which build a folder is: `pipeline.opening`. The driver holds partition names and counts, nothing that grows with the
rows of a dataset.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from pipeline import observe
from pipeline.cluster import Cluster
from pipeline.errors import StageError
from pipeline.memory import memory_for
from pipeline.report.estimate import Reference
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import PassResult, Running, StageResult
from pipeline.store.commits import Record
from pipeline.store.committed import Committed
from pipeline.store.partitions import reading
from pipeline.store.progress import Progress, Silent, Watch
from pipeline.store.stage import EVERY, Pass
from pipeline.takedown import forget

log = logging.getLogger("wenlan")


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
    """Runs the stages up to `until` and yields the result of each as it finishes. The caller publishes.

    here: run everything in this process, without Ray.
    crawls: False to work from stored captures only; a site that was not crawled for this snapshot is then an error.
    Raises WenlanError: what was committed stays, and the same call goes on from there.
    """
    with build_json.sole_owner(build), observe.about(build_id=build.build_id):
        build.store.check()
        cluster = Cluster(address, workers, here)
        build_json.note(build)  # the snapshot, from the start: a crawl that is killed before its end goes on tomorrow
        unnoted: list[PassResult] = []  # by build.json: each is when the next pass begins, or after the last one
        if build.on is None:
            build.store.begin(build)
        try:
            stages = _stages(build, until)
            reference = None if here else Reference.newest(build.store, build.spec.name)
            peaks = reference.peaks if reference else {}
            wanted, filled = _wanted(build, stages), _filled(build, stages)
            ahead: dict[str, _Known] = {}
            for stage in stages:
                results: list[PassResult] = []
                for own in (own for own in build.stages[stage].passes if own.name in build.passes):
                    if own.name in wanted:
                        chain = _chain(build, own, wanted)
                        with observe.about(stage=own.name), reading(own.name, build.reads(own.name)):
                            results.append(_run_pass(build, chain, cluster, progress, crawls, ahead, peaks, unnoted))
                    else:
                        results.append(PassResult.of(own, build, []))
                    if own.name == filled and not build_json.is_noted(build, own.name):
                        build_json.note(build, *unnoted)
                        forget.carry_out(build)
                    unnoted.append(results[-1])
                if results:
                    yield StageResult.of(stage, results)
            observe.count("wenlan_builds", fate="done")
        except Exception:
            observe.count("wenlan_builds", fate="failed")
            raise
        finally:
            cluster.close()
            if unnoted:
                build_json.note(build, *unnoted)


def _stages(build: Build, until: str) -> list[str]:
    """Names of the stages that a run goes through."""
    names = list(build.stages)[: list(build.stages).index(until) + 1]
    if build.expired:  # published, and unchanged since
        log.warning("%s: gc has deleted the input of its shards; they remain unchanged", build.out)
        return [name for name in names if not build.stages[name].expires]
    return names


def _filled(build: Build, stages: Sequence[str]) -> str:
    """The stage of a run after which the build holds all that comes from outside; "" for a trial, which holds nothing.

    It is noted as done once what was taken down before has been removed again.
    """
    last = [name for name, stage in build.stages.items() if stage.network][-1]
    return "" if build.on is not None else last if last in stages else stages[-1]


def _wanted(build: Build, stages: Sequence[str]) -> set[str]:
    """Names of the passes of some stages that a run goes through: a working pass only where one that reads it is to
    run."""
    wanted, read = set[str](), set[str]()
    for own in reversed(build.passes.values()):
        if own.stage in stages and (not own.working or own.name in read):
            wanted.add(own.name)
            if own.reads != EVERY and not (read.issuperset(own.reads) or build.stage(own.name).finished()):
                read.update(own.reads)
    return wanted


def _chain(build: Build, own: Pass, wanted: Set[str]) -> list[Pass]:
    """A pass, and those that follow it in the same tasks."""
    later = list(build.passes.values())
    later = later[later.index(own) + 1 :]
    return [own, *itertools.takewhile(lambda each: each.follows and each.name in wanted, later)]


@dataclass
class _Known:
    """Partitions of a pass that are committed; of those that this run has done the number, and its seconds."""

    committed: Committed
    ran: int = 0
    seconds: float = 0.0

    @staticmethod
    def of(own: Pass, build: Build) -> _Known:
        """The state of a pass before any of its tasks has run."""
        with reading(own.name, build.reads(own.name)):
            return _Known(Committed(build.stage(own.name)))


def _run_pass(
    build: Build,
    chain: Sequence[Pass],
    cluster: Cluster,
    progress: Progress,
    crawls: bool,
    ahead: dict[str, _Known],
    peaks: Mapping[str, int],
    unnoted: list[PassResult],
) -> PassResult:
    """Runs the partitions of a pass that lack a record, reduces them, and notes that all are committed.

    chain: the pass, and those that its tasks go on with; what is left of these is done when they are run themselves.
    ahead: what tasks of an earlier pass have done of others, with their share of its seconds; added to.
    peaks: the most memory of a worker in an earlier build, by pass. unnoted: results of earlier passes, taken when
    they are noted.
    """
    own = chain[0]
    directory, started = build.stage(own.name), time.monotonic()
    if directory.finished():
        return PassResult.of(own, build, directory.records())
    partitions = own.over(build)
    own.begin(build)
    known = ahead.pop(own.name, None) or _Known.of(own, build)
    missing = [partition for partition in partitions if partition not in known.committed]
    if own.stored is not None and not crawls and build.asks:
        missing = _stored_only(build, own, missing)
        known = _Known.of(own, build)  # with those that were adopted
    before = len(known.committed)
    if missing:
        now = Running(own.name, build.fingerprints[own.name], build_json.now(), before, len(partitions))
        build_json.note(build, *unnoted, running=now)
        unnoted.clear()
    log.info("pass begins", extra={"partitions": len(partitions), "committed": before})
    if not cluster.started and cluster.is_needed(own.resources(build.spec), missing):
        asked = time.monotonic()
        with progress.starting("Ray"):
            cluster.start()
        started += time.monotonic() - asked  # not part of the pass
    every = [known, *(_Known.of(each, build) for each in chain[1:] if missing)]
    with Watch(build, own.name, len(partitions), known.committed.records(), progress) as watch:
        passes, spent = [(each.name, each.run) for each in chain], [0.0] * len(every)
        memory = max(memory_for(peaks.get(each.name, 0)) for each in chain)
        for some in cluster.each(build, passes, {**own.resources(build.spec), "memory": memory}, missing):
            for number, (each, its) in enumerate(zip(chain, every, strict=True)):
                with observe.about(stage=each.name), reading(each.name, build.reads(each.name)):
                    records = [its.committed.add(done[number]) for done in some]
                    for record in records:
                        _tell(record)
                spent[number] += sum(record.seconds for record in records)
                if each is own:
                    watch.commit(records)
    known.committed.compact()
    if own.reduce is not None:
        directory.write_reduced(own.reduce(build))
    directory.finish(partitions, own.version)
    passed = time.monotonic() - started
    for its, share in zip(every, spent, strict=True) if missing else ():
        its.ran, its.seconds = its.ran + len(missing), its.seconds + passed * share / (sum(spent) or 1)
    ahead |= {each.name: its for each, its in zip(chain[1:], every[1:], strict=False)}
    seconds = known.seconds if missing else known.seconds + passed
    result = PassResult.of(own, build, known.committed.records(), known.ran, seconds)
    log.info("pass done", extra={"seconds": result.seconds, "funnel": result.funnel})
    return result


def _stored_only(build: Build, own: Pass, missing: list[str]) -> list[str]:
    """Partitions left to run when stored results are adopted: none. Raises StageError where a result is not stored."""
    assert own.stored is not None
    if absent := [partition for partition in missing if not own.stored(build, partition)]:
        why = f"not crawled for snapshot {build.snapshot}, and past snapshots cannot be crawled"
        raise StageError(", ".join(absent), why)
    return []


def _tell(record: Record) -> None:
    """Logs and counts a partition that was just committed."""
    with observe.about(partition=record.partition):
        log.info("partition done", extra={"seconds": record.seconds, "counts": record.counts})
        for fate in ("kept", "dropped", "known"):
            observe.count("wenlan_rows", record.counts.get(fate, 0), fate=fate)
        observe.count("wenlan_partitions")
        observe.count("wenlan_partition_seconds", record.seconds)
        observe.count("wenlan_cpu_seconds", record.cpu_seconds)
        observe.count("wenlan_written_bytes", sum(file.bytes for file in record.files.values()))
