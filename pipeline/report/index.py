"""An index over the builds in a folder: one index.html with a table and trends per dataset, by snapshot.

It draws the dataset as it grew from release to release, and says of each build what became of it. It is made from each
build's report/report.json; a folder without one is skipped. Like the report, it is a single file that loads nothing.
"""

from __future__ import annotations

from typing import Any

from data_specs.shard import ContractError
from pipeline.errors import SourceError, StoreError
from pipeline.files.folder import Folder
from pipeline.report import drift
from pipeline.store import build_json
from pipeline.store.store import Store

WIDE, HIGH = 220.0, 44.0
"""Size of a trend line, in units of the SVG in templates/index.html."""


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
    """A dataset's rows, oldest first, its trends, and its newest release."""
    reports = sorted(reports, key=lambda r: (r["build"]["snapshot"], r["build"]["id"]))
    rows = []
    for at, report in enumerate(reports):
        drifts = _drift(report, reports[at - 1] if at else None)
        state = report["state"]
        rows.append(
            {
                "id": report["build"]["id"],
                "snapshot": report["build"]["snapshot"],
                "place": report["place"],
                "state": state,
                "candidates": report["totals"]["candidates"],
                "kept": report["totals"]["kept"],
                "known": report["totals"]["known"],
                "dropped": report["totals"]["dropped"],
                "total": state["total"] if state["release"] else None,
                "duplicates": report["duplicates"],
                "bytes": sum(split["bytes"] for split in report["splits"]),
                "cpu_seconds": sum(stage["cpu_seconds"] for stage in report["cost"]),
                "failed": [gate["name"] for gate in report["gates"] if not gate["holds"]],
                "accepted": sorted(state["accepted"]),
                "faults": len(report["faults"]),
                "worst": drifts[0] if drifts else None,
            }
        )
    return {"name": name, "rows": rows, "trends": _trends(rows), "newest": _newest_release(name, reports)}


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


def _trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trend lines of a dataset: its size over the builds that made a release, costs over those that kept something,
    the rest over all builds."""
    released, grown = [row for row in rows if row["total"] is not None], [row for row in rows if row["kept"]]
    drifts = [row["worst"]["psi"] if row["worst"] else 0.0 for row in rows]
    costs = [1000 * row["cpu_seconds"] / row["kept"] for row in grown]
    size = [
        _trend(released, "samples in the release", "版本样本总数", [float(row["total"]) for row in released], "{:,.0f}")
    ]
    return [
        *(size if released else ()),
        _trend(rows, "new samples per build", "每次新增样本", [float(row["kept"]) for row in rows], "{:,.0f}"),
        _share(rows, "share of candidates kept", "保留比例", "kept"),
        _share(rows, "share of candidates known", "已在数据集中的比例", "known"),
        _share(rows, "share of duplicates", "重复比例", "duplicates"),
        _trend(rows, "largest drift", "最大漂移", drifts, "{:.3f}"),
        _trend(grown, "CPU seconds per 1,000 kept", "每千个保留样本的 CPU 秒", costs, "{:.1f}"),
    ]


def _share(rows: list[dict[str, Any]], title: str, title_zh: str, part: str) -> dict[str, Any]:
    shares = [100 * row[part] / row["candidates"] if row["candidates"] else 0.0 for row in rows]
    return _trend(rows, title, title_zh, shares, "{:.1f}%")


def _trend(rows: list[dict[str, Any]], title: str, title_zh: str, values: list[float], form: str) -> dict[str, Any]:
    """A trend: its line through the values, one per row, scaled from zero to the largest, and its labels."""
    top, step = max([*values, 1e-9]), WIDE / max(1, len(values) - 1)
    points = [(round(at * step, 1), round(HIGH - HIGH * value / top, 1)) for at, value in enumerate(values)]
    labels = [form.format(value) for value in values]
    names = [f"{row['state']['release'] or ''} {row['snapshot']}".strip() for row in rows]
    last = labels[-1] if labels else "–"
    return {"title": title, "title_zh": title_zh, "points": points, "labels": labels, "names": names, "last": last}
