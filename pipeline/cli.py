"""`wenlan-data`: the pipeline's command line.

Human output goes to stderr: rich tables and bars on a terminal, plain lines elsewhere. With --json the last line of
stdout is one JSON object. Exit code 0: done; 1: the work failed, each fault named; 2: bad usage or spec.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_specs.build import SpecError, load
from data_specs.ownership import check_ownership
from data_specs.shard import ContractError
from pipeline import observe
from pipeline.errors import SourceError, WenlanError

if TYPE_CHECKING:
    from pipeline.ledger import StageResult
    from pipeline.store import Build

console = Console(stderr=True, highlight=False)


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

    def command(name: str, run: Callable[[argparse.Namespace], dict[str, Any]], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
        return sub

    plan = command("plan", _plan, "say what a build would run and what is already there")
    build = command("build", _build, "run a build, or go on with one")
    for sub in (plan, build):
        sub.add_argument("spec", type=Path, metavar="SPEC")
        sub.add_argument("--out", required=sub is build, default="", metavar="DIR", help="the build's folder")
        sub.add_argument("--store", default="", metavar="DIR", help="what outlives builds (default: OUT/store)")
        sub.add_argument("--snapshot", default="", metavar="ID", help="id of what is crawled (default: today, UTC)")
    build.add_argument(
        "--address", default="", metavar="A", help="a Ray cluster's address (default: Ray on this machine)"
    )
    build.add_argument("--workers", type=int, default=0, metavar="N", help="CPUs of the embedded Ray (default: all)")
    build.add_argument("--until", default="publish", metavar="STAGE", help="stop after this stage")
    build.add_argument("--no-crawl", action="store_true", help="work from captures that are stored, and ask no site")

    publish = command("publish", _publish, "check the gates and make a build a dataset")
    publish.add_argument("build", metavar="BUILD")
    publish.add_argument(
        "--accept", action="append", default=[], metavar="GATE", help="let it through although it fails"
    )
    publish.add_argument("--because", default="", metavar="TEXT", help="why; recorded in the manifest")

    status = command("status", _status, "say how far a build is")
    status.add_argument("build", metavar="BUILD")

    report = command("report", _report, "say where a build's quality report lies, compare it, or list many")
    report.add_argument("build", nargs="?", default="", metavar="BUILD")
    report.add_argument("--baseline", default="", metavar="BUILD", help="write it anew, compared with this build")
    report.add_argument("--index", default="", metavar="DIR", help="write DIR/index.html over the builds in a folder")

    diff = command("diff", _diff, "say how two published builds differ")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")

    explain = command("explain", _explain, "say what became of a candidate, an image or a page")
    explain.add_argument("build", metavar="BUILD")
    explain.add_argument("subject", metavar="ID|URL")

    regions = command("regions", _regions, "say what the region cache holds, or remove detectors from it")
    regions.add_argument("action", choices=["stats", "prune"])
    regions.add_argument("--store", required=True, metavar="DIR")
    regions.add_argument("--detector", action="append", default=[], metavar="ID", help="prune this one")
    regions.add_argument("--before", default="", metavar="DATE", help="prune those not written since, e.g. 2026-01-31")
    regions.add_argument("--dry-run", action="store_true", help="only say what prune would remove")

    export = command("export", _export, "write a dataset in another format")
    export.add_argument("build", metavar="BUILD", help="a build's folder or its shards folder")
    export.add_argument("--to", required=True, choices=["brivl-jsonl"])
    export.add_argument("--out", default="", metavar="DIR", help="default: BUILD/brivl-jsonl")
    export.add_argument("--detector", default="", metavar="ID", help="whose boxes (default: the dataset's first)")

    verify = command("verify", _verify, "check a dataset against its manifest")
    verify.add_argument("build", metavar="BUILD", help="a build's folder or its shards folder")
    verify.add_argument("--quick", action="store_true", help="checksums only")
    verify.add_argument(
        "--store", default="", metavar="DIR", help="whose takedowns must not be inside (default: the build's)"
    )

    forget = command("forget", _forget, "take something out of builds and STORE, and never let it in again")
    forget.add_argument("builds", nargs="*", metavar="BUILD", help="beside those that STORE knows to be published")
    forget.add_argument("--store", required=True, metavar="DIR")
    for name, meta, help in (
        ("--url", "U", "address of an image or of a page"),
        ("--domain", "D", "host name, and all below it"),
        ("--sha256", "H", "of a picture's bytes as fetched"),
        ("--like", "FILE", "a picture: what looks like it"),
    ):
        forget.add_argument(name, action="append", default=[], metavar=meta, help=f"{help}; may be repeated")
    forget.add_argument(
        "--distance", type=int, metavar="BITS", help="of 64, up to which a picture is the same (0 to 16)"
    )
    forget.add_argument("--exact", action="store_true", help="the addresses and bytes named, not what looks the same")
    forget.add_argument("--dry-run", action="store_true", help="say what would go")

    gc = command("gc", _gc, "delete what nothing needs any more")
    gc.add_argument("--store", required=True, metavar="DIR")
    gc.add_argument(
        "--keep", type=int, default=0, metavar="N", help="builds of each dataset to keep whole (default: all)"
    )
    gc.add_argument("--dry-run", action="store_true", help="say what would go")
    return parser


def _open(args: argparse.Namespace) -> Build:
    from pipeline import plugins, run

    spec = load(args.spec)
    plugins.check(spec, str(args.spec))
    return run.open_build(spec, args.out or "wenlan-plan", args.store, args.snapshot)


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import run

    try:
        build = _open(args)
    except SourceError as e:  # the spec is good; its input is not there yet, and a build would stop at once
        console.print(f"{args.spec}: is a valid spec; before a build can run: {e}", soft_wrap=True, markup=False)
        return {"spec": str(args.spec), "valid": True, "missing": e.subject, "stages": {}}
    table = _table(build.build_id, "stage", "state", "partitions committed", "fingerprint")
    stages = {}
    for name in run.STAGES:
        stage = build.stage(name)
        committed = len(stage.partitions())
        state = "done" if stage.finished() else "partly done" if committed else "to run"
        stages[name] = {"state": state, "committed": committed, "fingerprint": stage.fingerprint}
        table.add_row(name, state, str(committed), stage.fingerprint[:12])
    _show(table)
    return {"build_id": build.build_id, "snapshot": build.snapshot, "stages": stages}


def _build(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import release, run

    until = args.until
    if until not in (*run.STAGES, "publish"):
        raise SpecError([f"--until {until}: no such stage; one of {', '.join((*run.STAGES, 'publish'))}"])
    build = _open(args)
    started = time.monotonic()
    results: list[StageResult] = []
    last = "report" if until == "publish" else until
    with _Bars() as bars:
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
    _show(_funnel(results))
    if last == "report":
        console.print(f"report: {build.folder.at('report/index.html')}", soft_wrap=True)
    if answer["published"]:
        console.print(f"dataset: {answer['manifest']}", soft_wrap=True)
    answer["stages"] = [dataclasses.asdict(result) for result in results]
    answer["seconds"] = round(time.monotonic() - started, 2)
    return answer


def _publish(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import ledger, release

    if args.accept and not args.because:
        raise SpecError(["--accept needs --because TEXT: who reads the manifest must know why"])
    build = ledger.reopen(args.build)
    manifest = release.publish(build, accept=args.accept, because=args.because, approved=True)
    path = build.folder.at("shards/manifest.json")
    console.print(f"published: {path}, revision {manifest.revision}, {sum(manifest.samples.values())} samples")
    return {"build_id": manifest.build_id, "revision": manifest.revision, "samples": manifest.samples, "manifest": path}


def _status(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import ledger

    known = ledger.status(args.build)
    table = _table(known["build_id"], "stage", "state", "partitions", "kept", "dropped", "seconds", "CPU seconds")
    for name, stage in known["stages"].items():
        of = "" if stage["partitions"] is None else f"{stage['committed']}/{stage['partitions']}"
        funnel, cost = stage.get("funnel", {}), stage.get("cost", {})
        counts = [f"{funnel[k]:,}" if k in funnel else "" for k in ("kept", "dropped")]
        took = [f"{v:.1f}" if v is not None else "" for v in (stage.get("seconds"), cost.get("cpu_seconds"))]
        table.add_row(name, stage["state"], of, *counts, *took)
    _show(table)
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
    table = _table(f"{len(hosts)} hosts at work", "host", "a second", "kept", "failed", "MB")
    for host, seen in list(hosts.items())[:MOST_HOSTS]:
        counts = [f"{seen[name]:,.0f}" for name in ("kept", "failed")]
        table.add_row(host, f"{seen['per_second']:.1f}", *counts, f"{seen['bytes'] / 1e6:.1f}")
    _show(table)


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import ledger

    if bool(args.build) == bool(args.index) or (args.index and args.baseline):
        raise SpecError(["report: give a BUILD (and --baseline, if it is to be compared), or --index DIR"])
    if args.index:
        from pipeline import report_index

        path, builds = report_index.write(args.index)
        console.print(f"index of {builds} builds: {path}", soft_wrap=True)
        return {"index": path, "builds": builds}
    build = ledger.reopen(args.build)
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
    from pipeline import drift, ledger, report

    before = drift.read(baseline)
    if before is None:
        raise WenlanError(baseline, "holds no report/report.json to compare with")
    with ledger.sole_owner(build):
        found: dict[str, Any] = report.write(build, before)["drift"]
    table = _table(f"drift from {found['baseline']}", "distribution", "index", "level")
    for row in found["distributions"]:
        table.add_row(row["name"], f"{row['psi']:.3f}", row["level"])
    _show(table)
    return found


def _diff(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.diff import diff

    found = diff(args.a, args.b)
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    for side in ("a", "b"):
        one = found[side]
        say(f"{side.upper()} {one['build_id']}, revision {one['revision']}: {one['samples']:,} samples")
    counts = {"added": found["added"], "removed": found["removed"]}
    counts |= {f"other {aspect}": keys for aspect, keys in found["changed"].items()}
    for name, keys in counts.items():
        some = " ".join(keys["keys"][:3])
        say(f"{name}: {keys['count']:,}{f' ({some} ...)' if some else ''}")
    say(f"shards: {', '.join(f'{len(names):,} {what}' for what, names in found['shards'].items())}")
    for row in found["reasons"][:10]:
        if row["before"] != row["now"]:
            say(f"  {row['name']}: {row['before']:,} -> {row['now']:,}")
    for change in found["spec"]:
        say(f"  spec {change['path']}: {change['before']!r} -> {change['now']!r}")
    return found


def _explain(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import ledger
    from pipeline.explain import explain

    found = explain(ledger.reopen(args.build), args.subject)
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


def _verify(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.verify import verify

    folder = args.build
    faults = verify(folder, quick=args.quick, store=args.store)
    for fault in faults:
        console.print(f"[red]{fault}[/red]" if console.is_terminal else fault, soft_wrap=True)
    console.print(f"{folder}: {f'{len(faults)} faults' if faults else 'is what its manifest says'}", soft_wrap=True)
    return {"ok": not faults, "faults": faults}


def _regions(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import regions
    from pipeline.folder import Folder
    from pipeline.store import Store

    store = Store(Folder(args.store).url)
    store.check()
    if args.action == "prune" and not args.detector and not args.before:
        raise SpecError(["regions prune: say which: --detector ID, or --before DATE"])
    found = (
        regions.stats(store)
        if args.action == "stats"
        else regions.prune(store, args.detector, _date(args.before), args.dry_run)
    )
    title = {"stats": "region cache", "prune": "would be removed" if args.dry_run else "removed"}[args.action]
    table = _table(title, "detector", "images", "regions", "an image", "commits", "MB", "written")
    for e in found:
        each = f"{e['regions'] / max(e['images'], 1):.1f}"
        counts = (f"{e['images']:,}", f"{e['regions']:,}", each, f"{e['commits']:,}", f"{e['bytes'] / 1e6:,.1f}")
        table.add_row(e["detector"], *counts, e["written"])
    _show(table)
    return {"detectors": found, "removed": args.action == "prune" and not args.dry_run}


def _date(text: str) -> str:
    """A date or time as the region cache writes it. Raises SpecError."""
    import datetime

    try:
        when = datetime.datetime.fromisoformat(text) if text else None
    except ValueError:
        raise SpecError([f"--before {text}: is no date such as 2026-01-31"]) from None
    if when is None:
        return ""
    utc = datetime.timezone.utc
    return (when.replace(tzinfo=utc) if when.tzinfo is None else when.astimezone(utc)).isoformat(timespec="seconds")


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline.export import to_brivl_jsonl
    from pipeline.folder import Folder

    folder = Folder(args.build)
    shards = folder / "shards" if (folder / "shards").names() else folder
    out = Path(args.out or folder.at("brivl-jsonl"))
    rows = to_brivl_jsonl(shards, out, args.detector)
    console.print(f"{out}: {', '.join(f'{n:,} {split}' for split, n in rows.items())}", soft_wrap=True)
    return {"out": str(out), "rows": rows}


def _forget(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import forget, ledger
    from pipeline.folder import Folder
    from pipeline.store import Store

    if args.distance is not None and not 0 <= args.distance <= 16:
        raise SpecError([f"--distance {args.distance}: 0 to 16 bits of 64"])
    store = Store(Folder(args.store).url)
    places = [Folder(build).url for build in args.builds]
    places += [known["out"] for known in store.registered() if Folder(known["out"]).exists("build.json")]
    builds = [ledger.reopen(place) for place in dict.fromkeys(places)]
    for build in builds:
        if build.store.url != store.url:
            raise SpecError([f"{build.out}: its STORE is {build.store.url}, not {store.url}"])
    more = {} if args.distance is None else {"distance": args.distance}
    pictures = [Path(path) for path in args.like]
    request = forget.Request(args.url, args.domain, args.sha256, pictures, exact=args.exact, **more)
    answer = forget.forget(store, builds, request, args.dry_run)
    verb = "would lose" if args.dry_run else "lost"
    for one in answer["builds"]:
        counts = ", ".join(f"{len(one['samples']) if n == 'samples' else one[n]:,} {n}" for n in forget.COUNTED)
        revision = "" if one.get("revision") is None else f"; revision {one['revision']}"
        console.print(
            f"{one['out']}: {verb} {counts}; shards {' '.join(one['shards']) or 'none'}{revision}", soft_wrap=True
        )
        for sample in one["samples"] if args.dry_run else ():
            console.print(f"  {sample['shard']} {sample['key']} {sample['image_url']}", soft_wrap=True, markup=False)
    if not builds:
        console.print(
            "no build is known; what was named is refused from now on" if not args.dry_run else "no build is known"
        )
    return answer


def _gc(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import garbage
    from pipeline.folder import Folder
    from pipeline.store import Store

    if args.keep < 0:
        raise SpecError([f"--keep {args.keep}: a number of builds, 0 for all of them"])
    store = Store(Folder(args.store).url)
    answer = garbage.collect(store, args.keep, args.dry_run)
    for what in answer["deleted"]:
        console.print(
            f"{'would delete' if args.dry_run else 'deleted'} {what['what']}: {what['place']}", soft_wrap=True
        )
    console.print(f"{answer['bytes']:,} bytes {'would be freed' if args.dry_run else 'freed'}")
    return answer


class _Bars:
    """Progress: bars on a terminal; elsewhere one line a stage, and one now and then within a long one."""

    EVERY_S = 30.0

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._said = time.monotonic()

    def __enter__(self) -> _Bars:
        if console.is_terminal:
            columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        if not self._bars:
            if time.monotonic() - self._said >= self.EVERY_S:
                self._said = time.monotonic()
                console.print(f"{stage:8} {done} of {total} partitions", soft_wrap=True)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def done(self, result: StageResult) -> None:
        if self._bars and not result.skipped:
            return
        ran = "already done" if result.skipped else f"{result.ran} of {result.partitions} partitions"
        console.print(f"{result.name:8} {ran}, {result.seconds:.1f} s", soft_wrap=True)


def _funnel(results: list[StageResult]) -> Table:
    table = _table("funnel", "stage", "seen", "kept", "dropped", "partitions run", "seconds")
    for r in results:
        counts = [f"{r.funnel[k]:,}" if k in r.funnel else "" for k in ("seen", "kept", "dropped")]
        table.add_row(r.name, *counts, "-" if r.skipped else f"{r.ran}/{r.partitions}", f"{r.seconds:.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    """An empty table, drawn with lines on a terminal only; every column but the first is of figures."""
    drawn = HEAVY_HEAD if console.is_terminal else None
    table = Table(title=title, title_justify="left", box=drawn, pad_edge=drawn is not None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _show(table: Table) -> None:
    console.print(table, soft_wrap=not console.is_terminal)


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"wenlan-data: {line}", file=sys.stderr)
    return code
