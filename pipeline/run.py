"""THE PAGE: a spec becomes a build. Read it and you know the system.

    crawl -> extract -> admit -> fetch -> measure -> filter -> dedup -> curate -> detect -> shard -> report -> (publish)

A stage is one object (`pipeline.store.build.Stage`), `STAGES` is their order, and each has its passes. A pass is cut
into partitions; each runs as one task, which commits its own record (`pipeline.pass_runner`). A pass's
fingerprint is made of its version, its token (its part of the spec and what it reads outside the build) and the
fingerprints of the passes that it reads: same fingerprint, same result, so a finished pass is skipped and a killed one
goes on with the partitions without a record. Ray starts for the first pass that has several.

Which build a folder is: `pipeline.opening`. The driver holds partition names and counts, nothing that grows with the
rows of a dataset.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from pipeline.cluster import Cluster
from pipeline.pass_runner import PassRunner
from pipeline.processes import observe
from pipeline.report.estimate import Reference
from pipeline.store import build_json
from pipeline.store.build import EVERY, Build
from pipeline.store.build_json import Result
from pipeline.store.progress import Progress, Silent
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
) -> Iterator[Result]:
    """Runs the stages up to `until` and yields the result of each as it finishes. The caller publishes.

    here: run everything in this process, without Ray.
    crawls: False to work from stored captures only; a site that was not crawled for this snapshot is then an error.
    Raises WenlanError: what was committed stays, and the same call goes on from there.
    """
    with build_json.sole_owner(build), observe.about(build_id=build.build_id):
        build.store.check()
        cluster = Cluster(address, workers, here)
        build_json.note(build)  # the snapshot, from the start: a crawl that is killed before its end goes on tomorrow
        if build.on is None:
            build.store.begin(build.out, build.noted)
        stages = _stages_to_run(build, until)
        filled = _self_contained_after(build, stages)
        reference = None if here else Reference.newest(build.store, build.spec.name)
        peaks = reference.peaks if reference else {}
        passes = PassRunner(build, cluster, progress, _passes_to_run(build, stages), crawls, peaks)
        try:
            for stage in stages:
                results: list[Result] = []
                for own in (own for own in build.stages[stage].passes if own.name in build.passes):
                    results.append(passes.run(own))
                    if own.name == filled and not build_json.is_noted(build, own.name):
                        passes.note()
                        forget.carry_out(build)
                    passes.add(results[-1])
                if results:
                    yield Result.of_stage(stage, results)
            observe.count("wenlan_builds", fate="done")
        except Exception:
            observe.count("wenlan_builds", fate="failed")
            raise
        finally:
            cluster.close()
            passes.note()


def _stages_to_run(build: Build, until: str) -> list[str]:
    """Names of the stages that a run goes through."""
    names = list(build.stages)[: list(build.stages).index(until) + 1]
    if build.expired:  # published, and unchanged since
        log.warning("%s: gc has deleted the input of its shards; they remain unchanged", build.out)
        return [name for name in names if not build.stages[name].expires]
    return names


def _self_contained_after(build: Build, stages: Sequence[str]) -> str:
    """The stage of a run after which the build holds all that comes from outside; "" for a trial, which holds nothing.

    It is noted as done once what was taken down before has been removed again.
    """
    last = [name for name, stage in build.stages.items() if stage.network][-1]
    return "" if build.on is not None else last if last in stages else stages[-1]


def _passes_to_run(build: Build, stages: Sequence[str]) -> set[str]:
    """Names of the passes of some stages that a run goes through: a working pass only where one that reads it is to
    run."""
    wanted, read = set[str](), set[str]()
    for own in reversed(build.passes.values()):
        if own.stage in stages and (not own.working or own.name in read):
            wanted.add(own.name)
            if own.reads != EVERY and not (read.issuperset(own.reads) or build.stage(own.name).finished()):
                read.update(own.reads)
    return wanted
