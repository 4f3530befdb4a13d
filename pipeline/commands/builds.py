"""Commands of `wenlan-data` that work on one build: build, status, report, explain."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_specs.command.command_line import completed_by, plugin_files
from data_specs.command.extras import require
from data_specs.errors import SpecError
from data_specs.names import FEWEST_MEASURED, LATEST, MANIFEST
from pipeline.commands import generations
from pipeline.commands.terminal import Bars, Commands, add_spec, command, console, say, show, table_of
from pipeline.errors import ApprovalError, GateError, NothingNew, PipelineError, StoreError

if TYPE_CHECKING:
    from rich.table import Table

    from data_specs.build import BuildSpec
    from data_specs.shard import Manifest
    from pipeline.store.build import Build
    from pipeline.store.build_json import Result

MOST_HOSTS = 10
"""Hosts that `status` shows; --json has all."""

FATES = ("seen", "kept", "dropped", "known")
"""Columns of the funnel: seen = kept + dropped + known."""

BESIDE_EXAMPLES = 34
"""Characters of a line that the rules of the table of reasons, its stages and its counts take."""

SHOWN_CHARACTERS = 80
"""Length at which `explain` cuts a value."""


def add_build(commands: Commands) -> None:
    build = command(
        commands,
        "build",
        _build,
        "run a build, or resume one",
        "wenlan-data build my-first.yaml --out builds/1 --store store",
        "wenlan-data build my-first.yaml --out builds/1 --until extract",
        "wenlan-data build my-first.yaml --out s3://bucket/builds/1 --store s3://bucket/store --address auto",
    )
    build.epilog = generations.EXAMPLES
    add_build_arguments(build, needs_out=True)
    build.add_argument(
        "--address", default="", metavar="A", help="a Ray cluster's address (default: Ray on this machine)"
    )
    build.add_argument("--workers", type=int, default=0, metavar="N", help="CPUs of the local Ray (default: all)")
    until = build.add_argument("--until", default="publish", metavar="STAGE", help="last stage to run")
    completed_by(until, lambda **_: [*plugin_files(Path(__file__).parents[1] / "stages"), "publish"])
    build.add_argument(
        "--replace",
        action="store_true",
        help="replace another dataset, snapshot, STORE or published spec in DIR, or the same --snapshot elsewhere",
    )
    build.add_argument("--no-crawl", action="store_true", help="use stored captures only; send no request to a site")


def _build(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run
    from pipeline.cluster import joined
    from pipeline.stages import STAGES

    until = args.until
    if until not in (*STAGES, "publish"):
        raise SpecError([f"--until {until}: no such stage; expected one of {', '.join((*STAGES, 'publish'))}"])
    check_workers(args)
    require("ray")  # before BUILD and STORE are made
    build = _opened_to_write(args)
    started = time.monotonic()
    with joined(args.address):
        results: list[Result] = []
        last = "report" if until == "publish" else until
        with Bars() as bars:
            options = {"address": args.address, "workers": args.workers, "crawls": not args.no_crawl}
            for result in run.run(build, until=last, progress=bars, **options):
                results.append(result)
                bars.done(result)
        show(_funnel(results))
        raw = _show_input(build)
        reasons = _show_reasons(build, results)
        too_deep = sum(result.funnel.get("too_deep", 0) for result in results)
        if too_deep:
            say(f"crawl: skipped {too_deep:,} linked pages beyond the max_depth of their site")
        for result in results:
            _say_lost(result.name, result.funnel)
        if last == "report":
            say(f"report: {build.folder.at('report/index.html')}")
        answer: dict[str, Any] = {"build_id": build.build_id, "out": build.out, "published": False}
        if until == "publish":
            answer |= _publish_unless_manual(build)
    if answer["published"]:
        say(f"dataset: {answer['manifest']}")
    if answer["published"] and build.made_from:
        answer["diff"] = generations.show_change(build)
    answer["stages"] = [dataclasses.asdict(result) for result in results]
    answer["reasons"] = reasons
    answer["input"] = raw
    answer["seconds"] = round(time.monotonic() - started, 2)
    return answer


def check_workers(args: argparse.Namespace) -> None:
    """Raises SpecError for an invalid number of workers; warns if --address makes it ineffective."""
    if args.workers < 0:
        raise SpecError([f"--workers {args.workers}: must be a number of CPUs, or 0 for all"])
    if args.workers and args.address:
        say("--workers is ignored: it applies to Ray on this machine only, not to the cluster at --address")


def _publish_unless_manual(build: Build) -> dict[str, Any]:
    """Publish a finished build, unless its spec requires manual approval; one that is published stays so.

    Raises GateError for a gate that does not hold, whether a person is asked or not.
    """
    from pipeline.publish import release

    try:
        manifest = release.publish(build)
    except ApprovalError:
        say("not published: the spec requires manual approval (publish.approve: manual)")
        say(f"read the report, then run: wenlan-data publish {shlex.quote(build.out)}")
        return left_out(build, vanished=False)  # an opt-out is not delayed
    except NothingNew as e:
        say(f"not published: {e.message}")
        return {"nothing_new": True, **left_out(build)}
    except GateError:
        honour_opt_outs(build)
        raise
    return published(build, manifest)


def published(build: Build, manifest: Manifest) -> dict[str, Any]:
    """Returns a newly published build and what it removed from earlier ones, for --json; prints both, too."""
    facts = {"revision": manifest.revision, "samples": manifest.samples, "content_digest": manifest.content_digest}
    return {"published": True, **facts, "manifest": build.shards.at(MANIFEST), **left_out(build), **released(build)}


def honour_opt_outs(build: Build) -> None:
    """Remove what a build found opted out from earlier builds, though a gate holds the build itself back."""
    try:
        left_out(build, vanished=False)
    except StoreError as e:  # the gate is the fault that the command ends with
        say(str(e))


def left_out(build: Build, vanished: bool = True) -> dict[str, Any]:
    """Remove what a build found opted out or vanished from earlier builds of its dataset; printed and returned."""
    from pipeline.takedown.vanished import leave_out

    lost = leave_out(build, vanished)
    if lost["samples"]:
        what = f"{lost['opted_out']:,} URLs opted out, {lost['vanished']:,} no longer exist at the source"
        say(f"removed {lost['samples']:,} samples of earlier builds: {what}")
        if build.store.releases(build.spec.name).latest().current is not None:
            released(build)
    return {"left_out": lost}


def released(build: Build) -> dict[str, Any]:
    """Returns the newest release of a build's dataset, for --json; prints it, too."""
    releases = build.store.releases(build.spec.name)
    current = releases.latest().current
    assert current is not None  # the build was published
    path, samples = releases.folder.at(current.manifest), sum(current.samples.values())
    builds = "1 build" if len(current.builds) == 1 else f"{len(current.builds)} builds"
    say(f"release {current.release} of {build.spec.name}: {samples:,} samples of {builds}, {path}")
    counts = {split: current.samples.get(split, 0) for split in ("dev", "val")}
    if few := [f"{split} {count}" for split, count in counts.items() if 0 < count < FEWEST_MEASURED]:
        advice = "splits never change: larger shards.dev_share and val_share count in a dataset's first build"
        say(f"warning: too few samples to measure (at least {FEWEST_MEASURED}): {', '.join(few)}; {advice}")
    return {
        "dataset": build.spec.name,
        "release": current.release,
        "release_manifest": path,
        "latest": releases.folder.at(LATEST),
        "dataset_samples": current.samples,
    }


def _funnel(results: list[Result]) -> Table:
    """A row for each stage that has partitions."""
    table = table_of("funnel", "stage", "seen", "kept", "dropped", "known", "partitions run", "seconds")
    for r in results:
        if not r.partitions:
            continue
        counts = [f"{r.funnel[k]:,}" if k in r.funnel else "" for k in FATES]
        table.add_row(r.name, *counts, "-" if r.skipped else f"{r.ran}/{r.partitions}", f"{r.seconds:.1f}")
        if missed := r.funnel.get("unaccounted"):
            table.add_row("unaccounted", "", "", f"{missed:,}")
    return table


def _show_input(build: Build) -> dict[str, Any]:
    """Show what became of the raw input of each source, and places of what is unaccounted for; returned for --json."""
    from pipeline.report.funnel import accounts

    found = accounts(build)
    rows = [(name, unit, units) for name, account in found.items() for unit, units in account]
    if not rows:
        return {}
    table = table_of("raw input", "source", "unit", "met", "candidates", "decisions", "other", "unaccounted")
    table.columns[1].justify = "left"
    for name, unit, units in rows:
        counts = (units.met, units.candidates, units.decisions, units.named.total(), units.unaccounted)
        table.add_row(name, unit, *(f"{count:,}" for count in counts))
    show(table)
    for name, unit, units in rows:
        if units.named:
            say(f"{name}: other {unit}: {units.others()}")
        if missed := units.missed(unit):
            say(f"{name}: {missed}")
    return {name: account.as_json() for name, account in found.items()}


def _show_reasons(build: Build, results: list[Result]) -> list[dict[str, Any]]:
    """Show the most frequent drop reasons of each stage, with examples; returned for --json."""
    from pipeline.report.funnel import top_reasons

    dropping = [r.name for r in results if r.funnel.get("dropped") or r.funnel.get("pages_dropped")]
    reasons = [reason for name in dropping for reason in top_reasons(build, name)]
    if not reasons:
        return []
    table = table_of("most frequent drop reasons", "stage", "reason", "count", "example")
    for number in (1, 3):
        table.columns[number].justify = "left"
    widest = max(len(r.reason) for r in reasons)
    if console.is_terminal:  # the example is cut where the line ends; the other columns are never narrowed for it
        table.columns[3].overflow, table.columns[3].no_wrap = "ellipsis", True
        table.columns[3].max_width = max(20, console.width - widest - BESIDE_EXAMPLES)
    for at, r in enumerate(reasons):
        example = ": ".join(part for part in (r.url, r.evidence) if part)
        new = not at or reasons[at - 1].stage != r.stage
        table.add_row(r.stage if new else "", r.reason, f"{r.count:,}", example)
    show(table)
    return [dataclasses.asdict(reason) for reason in reasons]


def _say_lost(stage: str, counts: dict[str, int]) -> None:
    """Say what damage cost the stage's input, if it cost any."""
    nouns = {"lost_parts": "damaged parts", "lost_bytes": "bytes lost", "lost_rows": "rows in them"}
    nouns["lost_files"] = "broken files"
    found = [f"{counts[name]:,} {noun}" for name, noun in nouns.items() if counts.get(name)]
    if found:
        say(f"{stage}: {', '.join(found)}; the report lists the files")


def add_build_arguments(parser: argparse.ArgumentParser, needs_out: bool) -> None:
    """Adds the arguments that select a build; `opened` reads them."""
    add_spec(parser)
    parser.add_argument("--out", required=needs_out, default="", metavar="DIR", help="folder of the build")
    parser.add_argument(
        "--store", default="", metavar="DIR", help="STORE, shared by all builds (default: the build's, or OUT/store)"
    )
    parser.add_argument("--snapshot", default="", metavar="ID", help="ID of this crawl (default: date and time, UTC)")
    parser.add_argument(
        "--generation",
        choices=["new"],
        help="rebuild the whole dataset from stored captures and images, without requests to sites",
    )


def opened(args: argparse.Namespace, spec: BuildSpec | None = None) -> Build:
    """Opens the build of a spec, new or resumed. spec: args.spec where it is read already.

    Raises SpecError, SourceError and StoreError.
    """
    from pipeline import opening, plugins

    again = args.generation == "new"
    spec = spec or plugins.load(args.spec)
    return opening.open_build(spec, args.out or "wenlan-plan", args.store, args.snapshot, new_generation=again)


def say_if_new(args: argparse.Namespace, build: Build) -> None:
    """Warn that a STORE does not exist yet: its address may be mistyped, its disk not mounted, or none was given."""
    if build.store.version():
        return
    if build.store.url != build.folder.at("store"):
        say(f"STORE {build.store.url} does not exist yet; a build creates it")
    elif args.out:
        say(f"no --store: builds into other folders will not know this one, whose STORE is {build.store.url}")


def _opened_to_write(args: argparse.Namespace) -> Build:
    """Returns the opened build. Raises SpecError if it would replace results in its folder unasked."""
    from pipeline.files.folder import place_of
    from pipeline.publish import dataset, replacing
    from pipeline.sources import sources_of
    from pipeline.sources.folder import FolderOfImages

    build = opened(args)
    say_if_new(args, build)
    for source in sources_of(build.spec):
        read = place_of(source.resolve(source.path)) if isinstance(source, FolderOfImages) else ""
        if read and f"{place_of(build.out)}/".startswith(f"{read}/"):
            raise SpecError([f"--out {build.out}: is in the folder that source {source.name} reads; use one outside"])
    dataset.check_faces(build)  # a publish would refuse it too, hours later
    blocking, displaced = replacing.in_the_way(build), replacing.displaced_builds(build)
    if not args.replace and (blocking or displaced):
        raise SpecError(blocking or displaced)
    if displaced:
        say(f"--replace: {displaced[0]}; publishing this build removes its samples from the dataset")
    if not blocking:
        return build
    say(f"--replace: {blocking[0]}; withdrawing it")
    replacing.withdraw(build)
    return opened(args)  # again, since what it is deduplicated against has changed


def add_status(commands: Commands) -> None:
    status = command(
        commands,
        "status",
        _status,
        "show the progress of a build",
        "wenlan-data status builds/1",
        "wenlan-data status s3://bucket/builds/1 --json",
    )
    status.add_argument("build", metavar="BUILD", help="folder of the build")


def _status(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import opening
    from pipeline.store import build_json

    build = opening.reopen(args.build)
    status = build_json.status(build)
    table = table_of(status["build_id"], "stage", "state", "partitions", *FATES[1:], "seconds", "CPU seconds")
    for name, stage in status["stages"].items():
        of = "" if stage["partitions"] is None else f"{stage['committed']}/{stage['partitions']}"
        funnel, cost = stage.get("funnel", {}), stage.get("cost", {})
        counts = [f"{funnel[k]:,}" if k in funnel else "" for k in FATES[1:]]
        took = [f"{v:.1f}" if v is not None else "" for v in (stage.get("seconds"), cost.get("cpu_seconds"))]
        table.add_row(name, stage["state"], of, *counts, *took)
        if missed := funnel.get("unaccounted"):
            table.add_row("unaccounted", "", "", "", f"{missed:,}")
    show(table)
    for name, stage in status["stages"].items():
        _say_lost(name, stage.get("funnel", {}))
    status["input"] = _show_input(build)
    if status["running"]:
        say(_activity(status))
        _show_hosts(status["running"]["hosts"], status["running"]["pauses"])
    damaged = f", but its manifest cannot be read: {status['damaged']}" if status["damaged"] else ""
    finished = all(stage["state"] == "done" for stage in status["stages"].values())
    why = "; wenlan-data publish says why" if finished and not status["published"] else ""
    say(f"published: {'yes' if status['published'] else 'no'}{damaged}{why}")
    return status


def _activity(status: dict[str, Any]) -> str:
    """Returns the running stage, or the stage at which the build stopped."""
    running = status["running"]
    if status["alive"] is False:
        return f"stopped in {running['name']}, no process is running; run the same build command again to resume"
    return f"{running['name']} has been running since {running['since']}: {running['line']}"


def _show_hosts(hosts: dict[str, dict[str, float]], pauses: list[dict[str, Any]]) -> None:
    """Show the hosts that requests go to right now, the busiest first, and those that are paused."""
    from pipeline.store.progress import LONG_S, HostPause, duration

    for pause in pauses[:MOST_HOSTS]:
        say(HostPause(**pause).line())
    if not hosts:
        return
    table = table_of(f"{len(hosts)} active hosts", "host", "per second", "kept", "failed", "MB", "left")
    for host, seen in list(hosts.items())[:MOST_HOSTS]:
        counts = [f"{seen[name]:,.0f}" for name in ("kept", "failed")]
        table.add_row(
            host, f"{seen['per_second']:.1f}", *counts, f"{seen['bytes'] / 1e6:.1f}", duration(seen["left_seconds"])
        )
    show(table)
    if max(seen["left_seconds"] for seen in hosts.values()) >= LONG_S:
        say("to shorten the wait: a faster pace in `egress.hosts`, if the host's owner allows it")


def add_report(commands: Commands) -> None:
    report = command(
        commands,
        "report",
        _report,
        "locate the quality report of a build, compare it with another, or index many",
        "wenlan-data report builds/1",
        "wenlan-data report builds/2 --baseline builds/1",
        "wenlan-data report --index builds",
    )
    report.add_argument("build", nargs="?", default="", metavar="BUILD", help="folder of the build")
    report.add_argument("--baseline", default="", metavar="BUILD", help="rewrite the report, compared with this build")
    report.add_argument("--index", default="", metavar="DIR", help="write DIR/index.html, listing all builds in DIR")


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import opening
    from pipeline.report import page

    if bool(args.build) == bool(args.index) or (args.index and args.baseline):
        raise SpecError(["report: give a BUILD (with --baseline to compare it), or --index DIR"])
    if args.index:
        from pipeline.report import index as report_index

        path, builds = report_index.write(args.index)
        say(f"index of {builds} builds: {path}")
        return {"index": path, "builds": builds}
    build = opening.reopen(args.build)
    for name in ("index.html", "report.json"):
        if not build.folder.exists(f"report/{name}"):
            raise PipelineError(build.folder.at(f"report/{name}"), "not found; run wenlan-data build first")
    page.update_state(build)  # a publish that was killed may not have
    answer: dict[str, Any] = {"report": build.folder.at("report/index.html")}
    answer["figures"] = build.folder.at("report/report.json")
    if args.baseline:
        answer["drift"] = _compare(build, args.baseline)
    say(f"report: {answer['report']}")
    return answer


def _compare(build: Build, baseline: str) -> dict[str, Any]:
    """Write a build's report again, compared with the report of `baseline`; returns and shows the drift."""
    from pipeline.report import drift
    from pipeline.stages import report
    from pipeline.store import build_json

    if build.expired:
        raise PipelineError(build.out, "the report cannot be rewritten: gc has deleted its input")
    before = drift.read(baseline)
    if before is None:
        raise PipelineError(baseline, "no report/report.json to compare with")
    with build_json.sole_owner(build):
        compared: dict[str, Any] = report.write(build, before)["drift"]
    table = table_of(f"drift from {compared['baseline']}", "distribution", "index", "level")
    for row in compared["distributions"]:
        table.add_row(row["name"], f"{row['psi']:.3f}", row["level"])
    show(table)
    return compared


def add_explain(commands: Commands) -> None:
    explain = command(
        commands,
        "explain",
        _explain,
        "show what happened to a candidate, an image or a page",
        "wenlan-data explain builds/1 https://cooking.example.org/images/1.jpg",
        "wenlan-data explain builds/1 2f1c0d5e9a7b4c3d",
    )
    explain.add_argument("build", metavar="BUILD", help="folder of the build")
    explain.add_argument(
        "subject", metavar="ID|URL|FILE", help="an image (URL, file, key, ID or sha256) or the URL of a page"
    )


def _explain(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import opening
    from pipeline.report.explain import explain
    from pipeline.store.subjects import subject_of

    build = opening.reopen(args.build)
    decisions = explain(build, args.subject)
    if not decisions:
        tried = subject_of(args.subject, [build]).tried
        raise PipelineError(args.subject, f"no such candidate, image or page in {args.build}; looked up as {tried}")
    for decision in decisions:
        _show_decision(decision)
    return {"decisions": decisions}


def _show_decision(decision: dict[str, Any]) -> None:
    """Print one decision and what each stage saw of its candidate, a value only where it is new."""
    verb = "known" if decision["reason"] == "known" else "dropped"
    fate = "kept" if decision["kept"] else f"{verb} at {decision['stage']}: {', '.join(decision['reasons'])}"
    say(f"{decision['subject']} {decision['id'][:32]} {fate}")
    for name in ("url", "page_url", "text", "evidence"):
        if decision[name]:
            say(f"  {name}: {decision[name]}")
    if held := decision["held_by"]:
        release = f", in release {held['release']}" if held["release"] else ", not in the latest release"
        if held["dropped"]:
            say(f"  not in the dataset: build {held['build_id']} dropped {held['key']} at {held['dropped']}")
        else:
            say(f"  in the dataset: {held['key']} of build {held['build_id']} of {held['dataset']}{release}")
    elif decision["duplicate_of"]:
        leader = decision["leader"] or {"url": "from an earlier build", "text": ""}
        say(f"  duplicate_of: {decision['duplicate_of'][:32]} {leader['url']} {leader['text']}".rstrip())
    shown: dict[str, Any] = {}
    for stage, saw in (decision["saw"] or {}).items():
        new = {name: value for name, value in saw.items() if shown.get(name) != value}
        shown |= new
        say(f"  {stage}: {', '.join(f'{name} {_value(value)}' for name, value in new.items()) or 'unchanged'}")


def _value(value: Any) -> str:
    """A value of a stage's row as text: texts with their kind, hashes in hexadecimal, long values cut."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "text" in value[0]:
        why = (f" ({text['reason']}: {text['evidence']})" if text.get("reason") else "" for text in value)
        return " | ".join(f"{t['kind']} 「{t['text'][:60]}」{said}" for t, said in zip(value, why, strict=True))
    shown = value.hex() if isinstance(value, bytes) else f"{value:.3f}" if isinstance(value, float) else str(value)
    if isinstance(value, list) and value and isinstance(value[0], int):
        shown = " ".join(f"{part:016x}" for part in value)  # the columns of integer lists are hashes of 64 bits
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[: SHOWN_CHARACTERS - 3]}..."
