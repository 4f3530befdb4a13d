"""`wenlan-data plan`: what a build would read, ask, run, yield and cost, before it does.

Every source looks at its own input (`Source.look`), start pages and a handful of images are tried as a build would
(`pipeline.web.probe`), and the stages say what is done already. What must be mended first, such as a file that is not
there, a column that its table lacks, or an address that the guard refuses, is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from data_specs.build import BuildSpec, SpecError, load
from pipeline.commands import generations
from pipeline.commands.builds import add_build_arguments, opened
from pipeline.commands.terminal import Commands, command, console, say, show, table_of
from pipeline.errors import SourceError

if TYPE_CHECKING:
    from pipeline.report.estimate import Forecast, Pace
    from pipeline.sources import Source
    from pipeline.sources._look import Look
    from pipeline.store.build import Build
    from pipeline.web.probe import Probe


MOST = 10**15
"""Candidates of an estimate at most: larger figures cannot be computed."""

FEW = 1_000
"""Candidates of a build below which what it measured says little of larger ones."""


def add_plan(commands: Commands) -> None:
    plan = command(
        commands,
        "plan",
        _plan,
        "look at the input, and show what a build would run, yield and cost",
        "wenlan-data plan my-first.yaml",
        "wenlan-data plan my-first.yaml --out builds/1 --store store",
        "wenlan-data plan my-first.yaml --store store --estimate 1000000",
        "wenlan-data plan my-first.yaml --store store --estimate 30000000 --workers 64 --price 0.04",
    )
    add_build_arguments(plan, needs_out=False)
    plan.add_argument("--offline", action="store_true", help="send no request to a site")
    plan.add_argument(
        "--estimate", type=int, metavar="N", help="estimate the cost of N candidates from the newest published build"
    )
    plan.add_argument("--workers", type=int, metavar="M", help="CPUs that --estimate is for (default: this machine's)")
    plan.add_argument("--price", type=float, metavar="P", help="of one CPU for an hour, for --estimate")


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import plugins
    from pipeline.sources import sources_of

    _check(args)
    spec = load(args.spec)
    plugins.check(spec, str(args.spec))
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
            where = f"{args.spec}: sources[{number}].start: {probes[0].url}"
            refused.append(f"{where}: {probes[0].said}; {probes[0].advice}")
    answer: dict[str, Any] = {
        "build_id": build.build_id,
        "snapshot": build.snapshot,
        "generation": build.generation,
        "sources": found,
        "stages": _show_stages(build),
    }
    answer["in_the_way"] = _in_the_way(build) if args.out else []
    most = any(look.start_urls for look in looks)  # of a site its limit is known, and not its size
    answer["forecast"] = _show_forecast(build, paces, "at most" if most else "about")
    if tried and not any(probe.ok for probe in tried):
        say(f"warning: none of the {len(tried)} addresses that were tried could be had; the figures say what if")
    if args.estimate is not None:
        answer["estimate"] = _estimate(build, args.estimate, args.workers or os.cpu_count() or 1, args.price)
    if refused:
        raise SpecError(refused)
    return {**answer, **made_from}


def _check(args: argparse.Namespace) -> None:
    """Raises SpecError for options that make no sense."""
    if args.estimate is None and (args.workers is not None or args.price is not None):
        raise SpecError(["--workers and --price say what --estimate N is for; give it, too"])
    if args.estimate is not None and not 1 <= args.estimate <= MOST:
        raise SpecError([f"--estimate {args.estimate}: 1 to {MOST:,} candidates"])
    if args.workers is not None and args.workers < 1:
        raise SpecError([f"--workers {args.workers}: must be at least 1 CPU"])
    if args.price is not None and not 0 <= args.price < float("inf"):
        raise SpecError([f"--price {args.price:g}: must be 0 or more"])


def _looks(spec: str, sources: list[Source]) -> list[Look]:
    """Returns a look at each source. Raises SpecError with a line for each whose input is missing or cannot be read."""
    from pipeline.sources._look import Budget

    looks, problems = [], []
    for source in sources:
        try:
            with console.status(f"looking at source {source.name}"):
                looks.append(source.look(Budget()))
        except SourceError as e:
            problems.append(f"{spec}: {e}")
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
    size = look.bytes if candidates is not None and not busiest else 0
    return Pace(candidates, look.pages, hosts, busiest, delay_s, size)


def _show_stages(build: Build) -> dict[str, Any]:
    """Show what is done, and what is to run."""
    table = table_of(build.build_id, "stage", "state", "partitions committed", "fingerprint")
    stages, expired = {}, build.expired
    for name in build.stages:
        stage = build.stage(name)
        committed = len(stage.partitions())
        todo = "expired" if expired and build.stages[name].expires else "to run"
        state = "done" if stage.finished() else "partly done" if committed else todo
        stages[name] = {"state": state, "committed": committed, "fingerprint": stage.fingerprint}
        table.add_row(name, state, str(committed), stage.fingerprint[:12])
    show(table)
    return stages


def _in_the_way(build: Build) -> list[str]:
    from pipeline.publish import replacing

    blocking = replacing.in_the_way(build)
    for line in blocking:
        say(f"a build would refuse: {line}")
    return blocking


def _show_forecast(build: Build, paces: list[Pace], about: str) -> dict[str, Any]:
    """Show what the build would yield and cost, and by what that was estimated; `about` stands before the figures."""
    from pipeline.report.estimate import forecast
    from pipeline.store.progress import duration, size_of

    expected = forecast(build.store, build.spec.name, paces)
    asks = build.asks
    say(f"{about} {expected.pairs:,} pairs of {expected.candidates:,} candidates, {size_of(expected.bytes)} on disk")
    crawl, fetch = (seconds if asks else 0.0 for seconds in (expected.crawl_seconds, expected.fetch_seconds))
    parts = [f"{duration(s)} to {what}" for what, s in (("crawl", crawl), ("fetch", fetch)) if s >= 1]
    if parts:
        say(f"at least {' and '.join(parts)}: {_pauses(paces)}")
    say(f"{about} {duration(expected.cpu_seconds)} of CPU time")
    say(_basis(expected))
    return dataclasses.asdict(expected)


def _pauses(paces: list[Pace]) -> str:
    """Returns the pauses of a polite client, in words."""
    delays = {pace.delay_s for pace in paces if pace.pages or pace.busiest_host}
    seconds = " to ".join(f"{delay:g}" for delay in sorted({min(delays), max(delays)}))
    return f"{seconds} s between requests to a host"


def _basis(expected: Forecast) -> str:
    by = expected.by
    each = f"{by.kept:.0%} of the candidates kept, {by.bytes / 1000:,.0f} kB and {1000 * by.cpu_seconds:,.0f} ms each"
    each = f"{by.candidates_per_page:.1f} candidates per page, {each}"
    if by.build_id:
        return f"as measured in build {by.build_id}: {each}"
    return f"assumed, since STORE has no published build of it: {each}"


def _estimate(build: Build, candidates: int, workers: int, price: float | None) -> dict[str, Any] | None:
    """Show the estimated cost of that many candidates; None if no published build exists to measure by."""
    from pipeline.report.estimate import Machines, estimate
    from pipeline.store.progress import duration, size_of

    machines = Machines(workers, price)
    estimated = estimate(build.store, build.spec.name, candidates, build.stages, machines)
    if estimated is None:
        say(f"no estimate: {build.store.url} has no published build to measure by; publish a small one first")
        return None
    measured, total = estimated["by"], estimated["total"]
    title = f"{candidates:,} candidates, as measured in build {measured['build_id']} of {measured['snapshot']}"
    table = table_of(title, "stage", "seen", "CPU hours", "GPU hours", "GB written", "GB memory", f"hours on {workers}")
    for name, stage in {**estimated["stages"], "all": total}.items():
        hours = [f"{stage[key] / 3600:,.2f}" for key in ("cpu_seconds", "gpu_seconds")]
        sizes = [f"{stage[key] / 1e9:,.2f}" for key in ("bytes", "peak_bytes")]
        seen = f"{stage['seen']:,.0f}" if "seen" in stage else ""
        table.add_row(name, seen, *hours, *sizes, f"{stage['wall_seconds'] / 3600:,.2f}")
    show(table)
    say(
        f"about {duration(total['wall_seconds'])} on {workers:,} CPUs; {estimated['serial_share']:.1%} of the work is "
        f"steps that one worker or the driver does alone; a worker needs {size_of(total['peak_bytes'])} of memory"
    )
    if measured["candidates"] < FEW:
        few = f"warning: measured on {measured['candidates']:,} candidates, whose cost is mostly that of any build"
        say(f"{few}; publish one of some thousands for figures that hold")
    if price is not None:
        say(f"at {price:g} for a CPU and hour: about {estimated['price']:,.2f}")
    return estimated
