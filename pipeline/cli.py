"""`wenlan-data`: the pipeline's command line. Here: what makes datasets; `pipeline.commands.upkeep` has what looks
after them.

Human output goes to stderr (`pipeline.commands.terminal`). With --json the last line of stdout is one JSON object. Exit
code 0: done; 1: the work failed, each fault named; 2: bad usage or spec.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from data_specs.build import SpecError, load
from data_specs.ownership import check_ownership
from data_specs.shard import ContractError
from pipeline import observe
from pipeline.commands.terminal import Bars, Commands, command, console, show, table_of
from pipeline.commands.upkeep import add_upkeep
from pipeline.errors import SourceError, WenlanError

if TYPE_CHECKING:
    from pipeline.store.build import Build
    from pipeline.store.build_json import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    observe.log_as(observe.form())
    if problem := check_ownership():
        return _fail(problem, 2)
    try:
        result: dict[str, Any] = args.run(args)
    except SpecError as e:
        return _fail(str(e), 2)
    except (WenlanError, ContractError) as e:
        return _fail(str(e), 1)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on from here", 130)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0 if result.get("ok", True) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wenlan-data", description="Build Chinese image-text datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_plan(commands)
    _add_build(commands)
    _add_publish(commands)
    _add_status(commands)
    _add_report(commands)
    _add_explain(commands)
    add_upkeep(commands)
    return parser


def _add_plan(commands: Commands) -> None:
    plan = command(commands, "plan", _plan, "say what a build would run and what is already there")
    _add_what(plan, needs_out=False)
    plan.add_argument(
        "--estimate", type=int, metavar="N", help="say what N candidates would cost, by the newest published build"
    )


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.stages import STAGES

    try:
        build = _open(args)
    except SourceError as e:  # the spec is good; its input is not there yet, and a build would stop at once
        console.print(f"{args.spec}: is a valid spec; before a build can run: {e}", soft_wrap=True, markup=False)
        return {"spec": str(args.spec), "valid": True, "missing": e.subject, "stages": {}}
    table = table_of(build.build_id, "stage", "state", "partitions committed", "fingerprint")
    stages = {}
    for name in STAGES:
        stage = build.stage(name)
        committed = len(stage.partitions())
        state = "done" if stage.finished() else "partly done" if committed else "to run"
        stages[name] = {"state": state, "committed": committed, "fingerprint": stage.fingerprint}
        table.add_row(name, state, str(committed), stage.fingerprint[:12])
    show(table)
    answer = {"build_id": build.build_id, "snapshot": build.snapshot, "stages": stages}
    return answer if args.estimate is None else {**answer, "estimate": _estimated(build, args.estimate)}


def _estimated(build: Build, candidates: int) -> dict[str, Any] | None:
    from pipeline.report.estimate import estimate

    if candidates < 1:
        raise SpecError([f"--estimate {candidates}: a number of candidates"])
    found = estimate(build.store, build.spec.name, candidates)
    if found is None:
        console.print(
            f"nothing to estimate by: {build.store.url} knows no published build; publish a small one first",
            soft_wrap=True,
        )
        return None
    title = f"{candidates:,} candidates, by build {found['by']['build_id']} of {found['by']['snapshot']}"
    table = table_of(title, "stage", "seen", "CPU hours", "GPU hours", "GB written")
    for name, stage in {**found["stages"], "all": found["total"]}.items():
        hours = [f"{stage[key] / 3600:,.2f}" for key in ("cpu_seconds", "gpu_seconds")]
        table.add_row(name, f"{stage['seen']:,}" if "seen" in stage else "", *hours, f"{stage['bytes'] / 1e9:,.2f}")
    show(table)
    return found


def _add_build(commands: Commands) -> None:
    build = command(commands, "build", _build, "run a build, or go on with one")
    _add_what(build, needs_out=True)
    build.add_argument(
        "--address", default="", metavar="A", help="a Ray cluster's address (default: Ray on this machine)"
    )
    build.add_argument("--workers", type=int, default=0, metavar="N", help="CPUs of the embedded Ray (default: all)")
    build.add_argument("--until", default="publish", metavar="STAGE", help="stop after this stage")
    build.add_argument("--no-crawl", action="store_true", help="work from captures that are stored, and ask no site")


def _add_what(sub: argparse.ArgumentParser, needs_out: bool) -> None:
    sub.add_argument("spec", type=Path, metavar="SPEC")
    sub.add_argument("--out", required=needs_out, default="", metavar="DIR", help="the build's folder")
    sub.add_argument("--store", default="", metavar="DIR", help="what outlives builds (default: OUT/store)")
    sub.add_argument("--snapshot", default="", metavar="ID", help="id of what is crawled (default: today, UTC)")


def _build(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run
    from pipeline.publish import release
    from pipeline.stages import STAGES

    until = args.until
    if until not in (*STAGES, "publish"):
        raise SpecError([f"--until {until}: no such stage; one of {', '.join((*STAGES, 'publish'))}"])
    build = _open(args)
    started = time.monotonic()
    results: list[StageResult] = []
    last = "report" if until == "publish" else until
    with Bars() as bars:
        options = {"address": args.address, "workers": args.workers, "crawls": not args.no_crawl}
        for result in run.run(build, until=last, progress=bars.update, **options):
            results.append(result)
            bars.done(result)
    answer: dict[str, Any] = {"build_id": build.build_id, "out": build.out, "published": False}
    if until == "publish":
        if build.spec.publish.approve == "manual" and not build.folder.exists("shards/manifest.json"):
            console.print(f"not published: the spec wants a person's word; next: wenlan-data publish {build.out}")
        else:
            manifest = release.publish(build)
            answer |= {"published": True, "revision": manifest.revision, "samples": manifest.samples}
            answer |= {"content_digest": manifest.content_digest, "manifest": build.folder.at("shards/manifest.json")}
    show(_funnel(results))
    if last == "report":
        console.print(f"report: {build.folder.at('report/index.html')}", soft_wrap=True)
    if answer["published"]:
        console.print(f"dataset: {answer['manifest']}", soft_wrap=True)
    answer["stages"] = [dataclasses.asdict(result) for result in results]
    answer["seconds"] = round(time.monotonic() - started, 2)
    return answer


def _open(args: argparse.Namespace) -> Build:
    from pipeline import plugins, run

    spec = load(args.spec)
    plugins.check(spec, str(args.spec))
    return run.open_build(spec, args.out or "wenlan-plan", args.store, args.snapshot)


def _funnel(results: list[StageResult]) -> Table:
    table = table_of("funnel", "stage", "seen", "kept", "dropped", "partitions run", "seconds")
    for r in results:
        counts = [f"{r.funnel[k]:,}" if k in r.funnel else "" for k in ("seen", "kept", "dropped")]
        table.add_row(r.name, *counts, "-" if r.skipped else f"{r.ran}/{r.partitions}", f"{r.seconds:.1f}")
    return table


def _add_publish(commands: Commands) -> None:
    publish = command(commands, "publish", _publish, "check the gates and make a build a dataset")
    publish.add_argument("build", metavar="BUILD")
    publish.add_argument(
        "--accept", action="append", default=[], metavar="GATE", help="let it through although it fails"
    )
    publish.add_argument("--because", default="", metavar="TEXT", help="why; recorded in the manifest")


def _publish(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run
    from pipeline.publish import release

    if args.accept and not args.because:
        raise SpecError(["--accept needs --because TEXT: who reads the manifest must know why"])
    build = run.reopen(args.build)
    manifest = release.publish(build, accept=args.accept, because=args.because, approved=True)
    path = build.folder.at("shards/manifest.json")
    console.print(f"published: {path}, revision {manifest.revision}, {sum(manifest.samples.values())} samples")
    return {"build_id": manifest.build_id, "revision": manifest.revision, "samples": manifest.samples, "manifest": path}


def _add_status(commands: Commands) -> None:
    status = command(commands, "status", _status, "say how far a build is")
    status.add_argument("build", metavar="BUILD")


def _status(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run
    from pipeline.store import build_json

    known = build_json.status(run.reopen(args.build))
    table = table_of(known["build_id"], "stage", "state", "partitions", "kept", "dropped", "seconds", "CPU seconds")
    for name, stage in known["stages"].items():
        of = "" if stage["partitions"] is None else f"{stage['committed']}/{stage['partitions']}"
        funnel, cost = stage.get("funnel", {}), stage.get("cost", {})
        counts = [f"{funnel[k]:,}" if k in funnel else "" for k in ("kept", "dropped")]
        took = [f"{v:.1f}" if v is not None else "" for v in (stage.get("seconds"), cost.get("cpu_seconds"))]
        table.add_row(name, stage["state"], of, *counts, *took)
    show(table)
    if known["running"]:
        console.print(_at_work(known), soft_wrap=True)
        _show_hosts(known["running"]["hosts"])
    console.print(f"published: {'yes' if known['published'] else 'no'}")
    return known


def _at_work(known: dict[str, Any]) -> str:
    """What runs, or where it stopped."""
    running, left = known["running"], known["running"]["left_seconds"]
    if known["alive"] is False:
        return f"nobody builds here; it stopped in {running['stage']}, and the same command goes on from there"
    return f"{running['stage']} runs since {running['since']}" + (f", about {left:.0f} s to go" if left else "")


MOST_HOSTS = 10
"""Hosts that status shows; --json has all."""


def _show_hosts(hosts: dict[str, dict[str, float]]) -> None:
    """The hosts that are asked right now, the busiest first."""
    if not hosts:
        return
    table = table_of(f"{len(hosts)} hosts at work", "host", "a second", "kept", "failed", "MB")
    for host, seen in list(hosts.items())[:MOST_HOSTS]:
        counts = [f"{seen[name]:,.0f}" for name in ("kept", "failed")]
        table.add_row(host, f"{seen['per_second']:.1f}", *counts, f"{seen['bytes'] / 1e6:.1f}")
    show(table)


def _add_report(commands: Commands) -> None:
    report = command(commands, "report", _report, "say where a build's quality report lies, compare it, or list many")
    report.add_argument("build", nargs="?", default="", metavar="BUILD")
    report.add_argument("--baseline", default="", metavar="BUILD", help="write it anew, compared with this build")
    report.add_argument("--index", default="", metavar="DIR", help="write DIR/index.html over the builds in a folder")


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run

    if bool(args.build) == bool(args.index) or (args.index and args.baseline):
        raise SpecError(["report: give a BUILD (and --baseline, if it is to be compared), or --index DIR"])
    if args.index:
        from pipeline.report import index as report_index

        path, builds = report_index.write(args.index)
        console.print(f"index of {builds} builds: {path}", soft_wrap=True)
        return {"index": path, "builds": builds}
    build = run.reopen(args.build)
    for name in ("index.html", "report.json"):
        if not build.folder.exists(f"report/{name}"):
            raise WenlanError(build.folder.at(f"report/{name}"), "is not there; run wenlan-data build first")
    answer: dict[str, Any] = {"report": build.folder.at("report/index.html")}
    answer["figures"] = build.folder.at("report/report.json")
    if args.baseline:
        answer["drift"] = _compared(build, args.baseline)
    console.print(f"report: {answer['report']}", soft_wrap=True)
    return answer


def _compared(build: Build, baseline: str) -> dict[str, Any]:
    from pipeline.report import drift
    from pipeline.stages import report
    from pipeline.store import build_json

    before = drift.read(baseline)
    if before is None:
        raise WenlanError(baseline, "holds no report/report.json to compare with")
    with build_json.sole_owner(build):
        found: dict[str, Any] = report.write(build, before)["drift"]
    table = table_of(f"drift from {found['baseline']}", "distribution", "index", "level")
    for row in found["distributions"]:
        table.add_row(row["name"], f"{row['psi']:.3f}", row["level"])
    show(table)
    return found


def _add_explain(commands: Commands) -> None:
    explain = command(commands, "explain", _explain, "say what became of a candidate, an image or a page")
    explain.add_argument("build", metavar="BUILD")
    explain.add_argument("subject", metavar="ID|URL")


def _explain(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run
    from pipeline.report.explain import explain

    found = explain(run.reopen(args.build), args.subject)
    if not found:
        raise WenlanError(args.subject, f"is not known to {args.build}: no candidate, image or page of that id or URL")

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    for decision in found:
        fate = "kept" if decision["kept"] else f"dropped at {decision['stage']}: {', '.join(decision['reasons'])}"
        say(f"{decision['subject']} {decision['id'][:32]} {fate}")
        for name in ("url", "page_url", "text", "evidence"):
            if decision[name]:
                say(f"  {name}: {decision[name]}")
        if decision["duplicate_of"]:
            leader = decision["leader"] or {"url": "of an earlier build", "text": ""}
            say(f"  duplicate_of: {decision['duplicate_of'][:32]} {leader['url']} {leader['text']}".rstrip())
        known: dict[str, Any] = {}  # what an earlier stage has shown is not shown again
        for stage, saw in (decision["saw"] or {}).items():
            new = {name: value for name, value in saw.items() if known.get(name) != value}
            known |= new
            say(f"  {stage} saw: {', '.join(f'{name} {_value(value)}' for name, value in new.items()) or 'the same'}")
    return {"decisions": found}


def _value(value: Any) -> str:
    """A value of a stage's row for people: texts with their kind, bytes and long lists cut."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "text" in value[0]:
        return " | ".join(f"{text['kind']} 「{text['text'][:60]}」" for text in value)
    shown = value.hex() if isinstance(value, bytes) else f"{value:.3f}" if isinstance(value, float) else str(value)
    if isinstance(value, list) and value and isinstance(value[0], int):
        shown = " ".join(f"{part:016x}" for part in value)  # hashes
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"wenlan-data: {line}", file=sys.stderr)
    return code
