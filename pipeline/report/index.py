"""An index over the builds in a folder: one index.html with a table and trends per dataset, by snapshot.

Where builds are in releases, it draws the dataset as it grew from release to release, and says of each build what
became of it. It is made from each build's report/report.json; a folder without one is skipped. Like the report, it is a
single file that loads nothing.
"""

from __future__ import annotations

from typing import Any

from data_specs.shard import ContractError
from pipeline.errors import SourceError, StoreError
from pipeline.files.folder import Folder
from pipeline.report import drift
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
            own = {**report, "place": name, "folder": folder / name}
            datasets.setdefault(report["build"]["name"], []).append(own)
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
        drifted = _drift(report, reports[at - 1] if at else None)
        state = report["state"]
        rows.append(
            {
                "id": report["build"]["id"],
                "snapshot": report["build"]["snapshot"],
                "place": report["place"],
                "verdict": state["verdict"],
                "state": state,
                "candidates": report["totals"]["candidates"],
                "kept": report["totals"]["kept"],
                "known": report["totals"]["known"],
                "dropped": report["totals"]["dropped"],
                "total": _total(state),
                "duplicates": report["duplicates"],
                "bytes": sum(split["bytes"] for split in report["splits"]),
                "cpu_seconds": sum(stage["cpu_seconds"] for stage in report["cost"]),
                "failed": [gate["name"] for gate in report["gates"] if not gate["holds"]],
                "accepted": sorted(state["accepted"]),
                "faults": len(report["faults"]),
                "worst": drifted[0] if drifted else None,
            }
        )
    released = any(row["state"]["release"] for row in rows)
    trends = _release_trends(rows) if released else _build_trends(rows)
    return {"name": name, "rows": rows, "trends": trends, "released": released, "newest": _newest(name, reports)}


def _drift(report: dict[str, Any], previous: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Distributions of the whole dataset against the release before, the most moved first; without releases those of
    the build against the previous one."""
    compared = report["dataset"]
    if compared is None and previous is not None:
        compared = {"drift": drift.compare(report, previous)}
    distributions: list[dict[str, Any]] = compared["drift"]["distributions"] if compared else []
    return distributions


def _total(state: dict[str, Any]) -> int | None:
    """Samples of the release that a build made; None for a build that is in no release."""
    if not state["release"]:
        return None
    return int(state["total"])


def _newest(name: str, reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest release of a dataset, if STORE is at hand: takedowns and rollbacks make releases too."""
    build = reports[-1]["folder"]
    if not build.exists("build.json"):
        return None
    try:
        current = Store(build.read_json("build.json")["store"]).releases(name).latest().current
    except (KeyError, ContractError, StoreError):
        return None
    if current is None:
        return None
    return {"release": current.release, "samples": sum(current.samples.values()), "builds": len(current.builds)}


def _shares(rows: list[dict[str, Any]], part: str, whole: str) -> list[float]:
    return [100 * row[part] / row[whole] if row[whole] else 0.0 for row in rows]


def _common_trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of every dataset: drift, and cost over the builds that kept something."""
    drifts = [row["worst"]["psi"] if row["worst"] else 0.0 for row in rows]
    some = [row for row in rows if row["kept"]]
    costs = [1000 * row["cpu_seconds"] / row["kept"] for row in some]
    return [
        _trend(rows, "largest drift", "最大漂移", drifts, "{:.3f}"),
        _trend(some, "CPU seconds per 1,000 kept", "每千个保留样本的 CPU 秒", costs, "{:.1f}"),
    ]


def _build_trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trend lines of builds that know of no release, one value per build."""
    return [
        _trend(rows, "samples kept", "保留样本", [float(row["kept"]) for row in rows], "{:,.0f}"),
        _trend(rows, "share of candidates kept", "保留比例", _shares(rows, "kept", "candidates"), "{:.1f}%"),
        _trend(rows, "share of duplicates", "重复比例", _shares(rows, "duplicates", "candidates"), "{:.1f}%"),
        *_common_trends(rows),
    ]


def _release_trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trend lines of a dataset with releases: its size over the builds that made one, the rest over all builds."""
    made = [row for row in rows if row["total"] is not None]
    return [
        _trend(made, "samples in the release", "版本样本总数", [float(row["total"]) for row in made], "{:,.0f}"),
        _trend(rows, "new samples per build", "每次新增样本", [float(row["kept"]) for row in rows], "{:,.0f}"),
        _trend(
            rows, "share of candidates known", "已在数据集中的比例", _shares(rows, "known", "candidates"), "{:.1f}%"
        ),
        *_common_trends(rows),
    ]


def _trend(rows: list[dict[str, Any]], title: str, title_zh: str, values: list[float], form: str) -> dict[str, Any]:
    """A trend: its line through the values, one per row, scaled from zero to the largest, and its labels."""
    top, step = max([*values, 1e-9]), WIDE / max(1, len(values) - 1)
    points = [(round(at * step, 1), round(HIGH - HIGH * value / top, 1)) for at, value in enumerate(values)]
    labels = [form.format(value) for value in values]
    names = [f"{row['state']['release'] or ''} {row['snapshot']}".strip() for row in rows]
    last = labels[-1] if labels else "–"
    return {"title": title, "title_zh": title_zh, "points": points, "labels": labels, "names": names, "last": last}
