"""What became of a build: published, waiting for approval, refused by gates, nothing new, or ready to be published.

The report says it first, in words, and report.json under `state`. It follows from what is on disk: the build's
manifest, the gates in report.json, the spec. What does not follow, the moment of a verdict and the release in which
the build was first published, is remembered in report.json itself.

The report is written before `publish` runs, which afterwards has the page say what came of it (`page.tell`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from data_specs.shard import Manifest, parse_manifest
from pipeline.report import drift
from pipeline.store import build_json
from pipeline.store.build import Build

Verdict = Literal["published", "refused", "nothing_new", "waiting", "ready"]


class State(BaseModel):
    """What became of a build.

    since: the moment from which the verdict has stood (RFC 3339, UTC); "" for `ready`. place: BUILD, for commands.
    release: the first release with the build. revision, content_digest: those of its manifest. removed: samples were
    taken out of it since. renewed: the release in which they are gone; 0 while they are being taken out. accepted:
    gates that did not hold when it was published, each with the reason given. failing: gates that do not hold now.
    approval: the spec requires that of a person. new: samples that it adds. held: those of the dataset without it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    build_id: str
    dataset: str
    verdict: Verdict
    since: str = ""
    place: str = ""
    release: int = 0
    revision: int = 0
    content_digest: str = ""
    removed: bool = False
    renewed: int = 0
    accepted: dict[str, str] = {}
    failing: tuple[str, ...] = ()
    approval: bool = False
    new: int = 0
    held: int = 0


def manifest_of(build: Build) -> Manifest | None:
    """The manifest of a published build, None for one that is not published."""
    if not build.shards.exists("manifest.json"):
        return None
    manifest = parse_manifest(build.shards.read("manifest.json"), build.shards.at("manifest.json"))
    return manifest if manifest.build_id == build.build_id else None


def remembered(build: Build) -> State | None:
    """What the report of a build said last; None if there is none, or it is of an older wenlan."""
    report = drift.read(build.out)
    if report is None or report.get("state") is None or report["state"].get("build_id") != build.build_id:
        return None
    return State.model_validate(report["state"])


def of(build: Build, figures: Mapping[str, Any]) -> State:
    """What became of a build by now. figures: `totals` and `gates` of its report."""
    manifest, before = manifest_of(build), remembered(build)
    failing = tuple(gate["name"] for gate in figures["gates"] if not gate["holds"])
    now = State(
        build_id=build.build_id,
        dataset=build.spec.name,
        verdict="ready",
        place=build.out,
        failing=failing,
        approval=build.spec.publish.approve == "manual",
        new=figures["totals"]["kept"],
        held=build.held,
    )
    if manifest is not None:
        return _published(build, now, manifest, before)
    verdict = _unpublished(now)
    same = before is not None and (before.verdict, before.failing) == (verdict, failing)
    since = "" if verdict == "ready" else before.since if before is not None and same else build_json.now()
    return now.model_copy(update={"verdict": verdict, "since": since})


def _unpublished(now: State) -> Verdict:
    if now.failing:
        return "refused"
    if not now.new and now.held:
        return "nothing_new"
    return "waiting" if now.approval else "ready"


def _published(build: Build, now: State, manifest: Manifest, before: State | None) -> State:
    latest = build.store.releases(build.spec.name).latest()
    listed = latest.current is not None and any(own.build_id == build.build_id for own in latest.current.builds)
    newest = latest.current.release if latest.current is not None and listed else 0
    was = before if before is not None and before.verdict == "published" else None
    first = was.release if was is not None and was.release else newest
    # a build that was published all along changes only where a takedown, or a page that is gone, took samples out
    same = was is not None and was.content_digest == manifest.content_digest
    removed = was is not None and (was.removed or not same)
    renewed = was.renewed if was is not None and same else 0
    if removed and not renewed and not latest.withdrawn:
        renewed = newest
    return now.model_copy(
        update={
            "verdict": "published",
            "since": manifest.created_at if was is None else was.since,
            "release": first,
            "revision": manifest.revision,
            "content_digest": manifest.content_digest,
            "removed": removed,
            "renewed": renewed,
            "accepted": manifest.accepted,
            "held": now.held if was is None else was.held,
        }
    )
