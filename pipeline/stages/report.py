"""Stage report: writes the quality report of a build, BUILD/report/index.html and report.json (`pipeline.report`)."""

from __future__ import annotations

from typing import Any

from pipeline.report import dataset
from pipeline.store.build import EVERY, Build, Pass, PassFile, Stage
from pipeline.urls import shown


def token(build: Build) -> Any:
    """Options of the report, the gates it shows, the takedowns it must honour and the release it compares with."""
    spec = build.spec
    expected = [spec.publish.model_dump(), [source.max_drop.model_dump() for source in spec.sources]]
    moving = [build.store.forgotten_revision(), dataset.earlier_number(build)]
    return [spec.report.model_dump(), *expected, *moving]


def partitions(build: Build) -> list[str]:
    """One: the report is of the whole build."""
    return ["all"]


def run_partition(build: Build, partition: str) -> None:
    write(build)


def write(build: Build, baseline: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make and commit the report; returns its values. baseline: report.json of a build to compare with, by default the
    last one of the dataset."""
    from pipeline.report.page import as_json, make_report, render, rows

    [partition] = partitions(build)
    with build.stage("report").attempt(partition) as attempt:
        report = make_report(build, baseline)
        page = render(report, build.stages)
        attempt.path("html", final="index.html").write_text(shown(page), encoding="utf-8")
        for row in rows(report):
            row.pop("picture", None)  # figures for machines, not pictures
        attempt.path("json", final="report.json").write_text(as_json(report), encoding="utf-8")
        for other in build.stage("report").of_other_fingerprints():
            other.delete_records()  # theirs are files of the same names
        attempt.commit({"faults": len(report["faults"]), "bytes": len(page.encode())})
    return report


STAGE = Stage(
    name="report",
    zh="报告",
    folder="report",
    passes=(
        Pass(
            name="report",
            over=partitions,
            reads=EVERY,
            run=run_partition,
            token=token,
            version=9,
            files=(PassFile("html"), PassFile("json")),
            unit="sections",
            done=(),
        ),
    ),
    subject="",
    fixed_names=True,
    expires=False,
)
