"""The one way in which tests run stages: in this process, without Ray."""

from __future__ import annotations

from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, StageResult

UNASKED = (
    "gather",
    "marks",
    "watermark",
    "score",
    "choose",
    "vectors",
    "nearest",
    "semantic_dedup",
    "concepts",
    "balance",
    "tally",
)
"""Stages without partitions, where a spec does not ask for them or the build is small."""


DEDUP = ("signatures", "copies", "edges", "leaders", "dedup")
"""The stages that find duplicates, in order."""


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


def run_noted(build: Build, *names: str) -> None:
    """The same, noted in build.json as `wenlan-data build` does it, so that the build can be opened again.

    Noted before the report, which shows it, and in the end: to write it after each stage is a quarter of all the work.
    """
    results: list[StageResult] = []
    build_json.note(build)
    try:
        for name in names:
            if name == "report":
                build_json.note(build, *results)
            run_stage(build, name)
            done = len(build.stage(name).partitions())
            results.append(StageResult(name, False, done, done, 0.0, {}, Cost()))
    finally:
        build_json.note(build, *results)
