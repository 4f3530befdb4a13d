"""Gates: conditions that a build must meet before it is published.

    min_samples                      of the dataset with this build in it
    min_new, max_drop_share          of the whole build
    max_unreadable                   of each source: pages and rows on which a parser failed, many of which are a fault
                                     of ours; bytes, rows and files that damage has swallowed. Of all sources
                                     together: images on which a detector failed
    max_unaccounted                  of each source and unit of its input (files, lines, members ...): what neither a
                                     candidate nor a decision nor a name accounts for (`pipeline.rows.account`)
    max_drop.<stage>                 of each source at each stage: what the spec expects it to drop at most
    max_drift                        of each distribution of the report against the baseline (`pipeline.report.drift`)
    max_domain_share, max_fallback_share, min_regions
                                     of what was kept: not all from one host; texts that took no better one's place;
                                     boxes on the pictures
    approve                          manual approval (`approve: manual`); a refusal stands until a person approves

A tool that silently drops nearly everything is worse than one that stops: a filter set for English, a site that
changed its layout, a CDN that refuses us all look like a successful build with few rows. So each stage has an expected
share for each source, with defaults, and a stage above it fails the build with the numbers, the reasons with an example
of each, and the keys of the spec that decide, before anything is published.

What the dataset holds already (`known`) counts as dropped nowhere; the stage that recognised it is judged by the rest.

The report shows the same gates that `publish` asks. Limits: a source of fewer than `publish.judged_from` entries at a
stage is not judged there, since a share of ten says little; `min_samples` is for that. What is unaccounted for is
judged in builds of any size: nothing drops it on purpose.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_specs.build import BuildSpec, DropShares, SpecError
from pipeline.errors import ApprovalError, GateError
from pipeline.filters import ImageFilter, TextFilter, image_filters, text_filters
from pipeline.processes import observe
from pipeline.report import drift
from pipeline.report.funnel import Funnel, StageFunnel, accounts, top_reasons
from pipeline.report.unreadable import Damage, Unreadable, read_damage, read_undetected, unreadable
from pipeline.rows.account import Account
from pipeline.rows.advice import advice_for
from pipeline.rows.decisions import DropReason
from pipeline.store import approval
from pipeline.store.build import Build, Stage, Stages

FIGURE_GATES = ("max_drift", "max_domain_share", "max_fallback_share", "min_regions")
"""Gates that need the report's figures."""

SHOWN_REASONS = 3
"""Reasons of a stage that are shown, each with an example."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate. found: the figure. wanted: the limit. says: both in a sentence, of the source that stands worst.

    faults: such a sentence for each that does not hold. shares: of a stage's gate, what it dropped by source at fault.
    """

    name: str
    found: str
    wanted: str
    says: str
    faults: tuple[str, ...] = ()
    stage: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not self.faults


def names(stages: Stages) -> list[str]:
    """Every gate there is, in the order in which they are judged."""
    named = DropShares.model_fields
    of_stages = [f"max_drop.{s.name}" for s in stages.values() if s.name in named or s.max_drop is not None]
    return [
        "min_samples",
        "min_new",
        "max_drop_share",
        "max_unreadable",
        "max_unaccounted",
        *of_stages,
        *FIGURE_GATES,
        "approve",
    ]


def judge(
    spec: BuildSpec,
    stages: Stages,
    candidates: Funnel,
    captures: Funnel,
    report: dict[str, Any] | None = None,
    held: int = 0,
    undetected: tuple[int, int] = (0, 0),
    of_sources: Mapping[str, Account] | None = None,
    damage: Mapping[str, Damage] | None = None,
) -> list[Gate]:
    """Every gate but `approve`, in the order of `names`; a stage at which no source can be judged has none.

    held: samples that the dataset holds without this build.
    report: the figures of report.json, with `drift` if there is a baseline; without them FIGURE_GATES are left out, and
    so are those of them that the spec does not set. undetected, damage: what `pipeline.report.unreadable` reads.
    of_sources: their accounts.
    """
    figures = [] if report is None else list(_figure_gates(spec, report))
    gates = [*_build_gates(spec, candidates, held), *_unreadable(spec, candidates, captures, undetected, damage or {})]
    gates += _unaccounted(spec, of_sources or {})
    return [*gates, *_stage_gates(spec, stages, candidates, captures), *figures]


def judge_build(
    build: Build, candidates: Funnel, captures: Funnel, report: dict[str, Any] | None = None, held: int = 0
) -> list[Gate]:
    """`judge`, with what the build itself says of its input."""
    of_input = read_undetected(build), accounts(build), read_damage(build)
    return judge(build.spec, build.stages, candidates, captures, report, held, *of_input)


@dataclass(frozen=True)
class Verdict:
    """Verdict of the gates on a build that is to be published.

    gates: all that were judged. accepted: names of gates that may fail this once. unjudged: gates of the spec that need
    a report, where the build is without one. refusal: a person's refusal, which holds it back. waits: not approved yet.
    """

    gates: tuple[Gate, ...]
    accepted: frozenset[str] = frozenset()
    unjudged: tuple[str, ...] = ()
    refusal: approval.Word | None = None
    waits: bool = False

    @property
    def failed(self) -> list[Gate]:
        """Gates that do not hold and were not accepted."""
        return [gate for gate in self.gates if not gate.holds and gate.name not in self.accepted]

    @property
    def holds(self) -> bool:
        return not (self.failed or self.unjudged or self.refusal or self.waits)

    def fates(self) -> Iterator[tuple[str, str]]:
        """(gate, held, accepted, failed or waiting) of each."""
        for gate in self.gates:
            yield gate.name, "held" if gate.holds else "accepted" if gate.name in self.accepted else "failed"
        if self.refusal or self.waits:
            yield "approve", "failed" if self.refusal else "waiting"


def verdict(
    build: Build,
    candidates: Funnel,
    captures: Funnel,
    accept: Sequence[str] = (),
    approved: bool = False,
) -> Verdict:
    """The verdict on a build. approved: a person asked, which is what `approve: manual` waits for, as for a word in
    build.json that approves. A word that refuses holds it back all the same."""
    report = drift.read(build.out, build.build_id)
    judged = judge_build(build, candidates, captures, report, build.earlier_samples)
    needed = [] if report is not None else [name for name in FIGURE_GATES if _is_set(build.spec, name)]
    manual = build.spec.publish.approve == "manual" and "approve" not in accept
    word = approval.latest_word(build) if manual else None
    return Verdict(
        tuple(judged),
        frozenset(accept),
        tuple(name for name in needed if name not in accept),
        word if word is not None and word.verdict == "refused" else None,
        manual and word is None and not approved,
    )


def check(
    build: Build,
    candidates: Funnel,
    captures: Funnel,
    accept: Sequence[str] = (),
    approved: bool = False,
) -> None:
    """Raise GateError if the verdict does not hold; ApprovalError if it only waits for approval."""
    result = verdict(build, candidates, captures, accept, approved)
    for gate, fate in result.fates():
        observe.count("wenlan_gates", gate=gate, fate=fate)
    if not result.holds:
        waits_only = result.waits and not (result.failed or result.unjudged)
        lines = in_words(build, result)
        raise (ApprovalError if waits_only else GateError)(build.build_id, "\n".join(lines))


def in_words(build: Build, result: Verdict) -> Iterator[str]:
    """Reasons that hold a build back, one line each; what a stage dropped, and what to do."""
    place = shlex.quote(build.out)
    for gate in result.failed:
        yield from (f"gate {gate.name}: {fault}" for fault in gate.faults)
        if gate.stage:
            yield from _drop_lines(build, gate.stage, list(gate.shares))
            percent = math.ceil(100 * max(gate.shares.values()))
            yield f"  to allow this: publish: {{max_drop: {{{gate.stage}: {percent / 100:g}}}}}"
        if gate.name == "max_unaccounted":
            yield "  wenlan-data status lists the input of each source; publish: {max_unaccounted: SHARE} allows more"
    if result.failed and not any(gate.stage for gate in result.failed):
        yield from _drop_lines(build)
    for name in result.unjudged:
        yield f"gate {name}: the report of this build is missing; run wenlan-data build first"
    if result.refusal is not None:
        hint = f"approve it in wenlan-data studio {place}, or use --accept approve --because TEXT"
        yield f"gate approve: {result.refusal.line()}; {hint}"
    if result.waits:
        yield f"gate approve: the spec requires manual approval (publish.approve: manual): wenlan-data publish {place}"
    if result.failed:
        named = [*(gate.name for gate in result.failed), *(["approve"] if result.refusal else [])]
        names = " ".join(f"--accept {name}" for name in named)
        yield "to fix this: change the spec and run wenlan-data build again"
        yield f"to publish this build anyway: wenlan-data publish {place} {names} --because TEXT"


def check_acceptance(stages: Stages, accept: Sequence[str], because: str) -> None:
    """Raises SpecError for an unknown gate, an acceptance without a reason, and a reason without an acceptance."""
    for gate in accept:
        if gate not in names(stages):
            raise SpecError([f"--accept {gate}: no such gate; expected one of {', '.join(names(stages))}"])
    if accept and not because.strip():
        raise SpecError(["--accept needs --because TEXT, the reason that the manifest records"])
    if because and not accept:
        raise SpecError(["--because needs --accept GATE"])


def _build_gates(spec: BuildSpec, candidates: Funnel, held: int) -> Iterator[Gate]:
    options = spec.publish
    kept, samples, share = candidates.kept, candidates.kept + held, candidates.drop_share
    more = f" in addition to {held:,} of earlier builds" if held else ""
    says = f"{kept:,} samples were kept{more}, the spec requires {options.min_samples:,}"
    yield _gate("min_samples", f"{samples:,}", f"≥ {options.min_samples:,}", samples >= options.min_samples, says)
    if options.min_new:
        says = f"{kept:,} new samples were kept, the spec requires {options.min_new:,}"
        yield _gate("min_new", f"{kept:,}", f"≥ {options.min_new:,}", kept >= options.min_new, says)
    says = (
        f"{candidates.dropped:,} of {candidates.total:,} candidates were dropped ({share:.1%}), "
        f"the spec allows {options.max_drop_share:.1%}"
    )
    limit = f"≤ {options.max_drop_share:.1%}"
    yield _gate("max_drop_share", f"{share:.1%}", limit, share <= options.max_drop_share, says)


def _gate(name: str, found: str, wanted: str, holds: bool, says: str) -> Gate:
    return Gate(name, found, wanted, says, () if holds else (says,))


def _unreadable(
    spec: BuildSpec, candidates: Funnel, captures: Funnel, undetected: tuple[int, int], damage: Mapping[str, Damage]
) -> Iterator[Gate]:
    """One gate if anything was unreadable, whichever source and things stand worst."""
    limit, minimum = spec.publish.max_unreadable, spec.publish.judged_from
    judged = [
        own
        for source in spec.sources
        for own in unreadable(source.name, candidates, captures, damage.get(source.name, Damage()), minimum)
    ]
    if undetected[0] and undetected[1] >= minimum:
        judged.append(Unreadable(*undetected, "images (by a detector)", "all sources"))
    if not judged:
        return
    worst = max(judged, key=lambda own: own.share)
    faults = tuple(own.says(limit) for own in judged if own.share > limit)
    yield Gate("max_unreadable", f"{worst.source} {worst.share:.1%}", f"≤ {limit:.1%}", worst.says(limit), faults)


def _unaccounted(spec: BuildSpec, accounts: Mapping[str, Account]) -> Iterator[Gate]:
    """One gate if anything is unaccounted for, about the source and unit that stand worst.

    The share is of whole units, rounded up: unless the spec allows none, one stray file of a small folder is no fault,
    and two are.
    """
    limit = spec.publish.max_unaccounted
    judged: list[tuple[bool, float, str, str]] = []  # (whether at fault, share, source, sentence)
    for source, account in accounts.items():
        for unit, units in account:
            if units.unaccounted:
                allowed = math.ceil(round(limit * units.met, 6))  # 0.07 * 100 is a bit more than 7
                problem = f"{units.unaccounted:,} of {units.met:,} {unit} of {source} are unaccounted for"
                examples = f"; for example {', '.join(units.examples)}" if units.examples else ""
                says = f"{problem} ({units.share:.2%}), the spec allows {allowed:,} ({limit:.2%}){examples}"
                judged.append((units.unaccounted > allowed, units.share, source, says))
    if judged:
        _, share, worst, says = max(judged)
        faults = tuple(problem for is_fault, _, _, problem in judged if is_fault)
        yield Gate("max_unaccounted", f"{worst} {share:.2%}", f"≤ {limit:.2%}", says, faults)


def _stage_gates(spec: BuildSpec, stages: Stages, candidates: Funnel, captures: Funnel) -> Iterator[Gate]:
    """One gate per stage; what it reports is the source that stands worst against what is expected of it."""
    judged: dict[str, list[tuple[float, float, str, StageFunnel]]] = {}
    for source in spec.sources:
        for subject, funnel in (("capture", captures), ("candidate", candidates)):
            for row in funnel.of_source(source.name).stages(list(stages)):
                limit = spec.max_drop(source, row.stage, stages[row.stage].max_drop)
                if limit is not None and stages[row.stage].subject == subject and row.new >= spec.publish.judged_from:
                    judged.setdefault(row.stage, []).append((row.dropped / row.new, limit, source.name, row))
    for stage in stages:
        if stage in judged:
            yield _stage_gate(stages[stage], judged[stage])


def _stage_gate(stage: Stage, judged: list[tuple[float, float, str, StageFunnel]]) -> Gate:
    """The gate of one stage, from (dropped share, limit, source, its row of the funnel) of each source."""
    what = "pages" if stage.subject == "capture" else "candidates"
    says = {
        name: f"{stage.name} dropped {row.dropped:,} of {row.new:,} {what} of {name} ({share:.1%}), "
        f"expected at most {limit:.1%}"
        for share, limit, name, row in judged
    }
    share, limit, worst, _ = max(judged, key=lambda item: item[0] - item[1])
    over = {name: share for share, limit, name, _ in judged if share > limit}
    faults = tuple(says[name] for name in over)
    shown = f"{worst} {share:.1%}"
    return Gate(f"max_drop.{stage.name}", shown, f"≤ {limit:.1%}", says[worst], faults, stage.name, over)


def _is_set(spec: BuildSpec, name: str) -> bool:
    default = type(spec.publish).model_fields[name].default
    return bool(getattr(spec.publish, name) != default)


def _figure_gates(spec: BuildSpec, report: dict[str, Any]) -> Iterator[Gate]:
    options, kept = spec.publish, report["totals"]["kept"]
    compared = report.get("drift")
    if options.max_drift and compared and min(compared["samples"]) >= drift.FEW:
        rows = compared["distributions"]
        faults = tuple(
            f"{row['name']} has moved by {row['psi']:.2f} since {compared['baseline']}, "
            f"the spec allows {options.max_drift:g}"
            for row in rows
            if row["psi"] > options.max_drift
        )
        worst = f"{rows[0]['name']} {rows[0]['psi']:.2f}" if rows else "–"
        says = f"moved most since {compared['baseline']}: {worst}, the spec allows {options.max_drift:g}"
        yield Gate("max_drift", worst, f"≤ {options.max_drift:g}", says, faults)
    if _is_set(spec, "max_domain_share") and kept and report["image_domains"]:
        largest = report["image_domains"][0]
        share, limit = largest["count"] / kept, options.max_domain_share
        says = f"{share:.1%} of the samples come from {largest['name']}, the spec allows {limit:.1%}"
        found = f"{largest['name']} {share:.1%}"
        yield _gate("max_domain_share", found, f"≤ {limit:.1%}", share <= limit, says)
    if _is_set(spec, "max_fallback_share") and kept:
        share, limit = sum(kind["fallbacks"] for kind in report["kinds"]) / kept, options.max_fallback_share
        says = f"the primary texts of {share:.1%} of the samples are fallbacks, the spec allows {limit:.1%}"
        yield _gate("max_fallback_share", f"{share:.1%}", f"≤ {limit:.1%}", share <= limit, says)
    if options.min_regions and report["regions"]:
        first = report["regions"][0]
        says = (
            f"{first['detector']} detected {first['mean']:.1f} regions per image, "
            f"the spec requires {options.min_regions:g}"
        )
        found, holds = f"{first['mean']:.1f}", first["mean"] >= options.min_regions
        yield _gate("min_regions", found, f"≥ {options.min_regions:g}", holds, says)


def _drop_lines(build: Build, stage: str = "", sources: Sequence[str] = ()) -> Iterator[str]:
    """The most frequent reasons of a stage and some sources, or of all: an example of each, and the key of the spec
    that decides."""
    for own in top_reasons(build, stage, SHOWN_REASONS, sources):
        shown = ": ".join(filter(None, (own.url[:120], own.evidence[:120])))  # a row or a file has no URL
        example = f", for example {shown}" if shown else ""
        yield f"  {own.count:,} x {own.reason}{example}"
        if advice := _spec_key_of(build.spec, own.reason) or advice_for(DropReason(own.reason), own.evidence):
            yield f"    {advice}"


def _spec_key_of(spec: BuildSpec, reason: str) -> str:
    """Returns the filter of a spec that drops for a reason, with its option; "" if no filter does."""
    filters: list[TextFilter | ImageFilter] = [*text_filters(spec), *image_filters(spec)]
    for own in filters:
        for limit in own.limits():
            if limit.reason.value == reason:
                value = limit.least if limit.least > -math.inf else limit.most
                return f"filters: {{name: {own.plugin_name()}, {limit.option}: {value:g}}} sets the limit"
    return ""
