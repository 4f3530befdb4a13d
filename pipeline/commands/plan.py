"""`wenlan-data plan`: what a build would read, ask, run, yield and cost, before it does.

Every source looks at its own input (`Source.look`), start pages and a handful of images are tried as a build would
(`pipeline.web.probe`), and the stages say what is done already. What must be mended first, such as a file that is not
there, a column that its table lacks, or an address that the guard refuses, is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from data_specs.build import BuildSpec, SpecError
from data_specs.spec_file import Lines
from pipeline.commands import generations
from pipeline.commands.builds import add_build_arguments, opened
from pipeline.commands.terminal import Commands, command, console, say, show, table_of
from pipeline.errors import SourceError

if TYPE_CHECKING:
    from pipeline.report.estimate import Pace
    from pipeline.sources import Source
    from pipeline.sources._look import Look
    from pipeline.store.build import Build
    from pipeline.web.probe import Probe


MOST = 10**15
"""Most candidates of an estimate."""


def add_plan(commands: Commands) -> None:
    plan = command(
        commands,
        "plan",
        _plan,
        "look at the input, and show what a build would run, yield and cost",
        "wenlan-data plan my-first.yaml",
        "wenlan-data plan my-first.yaml --out builds/1 --store store",
        "wenlan-data plan my-first.yaml --store store --estimate 1000000",
    )
    add_build_arguments(plan, needs_out=False)
    plan.add_argument("--offline", action="store_true", help="send no request to a site")
    plan.add_argument(
        "--estimate",
        type=int,
        metavar="N",
        help="cost of N candidates by stage, scaled from the last published one",
    )


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import plugins
    from pipeline.sources import sources_of

    if args.estimate is not None and not 1 <= args.estimate <= MOST:
        raise SpecError([f"--estimate {args.estimate}: 1 to {MOST:,} candidates"])
    spec = plugins.load(args.spec)
    sources = sources_of(spec)
    looks = _looks(str(args.spec), sources)
    try:
        build = opened(args)
    except SourceError as e:  # it has gone since
        raise SpecError([f"{args.spec}: {e}"]) from None
    made_from = generations.show_made_from(build) if build.made_from else {}
    found, paces, refused, tried = [], [], [], []
    for number, (source, look) in enumerate(zip(sources, looks, strict=True)):
        probes = [] if args.offline else _probes(build, source, look)
        _show_source(source, look, probes)
        found.append(_as_json(source, look, probes))
        paces.append(_pace(build.spec, look, probes))
        tried += probes
        if look.start_urls and probes and all(probe.refused for probe in probes):
            start = f"sources[{number}].start: {probes[0].url}: {probes[0].said}; {probes[0].advice}"
            refused += Lines(args.spec).located([start])
    answer: dict[str, Any] = {
        "build_id": build.build_id,
        "snapshot": build.snapshot,
        "generation": build.generation,
        "sources": found,
        "stages": _show_stages(build),
    }
    answer["in_the_way"] = _in_the_way(build) if args.out else []
    most = any(look.start_urls for look in looks)  # of a site its limit is known, and not its size
    answer |= _show_forecast(build, paces, "at most" if most else "about", args.estimate)
    if tried and not any(probe.ok for probe in tried):
        say(f"warning: none of the {len(tried)} addresses that were tried could be had; the figures say what if")
    if refused:
        raise SpecError(refused)
    return {**answer, **made_from}


def _looks(spec: str, sources: list[Source]) -> list[Look]:
    """Returns a look at each source. Raises SpecError with a line for each whose input is missing or cannot be read."""
    from pipeline.sources._look import Budget

    looks, problems = [], []
    for number, source in enumerate(sources):
        try:
            with console.status(f"looking at source {source.name}"):
                looks.append(source.look(Budget()))
        except SourceError as e:
            problems.append(f"{Lines(spec).where(f'sources[{number}]')}: {e}")
    if problems:
        raise SpecError(problems)
    return looks


def _probes(build: Build, source: Source, look: Look) -> list[Probe]:
    """Start pages and images of a source, tried; nothing for a build that sends no request, or has sent it already."""
    from pipeline.sources.site import Site
    from pipeline.web.probe import probe_images, probe_pages

    if not build.asks or build.stage("fetch" if look.image_urls else "crawl").finished():
        return []
    with console.status(f"asking the web for a few addresses of source {source.name}"):
        if isinstance(source, Site):
            return probe_pages(build.spec, source, build.store.takedowns())
        takedowns = build.store.takedowns()
        return probe_images(build.spec, [url for url in look.image_urls if not takedowns.why(url, "")])


def _show_source(source: Source, look: Look, probes: list[Probe]) -> None:
    from pipeline.store.progress import size_of

    table = table_of(f"source {source.name} ({source.plugin_name()})", "", "")
    table.show_header, table.columns[1].justify = False, "left"
    counts = [str(count) for count in look.counts] + ([size_of(look.bytes)] if look.bytes else [])
    rows = [("holds", ", ".join(counts)), *look.facts]
    if look.candidates is not None:
        rows.append(("candidates", f"{look.candidates.exactness} {look.candidates.number:,}".strip()))
    for probe in probes:
        fate = "tried" if probe.ok else "refused" if probe.refused else "failed"
        rows.append((fate, f"{probe.url}: {probe.said}{f'; {probe.advice}' if probe.advice else ''}"))
    rows += [("warning", warning) for warning in look.warnings]
    for name, value in rows:
        table.add_row(name, value)
    show(table)


def _as_json(source: Source, look: Look, probes: list[Probe]) -> dict[str, Any]:
    """A source as --json has it."""
    values = dataclasses.asdict(look)
    values["facts"] = dict(look.facts)
    return {
        "name": source.name,
        "kind": source.plugin_name(),
        **{name: value for name, value in values.items() if name not in ("start_urls", "image_urls")},
        "tried": [dataclasses.asdict(probe) for probe in probes],
    }


def _pace(spec: BuildSpec, look: Look, probes: list[Probe]) -> Pace:
    """Returns the pace of a source, at the spec's delay or that of its robots.txt."""
    from pipeline.report.estimate import Pace

    delay_s = max([spec.egress.delay_s, *(probe.delay_s for probe in probes)])
    hosts = next((count.number for count in look.counts if count.what == "hosts"), 1)
    candidates = None if look.candidates is None else look.candidates.number
    busiest = 1.0 if look.pages and not look.start_urls else look.busiest_host  # hosts of images in WARCs are unknown
    return Pace(candidates, look.pages, hosts, busiest, delay_s)


def _show_stages(build: Build) -> dict[str, Any]:
    """Show what is done, and what is to run."""
    table = table_of(build.build_id, "stage", "state", "partitions committed", "fingerprint")
    stages, expired = {}, build.expired
    for name, stage in build.stages.items():
        passes = [build.stage(name) for name in build.lasting() if build.passes[name].stage == stage.name]
        if not passes:
            continue
        committed = sum(len(own.partitions()) for own in passes)
        todo = "expired" if expired and stage.expires else "to run"
        state = "done" if all(own.finished() for own in passes) else "partly done" if committed else todo
        stages[name] = {"state": state, "committed": committed, "fingerprint": passes[-1].fingerprint}
        table.add_row(name, state, str(committed), passes[-1].fingerprint[:12])
    show(table)
    return stages


def _in_the_way(build: Build) -> list[str]:
    from pipeline.publish import replacing

    blocking = replacing.in_the_way(build) or replacing.displaced(build)
    for line in blocking:
        say(f"a build would refuse: {line}")
    return blocking


def _show_forecast(build: Build, paces: list[Pace], about: str, asked: int | None) -> dict[str, Any]:
    """Show how many candidates a build would see, what politeness costs, and what a published build says of the rest.

    about: stands before the figures. asked: candidates of --estimate, of which each stage is shown.
    """
    from pipeline.report.estimate import Reference, forecast
    from pipeline.store.progress import duration

    reference = Reference.newest(build.store, build.spec.name)
    expected = forecast(paces, reference)
    counts = [f"{about} {expected[what]:,} {what}" for what in ("pages", "candidates") if expected[what] is not None]
    say(", ".join(counts[not expected["pages"] :]))
    waits = {what: expected[f"{what}_seconds"] if build.asks else 0.0 for what in ("crawl", "fetch")}
    parts = [f"{duration(seconds)} to {what}" for what, seconds in waits.items() if seconds >= 1]
    if parts:
        say(f"at least {' and '.join(parts)}: {_pauses(paces)}")
    candidates = asked or expected["candidates"]
    if reference is None:
        say(f"no estimate: {build.store.url} has no published build; a first, small one will tell time, disk and pairs")
    estimate = reference.estimate(candidates) if reference and candidates is not None else None
    if estimate:
        _show_estimate(estimate, about, by_stage=asked is not None)
    return {"forecast": expected, "estimate": estimate}


def _pauses(paces: list[Pace]) -> str:
    """Returns the pauses of a polite client, in words."""
    delays = {pace.delay_s for pace in paces if pace.pages or pace.busiest_host}
    seconds = " to ".join(f"{delay:g}" for delay in sorted({min(delays), max(delays)}))
    return f"{seconds} s between requests to a host"


def _show_estimate(estimate: dict[str, Any], about: str, by_stage: bool) -> None:
    from pipeline.store.progress import duration, size_of

    by, total = estimate["by"], estimate["total"]
    if by_stage:
        title = f"{estimate['candidates']:,} candidates"
        table = table_of(title, "stage", "worker hours", "CPU hours", "GPU hours", "GB written", "GB memory")
        for name, cost in {**estimate["stages"], "all": total}.items():
            hours = [f"{cost[key] / 3600:,.2f}" for key in ("seconds", "cpu_seconds", "gpu_seconds")]
            table.add_row(name, *hours, *(f"{cost[key] / 1e9:,.2f}" for key in ("bytes", "peak_bytes")))
        show(table)
    say(
        f"{about} {estimate['pairs']:,} pairs of {estimate['candidates']:,} candidates, {size_of(total['bytes'])} "
        f"written, {duration(total['cpu_seconds'])} of CPU time, {size_of(total['peak_bytes'])} of memory for a worker"
    )
    say(
        f"scaled in step with the candidates from build {by['build_id']}, which had {by['candidates']:,}: "
        "a small build says little of a large one"
    )
