"""An index over the builds in a folder: one index.html with a table and trends per dataset, by snapshot.

It is made from each build's report/report.json; a folder without one is skipped. Like the report, it is a single file
that loads nothing.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import SourceError
from pipeline.files.folder import Folder
from pipeline.report import drift

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
            datasets.setdefault(report["build"]["name"], []).append({**report, "place": name})
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
    """A dataset's rows, oldest first, and its trends."""
    reports = sorted(reports, key=lambda r: (r["build"]["snapshot"], r["build"]["id"]))
    rows = []
    for at, report in enumerate(reports):
        drifted = drift.compare(report, reports[at - 1]) if at else None
        worst = drifted["distributions"][0] if drifted and drifted["distributions"] else None
        rows.append(
            {
                "id": report["build"]["id"],
                "snapshot": report["build"]["snapshot"],
                "place": report["place"],
                "candidates": report["totals"]["candidates"],
                "kept": report["totals"]["kept"],
                "duplicates": report["duplicates"],
                "bytes": sum(split["bytes"] for split in report["splits"]),
                "cpu_seconds": sum(stage["cpu_seconds"] for stage in report["cost"]),
                "failed": [gate["name"] for gate in report["gates"] if not gate["holds"]],
                "faults": len(report["faults"]),
                "worst": worst,
            }
        )
    return {"name": name, "rows": rows, "trends": _trends(rows)}


def _trends(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trend lines of a dataset, one value per build."""

    def share(part: str, whole: str) -> list[float]:
        return [100 * row[part] / row[whole] if row[whole] else 0.0 for row in rows]

    drifts = [row["worst"]["psi"] if row["worst"] else 0.0 for row in rows]
    costs = [1000 * row["cpu_seconds"] / max(1, row["kept"]) for row in rows]
    return [
        _trend("samples kept", "保留样本", [float(row["kept"]) for row in rows], "{:,.0f}"),
        _trend("share of candidates kept", "保留比例", share("kept", "candidates"), "{:.1f}%"),
        _trend("share of duplicates", "重复比例", share("duplicates", "candidates"), "{:.1f}%"),
        _trend("largest drift from the previous build", "与上次的最大漂移", drifts, "{:.3f}"),
        _trend("CPU seconds per 1,000 samples kept", "每千个保留样本的 CPU 秒", costs, "{:.1f}"),
    ]


def _trend(title: str, title_zh: str, values: list[float], form: str) -> dict[str, Any]:
    """A trend: its line through the values, scaled from zero to the largest, and its labels."""
    top, step = max([*values, 1e-9]), WIDE / max(1, len(values) - 1)
    points = [(round(at * step, 1), round(HIGH - HIGH * value / top, 1)) for at, value in enumerate(values)]
    labels = [form.format(value) for value in values]
    return {"title": title, "title_zh": title_zh, "points": points, "labels": labels, "last": labels[-1]}
