"""The one way in which tests run stages: in this process, without Ray."""

from __future__ import annotations

from pipeline.store.build import Build


def run_stage(build: Build, *names: str) -> list[str]:
    """Run all partitions of the named stages that have no record yet, finish each stage, and return what was run."""
    done = []
    for name in names:
        stage, directory = build.stages[name], build.stage(name)
        partitions = stage.partitions(build)
        for partition in partitions:
            if partition not in directory.partitions():
                stage.run(build, partition)
                done.append(partition)
        directory.finish(partitions, stage.version)
    return done
