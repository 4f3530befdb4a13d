"""State of a build: published, waiting for approval, refused by gates, nothing new, or ready to be published.

The report says it first, in words, and report.json under `state`. It follows from what is on disk: the build's
manifest, the gates in report.json, the spec. What does not follow, the moment of a verdict and the release in which
the build was first published, is remembered in report.json itself.

The report is written before `publish` runs, which afterwards updates the page (`page.update_state`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from data_specs.release import ReleaseName
from data_specs.shard import Manifest
from pipeline.report import drift
from pipeline.store import approval, build_json
from pipeline.store.build import Build
from pipeline.store.dataset import manifest_in

Verdict = Literal["published", "refused", "nothing_new", "waiting", "ready"]


class BuildState(BaseModel):
    """State of a build.

    since: the moment from which the verdict has stood (RFC 3339, UTC); "" for `ready`. place: BUILD, for commands.
    release: the first release with the build. revision, content_digest: those of its manifest. removed: samples were
    taken out of it since. renewed: the release in which they are gone; 0 while they are being taken out. accepted:
    gates that did not hold when it was published, each with the reason given. failing: gates that do not hold now.
    approval: the spec requires that of a person. word: what a person said last (`pipeline.store.approval.Word`), empty
    if nothing was said. new: samples that it adds. held: those of the dataset without it, as
    far as the report knew. total: samples of `release`, from which more may have been taken out.
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
    word: dict[str, str] = {}
    new: int = 0
    held: int = 0
    total: int = 0


def manifest_of(build: Build) -> Manifest | None:
    """The manifest of a published build, None for one that is not published."""
    manifest = manifest_in(build.shards)
    return manifest if manifest is not None and manifest.build_id == build.build_id else None


def present_state(build: Build, figures: Mapping[str, Any]) -> BuildState:
    """Present state of a build. figures: `totals`, `gates` and `dataset` of its report."""
    manifest, last = manifest_of(build), drift.read(build.out, build.build_id)
    before = None if last is None else BuildState.model_validate(last["state"])
    word = approval.latest_word(build)
    failing = tuple(gate["name"] for gate in figures["gates"] if not gate["holds"])
    now = BuildState(
        build_id=build.build_id,
        dataset=build.spec.name,
        verdict="ready",
        place=build.out,
        failing=failing,
        approval=build.spec.publish.approve == "manual",
        word={} if word is None else dataclasses.asdict(word),
        new=figures["totals"]["kept"],
        held=earlier_samples(figures),
    )
    if manifest is not None:
        return _published(build, now, manifest, before)
    verdict = _unpublished(now, build.earlier_samples)
    same = before is not None and (before.verdict, before.failing, before.word) == (verdict, failing, now.word)
    since = "" if verdict == "ready" else before.since if before is not None and same else build_json.now()
    return now.model_copy(update={"verdict": verdict, "since": since})


def earlier_samples(figures: Mapping[str, Any]) -> int:
    """Number of samples that the dataset has besides those of a build, by the build's report."""
    dataset = figures["dataset"]
    return int(dataset["after"]["all"] - dataset["own"]["all"]) if dataset else 0


def lists(release: ReleaseName | Manifest, build: Build) -> bool:
    """True if a build is in a release."""
    return any(own.build_id == build.build_id for own in release.builds)


def _samples(build: Build, number: int) -> int:
    """Samples of a release; 0 if it is no longer kept."""
    releases = build.store.releases(build.spec.name)
    current = releases.latest().current
    if current is not None and current.release == number:
        return sum(current.samples.values())
    return sum(releases.read(number).samples.values()) if number in releases.numbers() else 0


def first_release(build: Build) -> int:
    """The first release of the unbroken line up to the newest that has a build; 0 if the newest lacks it.

    Reads manifests: for a build whose report does not remember it.
    """
    releases = build.store.releases(build.spec.name)
    current = releases.latest().current
    if current is None or not lists(current, build):
        return 0
    number, kept = current.release, set(releases.numbers())
    while number - 1 in kept and lists(releases.read(number - 1), build):
        number -= 1
    return number


def _unpublished(now: BuildState, held: int) -> Verdict:
    if now.failing:
        return "refused"
    if not now.new and held:
        return "nothing_new"
    return "waiting" if now.approval and now.word.get("verdict") != "approved" else "ready"


def _published(build: Build, now: BuildState, manifest: Manifest, before: BuildState | None) -> BuildState:
    latest = build.store.releases(build.spec.name).latest()
    newest = latest.current.release if latest.current is not None and lists(latest.current, build) else 0
    was = before if before is not None and before.verdict == "published" else None
    first = was.release if was is not None and was.release else newest
    if before is None:
        first = first_release(build)
    total = was.total if was is not None and was.total else _samples(build, first)
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
            "total": total,
            "removed": removed,
            "renewed": renewed,
            "accepted": manifest.accepted,
        }
    )
