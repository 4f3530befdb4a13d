"""What another spec would let in, and what it would leave out: a trial (`pipeline.opening.open_trial`) beside its
build.

Both are compared where a trial ends: by what has passed the last stage before packing. What came in has a Decision of
the build that says why it was left out, and what went out has one of the trial. Candidates whose images nobody has
fetched yet are counted apart: what becomes of them a trial cannot know.

The page is one file that loads nothing, like the report.

Limits: 32 bytes of memory per sample of both. Pictures are a sample of SHOWN each, the same every time.
"""

from __future__ import annotations

import heapq
import importlib.metadata
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import DropReason, order_key
from pipeline.report.diff import changes
from pipeline.report.fates import HIDDEN
from pipeline.report.page import environment
from pipeline.report.pictures import add_pictures
from pipeline.report.section import Values
from pipeline.report.unshown import faces_hider, unshown_candidates, unshown_images
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.pairs import PAIRS, survivors
from pipeline.store.stage import in_funnel
from pipeline.urls import shown

SHOWN = 60
"""Rows of each group that the page shows."""

FATES = ("seen", "kept", "dropped", "known")

Ids = npt.NDArray[np.void]
"""Distinct candidate ids, sorted; 32 bytes each."""


def compare(build: Build, trial: Build) -> Values:
    """The figures of a finished trial beside those of the build that it is on.

    `stages`: name, whether it ran, and FATES `before` and `after`. `came_in`, `went_out`: `count`, `reasons` (the stage
    and the reason for which the other one left it out, and how many), and `rows`, decisions of the other one.
    `not_stored`: how many candidates, of how many images, would have to be fetched before they could come in, and some
    of them.
    """
    before, after = _kept(build), _kept(trial)
    came, went = np.setdiff1d(after, before, assume_unique=True), np.setdiff1d(before, after, assume_unique=True)
    missing = _Group(trial, lambda table: pc.equal(table["reason"], DropReason.NOT_STORED.value), build)
    return {
        "build": {"id": build.build_id, "name": build.spec.name, "snapshot": build.snapshot},
        "wenlan": importlib.metadata.version("wenlan"),
        "spec": changes(build.spec.model_dump(mode="json"), trial.spec.model_dump(mode="json")),
        "kept": {"before": len(before), "after": len(after)},
        "stages": _stages(build, trial),
        "came_in": _Group(build, _of(came), trial).values(),
        "went_out": _Group(trial, _of(went), build).values(),
        "not_stored": {"count": missing.count, "images": len(missing.images), "rows": missing.rows},
    }


def show_pictures(figures: Values, build: Build, trial: Build) -> None:
    """Set the `picture` of each row of a comparison that may be shown (see `pipeline.report.pictures`)."""
    groups = [figures[name]["rows"] for name in ("came_in", "went_out")]
    rows = [row for group in groups for row in group]
    unshown = unshown_candidates(build, (row["id"] for row in rows))  # the trial may have no such filter
    shown, hide = [row for row in rows if row["id"] not in unshown], faces_hider(build.spec)  # it may keep faces, too
    add_pictures(trial, shown, trial.store.takedowns(), hide=hide)
    hidden = unshown_images(build, (row["sha256"] for row in rows if row.get("sha256")))
    for row in [*rows, *figures["not_stored"]["rows"]]:
        if "picture" not in row or row["sha256"] in hidden:
            row |= {"picture": "", "width": 0, "height": 0, "boxes": {}}


def render(figures: Values, build: Build) -> str:
    """The page of a comparison with pictures."""
    return shown(str(environment(build.stages).get_template("trial.html").render(**figures)))


def _kept(build: Build) -> Ids:
    """What has passed the last stage of a trial."""
    ids = [
        bytes.fromhex("".join(survivors(build, partition, ["candidate_id"])["candidate_id"].to_pylist()))
        for partition in build.stage(PAIRS).partitions()
    ]
    return np.sort(np.frombuffer(b"".join(ids), "V32"))


def _of(ids: Ids) -> Callable[[pa.Table], pa.Array]:
    """A mask over decisions: those about one of these candidates, each once, however often it was read."""
    wanted = pa.array([bytes(name).hex() for name in ids], pa.string())
    again = DropReason.SAME_CANDIDATE.value
    return lambda table: pc.and_(pc.is_in(table["id"], wanted), pc.not_equal(table["reason"], again))


class _Group:
    """The decisions of a build about some candidates."""

    def __init__(self, build: Build, mask: Callable[[pa.Table], pa.Array], other: Build) -> None:
        self.count, self.images, self._reasons = 0, set[str](), Counter[tuple[str, str]]()
        self.rows: list[dict[str, Any]] = []
        """Some that may be shown, one per image, by a keyed hash of their ids."""
        takedowns, seed = build.store.takedowns(), build.spec.seed
        if build.fingerprints == other.fingerprints:  # nothing has changed
            return
        for table in Frames.of(build).tables("decisions"):
            own = table.filter(pc.and_(pc.equal(table["subject"], "candidate"), mask(table))).to_pylist()
            self.count += len(own)
            self.images |= {row["fetch_id"] for row in own}
            self._reasons.update((row["stage"], row["reason"]) for row in own)
            shown = [row for row in own if row["reason"] not in HIDDEN and not takedowns.names(row)]
            self.rows = heapq.nsmallest(SHOWN, [*self.rows, *shown], key=lambda row: order_key(row["id"], seed))

    def values(self) -> Values:
        reasons = [{"stage": s, "reason": r, "count": n} for (s, r), n in self._reasons.most_common()]
        return {"count": self.count, "reasons": reasons, "rows": self.rows}


def _stages(build: Build, trial: Build) -> list[Values]:
    rows, kept = [], {"before": 0, "after": 0}
    last = list(trial.fingerprints)[-1]
    shown = {*in_funnel(build, "extract", last), *in_funnel(trial, "extract", last)}
    for name in (name for name in build.stages if name in shown):
        row: Values = {"stage": name, "ran": trial.fingerprints[name] != build.fingerprints[name]}
        for when, one in (("before", build), ("after", trial)):
            counts = Counter[str]()
            for record in one.stage(name).records():
                counts.update({fate: record.counts.get(fate, 0) for fate in FATES})
            if not counts:  # a stage without partitions lets everything pass
                counts.update(seen=kept[when], kept=kept[when])
            kept[when] = counts["kept"]
            row[when] = {fate: counts[fate] for fate in FATES}
        rows.append(row)
    return rows
