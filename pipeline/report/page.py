"""Stage `report`: the quality report of a build, BUILD/report/index.html and report.json.

index.html is a single file that loads nothing (its content security policy forbids the network), so that it can be
mailed and archived. report.json holds the same figures for programs. The parts: `funnel` (what happened to every
candidate), `figures` (what was kept), `pictures` (what it looks like), `drift` (what has changed since another build),
and the templates in templates/.

A data owner reads it before `publish`. So the gates of the spec are shown with their figures, and whatever does not add
up is shown first.

Limits: the page shows a sample of pictures, at most `report.pictures` of the spec, and stays below 5 MB.
"""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path
from typing import Any

from data_specs.shard import SPLITS
from pipeline.detectors import detector_ids
from pipeline.report import drift, gates
from pipeline.report import pictures as report_pictures
from pipeline.report.figures import cluster_sizes, collect, stage_costs
from pipeline.report.funnel import Funnel, faults, read_funnels
from pipeline.report.translations import zh
from pipeline.store.build import Build
from pipeline.store.stage import Stages, deciding

REPORT_VERSION = 1
"""Version of the layout of report.json."""


def make(build: Build, baseline: dict[str, Any] | None = None) -> dict[str, Any]:
    """The whole report as JSON values.

    baseline: report.json of the build to compare with. The `picture` of a row is a data: URI, which index.html shows
    and report.json leaves out.
    """
    candidates, captures = read_funnels(build)
    takedowns = build.store.takedowns()
    choice = report_pictures.choose(build, takedowns)
    report_pictures.add_pictures(build, choice.rows(), takedowns)
    report_pictures.add_boxes(build, choice.rows())
    report = {
        "report_version": REPORT_VERSION,
        "build": _build(build),
        "faults": faults(build, candidates),
        "totals": {"candidates": candidates.total, "kept": candidates.kept, "dropped": candidates.dropped},
        "splits": _splits(build),
        "funnel": [_stage(row) for row in candidates.stages(deciding(build.stages, "extract", "shard"))],
        "reasons": [{"name": name, "count": count} for name, count in candidates.reasons()],
        "sources": _sources(build, candidates),
        "captures": [{"name": name, "count": count} for name, count in captures.reasons()],
        "pages": _pages(build),
        **collect(build),
        "duplicates": choice.duplicates,
        "cluster_sizes": cluster_sizes(choice.sizes),
        "clusters": choice.clusters,
        "sheet": choice.sheet,
        "not_shown": choice.hidden,
        "cached_regions": _cached_regions(build),
        "cost": stage_costs(build),
    }
    report["drift"] = None if baseline is None else drift.compare(report, baseline)
    report["gates"] = [
        {"name": g.name, "found": g.found, "wanted": g.wanted, "holds": g.holds}
        for g in gates.judge(build.spec, build.stages, candidates, captures, report)
    ]
    report["before"] = _before(report, baseline)
    return report


def _cached_regions(build: Build) -> dict[str, int]:
    """Images whose regions came from STORE's cache, and all that needed some; both summed over the detectors."""
    records = build.stage("detect").records() if "detect" in build.fingerprints else []
    images = sum(record.counts.get("images", 0) for record in records)
    cached = sum(record.counts.get("cached", 0) for record in records)
    return {"cached": cached, "asked": images * len(detector_ids(build.spec))}


def _before(report: dict[str, Any], baseline: dict[str, Any] | None) -> dict[str, list[float]]:
    """The baseline's share of each bin, by histogram, where the bins are the same: drawn as lines across the bars."""
    shares = {}
    for old in baseline["histograms"] if baseline else ():
        same = next((h for h in report["histograms"] if h["name"] == old["name"]), None)
        if same and old["total"] and [b["label"] for b in same["bins"]] == [b["label"] for b in old["bins"]]:
            shares[old["name"]] = [round(b["count"] / old["total"], 5) for b in old["bins"]]
    return shares


def render(report: dict[str, Any], stages: Stages) -> str:
    """index.html from what `make` returned; `stages` of the build, for their Chinese names."""
    return str(environment(stages).get_template("report.html").render(**report))


def environment(stages: Stages) -> Any:
    """The templates beside this file. Everything that came from the web is escaped by the engine.

    stages: for their Chinese names.
    """
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.tests["starts"] = str.startswith
    templates.filters |= {
        "n": lambda value: f"{value:,}",
        "share": _share,
        "size": _size,
        "zh": functools.partial(zh, stages=stages),
    }
    return templates


def _share(part: int, whole: int) -> str:
    """A share as `12.3%`, or `–` if `whole` is 0. Rounding never makes 0% of some or 100% of not all."""
    if not whole:
        return "–"
    if 0 < part < whole:
        return f"{min(max(100 * part / whole, 0.1), 99.9):.1f}%"
    return "100%" if part else "0%"


def _size(count: int) -> str:
    """A size in bytes as `3.4 MB`, with a no-break space."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1_000:
            break
        value, unit = value / 1_000, larger
    return f"{value:.0f}\N{NO-BREAK SPACE}{unit}" if unit == "B" else f"{value:.1f}\N{NO-BREAK SPACE}{unit}"


def _build(build: Build) -> dict[str, Any]:
    spec = build.spec
    return {
        "id": build.build_id,
        "name": spec.name,
        "description": spec.description,
        "snapshot": build.snapshot,
        "spec_digest": spec.digest,
        "licence": spec.licence,
        "contact": spec.contact,
        "wenlan": importlib.metadata.version("wenlan"),
    }


def _splits(build: Build) -> list[dict[str, Any]]:
    records, rows = build.packed(), []
    for split in SPLITS:
        shards = [record for record in records if record.info["split"] == split]
        samples, size = sum(r.counts["kept"] for r in shards), sum(r.counts["bytes"] for r in shards)
        rows.append({"name": split, "samples": samples, "shards": len(shards), "bytes": size})
    return rows


def _stage(row: Any) -> dict[str, Any]:
    reasons = [{"name": name, "count": count} for name, count in row.reasons]
    return {"stage": row.stage, "seen": row.seen, "kept": row.kept, "dropped": row.dropped, "reasons": reasons}


def _sources(build: Build, candidates: Funnel) -> list[dict[str, Any]]:
    """One row per source, in the order of the spec, with how many candidates remained after each stage."""
    rows = []
    for ref in build.spec.sources:
        funnel = candidates.of_source(ref.name)
        stages = [
            {"stage": s.stage, "kept": s.kept, "dropped": s.dropped}
            for s in funnel.stages(deciding(build.stages, "extract", "shard"))
        ]
        reasons = [{"name": name, "count": count} for name, count in funnel.reasons()]
        row = {"name": ref.name, "kind": ref.kind, "source_kind": ref.source_kind, "candidates": funnel.total}
        rows.append({**row, "kept": funnel.kept, "dropped": funnel.dropped, "stages": stages, "reasons": reasons})
    return rows


def _pages(build: Build) -> dict[str, int]:
    """Pages that the crawl has seen, kept and dropped."""
    records = build.stage("crawl").records() if "crawl" in build.fingerprints else []
    return {what: sum(record.counts.get(what, 0) for record in records) for what in ("seen", "kept", "dropped")}
