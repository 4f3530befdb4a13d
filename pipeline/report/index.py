"""An index over the builds in a folder: one index.html with a table per dataset, by snapshot.

It says of each build what became of it, and how the dataset grew from release to release. It is made from each build's
report/report.json; a folder without one is skipped. Like the report, it is a single file that loads nothing.
"""

from __future__ import annotations

from typing import Any

from data_specs.shard import ContractError
from pipeline.errors import SourceError, StoreError
from pipeline.files.folder import Folder
from pipeline.report import drift
from pipeline.store import build_json
from pipeline.store.store import Store


def write(place: str) -> tuple[str, int]:
    """Write index.html into a folder of builds; returns its path and the number of builds.

    Raises SourceError if no build in it has a report.
    """
    folder = Folder(place)
    datasets: dict[str, list[dict[str, Any]]] = {}
    for name in folder.names():
        report = drift.read(folder.at(name)) if not name.startswith(".") else None
        if report is not None:
            entry = {**report, "place": name, "folder": folder / name}
            datasets.setdefault(report["build"]["name"], []).append(entry)
    builds = sum(map(len, datasets.values()))
    if not builds:
        raise SourceError(folder.url, "contains no build with a report")
    page = render([_dataset(name, reports) for name, reports in sorted(datasets.items())])
    folder.write("index.html", page.encode())
    return folder.at("index.html"), builds


def render(datasets: list[dict[str, Any]]) -> str:
    """index.html of datasets as `_dataset` returns them."""
    from pipeline.report.page import environment

    return str(environment({}).get_template("index.html").render(datasets=datasets))


def _dataset(name: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """A dataset's rows, oldest first, and its newest release."""
    reports = sorted(reports, key=lambda r: (r["build"]["snapshot"], r["build"]["id"]))
    rows = []
    for at, report in enumerate(reports):
        drifts = _drift(report, reports[at - 1] if at else None)
        state, kept = report["state"], report["totals"]["kept"]
        cpu = sum(stage["cpu_seconds"] for stage in report["cost"])
        rows.append(
            {
                "id": report["build"]["id"],
                "snapshot": report["build"]["snapshot"],
                "place": report["place"],
                "state": state,
                "candidates": report["totals"]["candidates"],
                "kept": kept,
                "known": report["totals"]["known"],
                "dropped": report["totals"]["dropped"],
                "total": state["total"] if state["release"] else None,
                "duplicates": report["duplicates"],
                "bytes": sum(split["bytes"] for split in report["splits"]),
                "cpu_per_thousand": 1000 * cpu / kept if kept else None,
                "failed": [gate["name"] for gate in report["gates"] if not gate["holds"]],
                "accepted": sorted(state["accepted"]),
                "faults": len(report["faults"]),
                "worst": drifts[0] if drifts else None,
            }
        )
    return {"name": name, "rows": rows, "newest": _newest_release(name, reports)}


def _drift(report: dict[str, Any], previous: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Distributions of the whole dataset against the release before, the most moved first; without releases those of
    the build against the previous one."""
    compared = report["dataset"]
    if compared is None and previous is not None:
        compared = {"drift": drift.compare(report, previous)}
    distributions: list[dict[str, Any]] = compared["drift"]["distributions"] if compared else []
    return distributions


def _newest_release(name: str, reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest release of a dataset, if STORE is accessible: takedowns and rollbacks make releases too."""
    build = reports[-1]["folder"]
    if not build.exists("build.json"):
        return None
    try:
        current = Store(build_json.store_of(build, build.read_json("build.json"))).releases(name).latest().current
    except (KeyError, ContractError, StoreError):
        return None
    if current is None:
        return None
    return {"release": current.release, "samples": sum(current.samples.values()), "builds": len(current.builds)}
