"""The one way in which tests run stages: in this process, without Ray."""

from __future__ import annotations

from pipeline.pass_runner import Committed
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, Result
from pipeline.store.partitions import reading


def passes(build: Build, *names: str) -> list[str]:
    """Names of a build's passes: of each stage named all that the build has; a pass named is itself."""
    of_stages = {stage: [own.name for own in build.stages[stage].passes] for stage in build.stages}
    return [own for name in names for own in of_stages.get(name, [name]) if own in build.passes]


def run_stage(build: Build, *names: str) -> list[str]:
    """Run all partitions of the named stages or passes that have no record yet, finish each, and return what was
    run."""
    done = []
    for name in passes(build, *names):
        own, directory = build.passes[name], build.stage(name)
        with reading(name, build.reads(name)):
            partitions = own.over(build)
            own.begin(build)
            for partition in partitions:
                if partition not in directory.partitions():
                    own.run(build, partition)
                    done.append(partition)
            if own.reduce is not None:
                directory.write_reduced(own.reduce(build))
        Committed(directory).compact()
        directory.finish(partitions, own.version)
    return done


def run_noted(build: Build, *names: str) -> None:
    """The same, noted in build.json as `wenlan-data build` does it, so that the build can be opened again.

    Noted before the report, which shows it, and in the end: to write it after each pass is a quarter of all the work.
    """
    results: list[Result] = []
    build_json.note(build)
    build.store.check()
    build.store.begin(build.out, build.noted)
    try:
        for name in passes(build, *names):
            if name == "report":
                build_json.note(build, *results)
            run_stage(build, name)
            done = len(build.stage(name).partitions())
            results.append(Result(name, False, done, done, 0.0, {}, Cost()))
    finally:
        build_json.note(build, *results)
