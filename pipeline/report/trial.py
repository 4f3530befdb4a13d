"""Compares a trial of another spec (`pipeline.opening.open_trial`) with its build: what would be added and removed.

Both are compared where a trial ends: by what has passed the last stage before packing. What came in has a Decision of
the build that says why it was left out, and what went out has one of the trial. Candidates whose images were never
fetched are counted apart: a trial cannot know what becomes of them.

The page is one file that loads nothing, like the report.

Limits: pictures are a sample of SHOWN each, the same every time.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter

from pipeline.report.diff import changes
from pipeline.report.hidden_content import faces_hider, hidden_candidates, hidden_images, make_refused, showable_rows
from pipeline.report.page import environment
from pipeline.report.pictures import add_pictures
from pipeline.report.section import Values
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Build, in_funnel
from pipeline.store.pairs import SELECTION
from pipeline.store.sql import Tables
from pipeline.urls import shown

SHOWN = 60
"""Rows of each group that the page shows."""

FATES = ("seen", "kept", "dropped", "known")


def compare(build: Build, trial: Build) -> Values:
    """The figures of a finished trial beside those of the build that it is on.

    `stages`: name, whether it ran, and FATES `before` and `after`. `came_in`, `went_out`: `count`, `reasons` (the stage
    and the reason for which the other one left it out, and how many), and `rows`, decisions of the other one.
    `not_stored`: how many candidates, of how many images, would have to be fetched before they could come in, and some
    of them.
    """
    with Tables.of(build, trial=trial) as mine, Tables.of(trial, build=build) as its:
        same = build.fingerprints == trial.fingerprints
        entered = "candidate_id FROM trial.pairs EXCEPT SELECT candidate_id FROM pairs"
        left = "candidate_id FROM build.pairs EXCEPT SELECT candidate_id FROM pairs"
        counted_once = f"reason <> '{DropReason.SAME_CANDIDATE.value}'"  # each once, however often it was read
        for tables, one in ((mine, build), (its, trial)):
            make_refused(tables, one.store.takedowns())
        came_in = _group(mine, build, f"id IN (SELECT {entered}) AND {counted_once}", same)
        went_out = _group(its, trial, f"id IN (SELECT {left}) AND {counted_once}", same)
        missing = _group(its, trial, f"reason = '{DropReason.NOT_STORED.value}'", same)
        kept = its.row(
            "SELECT (SELECT count(DISTINCT candidate_id) FROM build.pairs) AS before, "
            "(SELECT count(DISTINCT candidate_id) FROM pairs) AS after"
        )
    return {
        "build": {"id": build.build_id, "name": build.spec.name, "snapshot": build.snapshot},
        "wenlan": importlib.metadata.version("wenlan"),
        "spec": changes(build.spec.model_dump(mode="json"), trial.spec.model_dump(mode="json")),
        "kept": kept,
        "stages": _stages(build, trial),
        "came_in": came_in,
        "went_out": went_out,
        "not_stored": missing,
    }


def show_pictures(figures: Values, build: Build, trial: Build) -> None:
    """Set the `picture` of each row of a comparison that may be shown (see `pipeline.report.pictures`)."""
    groups = [figures[name]["rows"] for name in ("came_in", "went_out")]
    rows = [row for group in groups for row in group]
    with Tables.of(build) as tables:  # the trial may lack such a filter, and may keep faces
        hidden_ids = hidden_candidates(tables, (row["id"] for row in rows))
    showable, hide = [row for row in rows if row["id"] not in hidden_ids], faces_hider(build.spec)
    with Tables.of(trial) as tables:
        add_pictures(trial, tables, showable, trial.store.takedowns(), hide=hide)
    hidden = hidden_images(build, (row["sha256"] for row in rows if row.get("sha256")))
    for row in [*rows, *figures["not_stored"]["rows"]]:
        if "picture" not in row or row["sha256"] in hidden:
            row |= {"picture": "", "width": 0, "height": 0, "boxes": {}}


def render(figures: Values, build: Build) -> str:
    return shown(str(environment(build.stages).get_template("trial.html").render(**figures)))


def _group(tables: Tables, build: Build, where: str, same: bool) -> Values:
    """The decisions of a build about some candidates: how many, of how many images, why, and some that may be shown.

    where: SQL of which ones. same: build and trial are the same, so there are none.
    """
    takedowns = build.store.takedowns()
    own = f"subject = 'candidate' AND {where} AND {not same}"
    reasons = tables.rows(
        f"SELECT stage, reason, count(*) AS count FROM decisions WHERE {own} "
        "GROUP BY ALL ORDER BY count DESC, stage, reason"
    )
    return {
        "count": sum(row["count"] for row in reasons),
        "images": tables.column(f"SELECT count(DISTINCT fetch_id) FROM decisions WHERE {own}")[0],
        "reasons": reasons,
        "rows": tables.rows(
            f"SELECT * FROM decisions WHERE {own} AND {showable_rows(takedowns)} "
            f"ORDER BY md5('{build.spec.seed}' || id) LIMIT {SHOWN}"
        ),
    }


def _stages(build: Build, trial: Build) -> list[Values]:
    rows, kept = [], {"before": 0, "after": 0}
    shown = {*in_funnel(build, "extract", SELECTION), *in_funnel(trial, "extract", SELECTION)}
    for name in (name for name in build.stages if name in shown):
        ran = name in trial.fingerprints and trial.fingerprints[name] != build.fingerprints.get(name)
        row: Values = {"stage": name, "ran": ran}
        for when, one in (("before", build), ("after", trial)):
            counts = Counter[str]()
            for record in one.records(name):
                counts.update({fate: record.counts.get(fate, 0) for fate in FATES})
            if not counts:  # a stage that the spec does not ask for, or without partitions, lets everything pass
                counts.update(seen=kept[when], kept=kept[when])
            kept[when] = counts["kept"]
            row[when] = {fate: counts[fate] for fate in FATES}
        rows.append(row)
    return rows
