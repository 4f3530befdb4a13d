"""`wenlan-data plan`: forecasts what a build would read, request, run, yield and cost; yield and cost come first.

Every source looks at its own input (`Source.look`), start pages and a handful of images are tried as a build would
(`pipeline.web.probe`), and the stages say what is done already. What must be mended first, such as a file that is not
there, a column that its table lacks, or an address that the guard refuses, is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.errors import SpecError
from data_specs.names import FEWEST_MEASURED
from pipeline.commands import generations
from pipeline.commands.builds import add_build_arguments, opened, say_if_new
from pipeline.commands.terminal import Commands, command, console, say, show, table_of
from pipeline.errors import SourceError

if TYPE_CHECKING:
    from data_specs.build import BuildSpec, SourceRef
    from pipeline.plugins import Plugin
    from pipeline.report.estimate import Pace
    from pipeline.sources import Source
    from pipeline.sources._look import Look
    from pipeline.store.build import Build
    from pipeline.web.probe import Probe


MOST = 10**15
"""Most candidates of an estimate."""

MOST_APART = 0.25
"""Largest share for a split that is advised: the rest is trained on."""


def add_plan(commands: Commands) -> None:
    plan = command(
        commands,
        "plan",
        _plan,
        "inspect the input and forecast what a build would run, yield and cost",
        "wenlan-data plan my-first.yaml",
        "wenlan-data plan my-first.yaml --out builds/1 --store store",
        "wenlan-data plan my-first.yaml --store store --estimate 1000000",
    )
    add_build_arguments(plan, needs_out=False)
    plan.add_argument("--stages", action="store_true", help="show every stage and how much of it is done")
    plan.add_argument("--offline", action="store_true", help="send no request to a site")
    plan.add_argument(
        "--estimate",
        type=int,
        metavar="N",
        help="cost of N candidates by stage, scaled from the last published build",
    )


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from data_specs.spec_file import OptionLines
    from pipeline import plugins
    from pipeline.sources import sources_of

    if args.estimate is not None and not 1 <= args.estimate <= MOST:
        raise SpecError([f"--estimate {args.estimate}: must be 1 to {MOST:,} candidates"])
    spec = plugins.load(args.spec)
    sources = sources_of(spec)
    looks = _looks(str(args.spec), sources)
    try:
        build = opened(args, spec)
    except SourceError as e:  # it has gone since
        raise SpecError([f"{args.spec}: {e}"]) from None
    made_from = generations.show_made_from(build) if build.made_from else {}
    probes_of = [[] if args.offline else _probes(build, *own) for own in zip(sources, looks, strict=True)]
    paces = [_pace(build, *own) for own in zip(sources, looks, probes_of, strict=True)]
    answer: dict[str, Any] = {"build_id": build.build_id, "snapshot": build.snapshot, "generation": build.generation}
    say(f"{build.build_id}:")
    # of a site its limit is known, and not its size
    at_most = any(look.start_urls and pace.pages == look.pages for look, pace in zip(looks, paces, strict=True))
    answer |= _show_forecast(build, paces, "at most" if at_most else "about", args.estimate)
    say_if_new(args, build)
    answer["sources"], refused = [], []
    for number, (source, look, probes) in enumerate(zip(sources, looks, probes_of, strict=True)):
        thresholds = _thresholds(spec, spec.sources[number])
        _show_source(source, look, thresholds, probes)
        answer["sources"].append(_as_json(source, look, probes) | {"thresholds": thresholds})
        if look.start_urls and probes and all(probe.refused for probe in probes):
            start = f"sources[{number}].start: {probes[0].url}: {probes[0].said}; {probes[0].advice}"
            refused += OptionLines(args.spec).with_locations([start])
    answer["stages"] = _stages(build, args.stages)
    answer["in_the_way"] = _in_the_way(build) if args.out else []
    tried = [probe for probes in probes_of for probe in probes]
    if tried and not any(probe.ok for probe in tried):
        say(f"warning: all URLs tried have failed ({len(tried)}); the forecast assumes that they work")
    if refused:
        raise SpecError(refused)
    return {**answer, **made_from}


def _looks(spec: str, sources: list[Source]) -> list[Look]:
    """Returns a look at each source. Raises SpecError with a line for each whose input is missing or cannot be read."""
    from data_specs.spec_file import OptionLines
    from pipeline.sources._look import Budget

    looks, problems = [], []
    for number, source in enumerate(sources):
        try:
            with console.status(f"inspecting source {source.name}"):
                looks.append(source.look(Budget()))
        except SourceError as e:
            problems.append(f"{OptionLines(spec).location_of(f'sources[{number}]')}: {e}")
    if problems:
        raise SpecError(problems)
    return looks


def _probes(build: Build, source: Source, look: Look) -> list[Probe]:
    """Start pages and images of a source, tried; nothing for a build that sends no request, or has sent it already."""
    from pipeline.sources.site import Site
    from pipeline.web.probe import probe_images, probe_pages

    if not build.asks or build.stage("fetch" if look.image_urls else "crawl").finished():
        return []
    with console.status(f"trying a few URLs of source {source.name}"):
        if isinstance(source, Site):
            return probe_pages(build.spec, source, build.store.takedowns())
        takedowns = build.store.takedowns()
        return probe_images(build.spec, [url for url in look.image_urls if not takedowns.takedown_reason(url, "")])


def _thresholds(spec: BuildSpec, source: SourceRef) -> dict[str, dict[str, Any]]:
    """Options of filters that judge a source otherwise than the spec's filters by themselves, by filter."""
    from pipeline.filters import image_filters, text_filters

    filters: list[tuple[Plugin, Plugin]] = [
        *zip(text_filters(spec), text_filters(spec, source), strict=True),
        *zip(image_filters(spec), image_filters(spec, source), strict=True),
    ]
    thresholds = {}
    for plain, own in filters:
        before, now = plain.model_dump(mode="json"), own.model_dump(mode="json")
        if changed := {name: value for name, value in now.items() if value != before[name]}:
            thresholds[own.plugin_name()] = changed
    return thresholds


def _show_source(source: Source, look: Look, thresholds: dict[str, dict[str, Any]], probes: list[Probe]) -> None:
    from pipeline.commands.options import as_yaml
    from pipeline.store.progress import size_of

    table = table_of(f"source {source.name} ({source.plugin_name()})", "", "")
    table.show_header, table.columns[1].justify = False, "left"
    counts = [str(count) for count in look.counts] + ([size_of(look.bytes)] if look.bytes else [])
    rows = [("contains", ", ".join(counts)), *look.facts]
    if look.candidates is not None:
        rows.append(("candidates", f"{look.candidates.exactness} {look.candidates.number:,}".strip()))
    if thresholds:
        own = (f"{name} {as_yaml(options).strip('{}')}" for name, options in thresholds.items())
        rows.append(("thresholds", f"for source_kind {source.source_kind}: {'; '.join(own)}"))
    for probe in probes:
        fate = "tried" if probe.ok else "refused" if probe.refused else "failed"
        rows.append((fate, f"{probe.url}: {probe.said}{f'; {probe.advice}' if probe.advice else ''}"))
    rows += [("warning", warning) for warning in look.warnings]
    for name, value in rows:
        table.add_row(name, value)
    show(table)


def _as_json(source: Source, look: Look, probes: list[Probe]) -> dict[str, Any]:
    values = dataclasses.asdict(look)
    values["facts"] = dict(look.facts)
    return {
        "name": source.name,
        "kind": source.plugin_name(),
        **{name: value for name, value in values.items() if name not in ("start_urls", "image_urls")},
        "tried": [dataclasses.asdict(probe) for probe in probes],
    }


def _pace(build: Build, source: Source, look: Look, probes: list[Probe]) -> Pace:
    """Returns the pace of a source at its slowest host, by the spec's delay or that of its robots.txt; of a site that
    STORE knows by the pages of its last crawl."""
    from pipeline.report.estimate import Pace
    from pipeline.sources.site import Site
    from pipeline.stages.crawl import pages_of_last_crawl

    egress, told = build.spec.egress, max((probe.delay_s for probe in probes), default=0.0)
    # hosts of images on archived pages are unknown
    hosts = (("", 1.0),) if look.pages and not look.start_urls else look.hosts or (("", 0.0),)
    most = 1.0 if look.start_urls else build.spec.admit.max_share_per_host  # of images, not of pages
    delay_s, share, host = max(
        ((max(egress.delay_of(host), told), min(share, most), host) for host, share in hosts),
        key=lambda own: own[0] * own[1],
    )
    candidates = None if look.candidates is None else look.candidates.number
    known = pages_of_last_crawl(build, source) if isinstance(source, Site) else None
    pages = look.pages if known is None else min(look.pages, known)
    return Pace(candidates, pages, share, delay_s, host, crawls=bool(look.start_urls))


def _stages(build: Build, shown: bool) -> dict[str, Any]:
    """State of each stage, as --json has it; printed if `shown`."""
    table = table_of("stages", "stage", "state", "partitions committed", "fingerprint")
    stages, expired = {}, build.expired
    for name, stage in build.stages.items():
        passes = [build.stage(name) for name in build.lasting_passes() if build.passes[name].stage == stage.name]
        if not passes:
            continue
        committed = sum(len(own.partitions()) for own in passes)
        todo = "expired" if expired and stage.expires else "to run"
        state = "done" if all(own.finished() for own in passes) else "partly done" if committed else todo
        stages[name] = {"state": state, "committed": committed, "fingerprint": passes[-1].fingerprint}
        table.add_row(name, state, str(committed), passes[-1].fingerprint[:12])
    if shown:
        show(table)
    return stages


def _in_the_way(build: Build) -> list[str]:
    from pipeline.publish import replacing

    blocking = replacing.in_the_way(build) or replacing.displaced_builds(build)
    for line in blocking:
        say(f"a build would refuse to start: {line}")
    return blocking


def _show_forecast(build: Build, paces: list[Pace], about: str, asked: int | None) -> dict[str, Any]:
    """Show what a build would yield, write and take, and the slowest host.

    about: stands before the figures. asked: candidates of --estimate, of which each stage is shown.
    """
    from pipeline.report.estimate import Reference, forecast
    from pipeline.store.progress import LONG_S, duration, size_of

    reference = Reference.newest(build.store, build.spec.name)
    expected = forecast(paces, reference)
    candidates = asked or expected["candidates"]
    estimate = reference.estimate(candidates) if reference and candidates is not None else None
    pairs = estimate["pairs"] if estimate else None
    pages = None if asked else expected["pages"] or None
    counts = [(pairs, "pairs"), (candidates, "candidates"), (pages, "pages")]
    say(f"  {about} {' of '.join(f'{count:,} {what}' for count, what in counts if count is not None)}")
    waits = {what: expected[f"{what}_seconds"] if build.asks else 0.0 for what in ("crawl", "fetch")}
    parts = [f"{duration(seconds)} to {what}" for what, seconds in waits.items() if seconds >= 1]
    if parts:
        host = f", slowest host {expected['slowest_host']}" if expected["slowest_host"] else ""
        say(f"  at least {' and '.join(parts)}: {_pauses(paces)}{host}")
        if host and sum(waits.values()) >= LONG_S:
            owner = expected["slowest_host"]
            fewer = ", or fewer of its images by `admit.max_share_per_host`" if waits["fetch"] >= LONG_S else ""
            say(f"  to shorten it: a faster pace in `egress.hosts`, if the owner of {owner} allows it{fewer}")
    free = _free_bytes(build.out)
    room = "" if free is None else f"{size_of(free)} free"
    if estimate is None or reference is None:
        if room:
            say(f"  {room}")
        lacks = "no published build in STORE (--store)" if reference is None else "no build of pages was published"
        say(f"  no estimate: {lacks}; run a small one to estimate time, disk and pairs")
    else:
        _show_cost(estimate, room, by_stage=asked is not None)
        if free is not None and estimate["total"]["bytes"] > free:
            say("  warning: not enough free disk space")
        other = "" if reference.name == build.spec.name else f" of dataset {reference.name}"
        say(
            f"  scaled from the {reference.candidates:,} candidates of build {reference.build_id}{other}; "
            f"inaccurate if that build is much smaller"
        )
    if build.earlier_samples:
        say(f"  the dataset already holds {build.earlier_samples:,} samples; only new pairs are added")
    _warn_of_splits(build, candidates if pairs is None else pairs)
    return {"forecast": expected, "estimate": estimate, "free_bytes": free}


def _free_bytes(out: str) -> int | None:
    """Free bytes of the disk on which a build would write; None for an object store."""
    if "://" in out:
        return None
    place = next(folder for folder in (Path(out), *Path(out).parents) if folder.exists())
    return shutil.disk_usage(place).free


def _warn_of_splits(build: Build, pairs: int | None) -> None:
    """Say which splits would be too small to measure by, if as many pairs are all that the dataset gets."""
    pairs, shards = (pairs or 0) + build.earlier_samples, build.spec.shards
    counts = {name: share * pairs for name, share in (("dev", shards.dev_share), ("val", shards.val_share)) if share}
    few = [f"{name} about {count:.0f}" for name, count in counts.items() if count < FEWEST_MEASURED]
    if few and pairs:
        enough = math.ceil(100 * FEWEST_MEASURED / pairs) / 100
        advice = f"a share of {enough:g} gives {FEWEST_MEASURED}" if enough <= MOST_APART else "the dataset is small"
        say(f"  warning: too few samples to measure: {', '.join(few)}; {advice}")


def _pauses(paces: list[Pace]) -> str:
    """Returns the pauses of a polite client, in words."""
    delays = {pace.delay_s for pace in paces if pace.pages or pace.share}
    seconds = " to ".join(f"{delay:g}" for delay in sorted({min(delays), max(delays)}))
    return f"with {seconds} s between requests to a host"


def _show_cost(estimate: dict[str, Any], room: str, by_stage: bool) -> None:
    from pipeline.store.progress import duration, size_of

    total = estimate["total"]
    written = f"{size_of(total['bytes'])} written" + (f", {room}" if room else "")
    hours, memory = duration(total["cpu_seconds"]), size_of(total["peak_bytes"])
    say(f"  {written}; {hours} of CPU time, {memory} of memory per worker")
    if by_stage:
        title = f"{estimate['candidates']:,} candidates"
        table = table_of(title, "stage", "worker hours", "CPU hours", "GPU hours", "GB written", "GB memory")
        for name, cost in {**estimate["stages"], "all": total}.items():
            hours_of = [f"{cost[key] / 3600:,.2f}" for key in ("seconds", "cpu_seconds", "gpu_seconds")]
            table.add_row(name, *hours_of, *(f"{cost[key] / 1e9:,.2f}" for key in ("bytes", "peak_bytes")))
        show(table)
