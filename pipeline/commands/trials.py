"""`wenlan-data try`: shows within seconds how another spec would change a build."""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import TYPE_CHECKING, Any

from data_specs.errors import SpecError
from pipeline.commands.builds import check_workers
from pipeline.commands.terminal import Bars, Commands, add_spec, command, say, show, table_of

if TYPE_CHECKING:
    from pipeline.store.build import Build

EXAMPLES = 10
"""Candidates named on the terminal, of each group."""

HERE = 20_000
"""Candidates up to which a trial runs in this process: it ends before Ray would have started."""

_EPILOG = """\
Which pairs would a lower min_chars add? Copy the spec, change the copy, and try it on an existing build:

  wenlan-data try changed.yaml --on builds/2026-11-25

Only stages affected by the change run, in a separate folder: nothing is written to BUILD, and no requests go to sites.
Options of sources, egress and fetch cannot be tried.
"""


def add_try(commands: Commands) -> None:
    parser = command(
        commands,
        "try",
        _try,
        "show how another spec would change a build",
        "wenlan-data try changed.yaml --on builds/1",
        "wenlan-data try changed.yaml --on builds/1 --out trial --workers 4",
    )
    parser.epilog = _EPILOG
    add_spec(parser)
    parser.add_argument("--on", required=True, metavar="BUILD", help="a finished build, published or not")
    parser.add_argument("--out", default="", metavar="DIR", help="keep the output of the stages and the page there")
    parser.add_argument("--address", default="", metavar="A", help="address of a Ray cluster")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="CPUs of the local Ray (default: all)")


def _try(args: argparse.Namespace) -> dict[str, Any]:
    from pipeline import opening, plugins, run
    from pipeline.files.folder import Folder

    check_workers(args)
    spec = plugins.load(args.spec)
    on = opening.reopen(args.on)
    if args.out and (Folder(args.out).names() or f"{Folder(args.out).url}/".startswith(f"{on.out}/")):
        raise SpecError([f"--out {args.out}: not empty, or inside the build; a trial needs a separate, empty folder"])
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wenlan-try-") as scratch:
        trial = opening.open_trial(spec, on, args.out or scratch)
        with trial.folder.emptied_on_failure():
            with Bars() as bars:
                options = {"address": args.address, "workers": args.workers}
                options["here"] = not any(options.values()) and on.counted("extract", "kept") <= HERE
                for result in run.run(trial, until=opening.COMPARED, progress=bars, **options):
                    if not result.skipped:
                        bars.done(result)
            figures, page = _compared(trial)
            place = args.out or tempfile.mkdtemp(prefix="wenlan-try-")
            Folder(place).write("index.html", page.encode())
    answer = {**figures, "page": Folder(place).at("index.html"), "seconds": round(time.monotonic() - started, 2)}
    _show(answer)
    return answer


def _compared(trial: Build) -> tuple[dict[str, Any], str]:
    """The figures of a trial that has run, with EXAMPLES rows of each group, and its page."""
    from pipeline.report import trial as compared

    assert trial.on is not None
    trial.folder.delete("build.json")  # not a build: it must not be continued
    figures = compared.compare(trial.on, trial)
    compared.show_pictures(figures, trial.on, trial)
    page = compared.render(figures, trial)
    for group in ("came_in", "went_out", "not_stored"):
        rows = figures[group].pop("rows")[:EXAMPLES]
        names = ("id", "url", "page_url", "text", "stage", "reason", "evidence", "duplicate_of")
        figures[group]["examples"] = [{name: row[name] for name in names} for row in rows]
    return figures, page


def _show(figures: dict[str, Any]) -> None:
    for change in figures["spec"]:
        say(f"spec {change['path']}: {change['before']!r} -> {change['now']!r}")
    kept = figures["kept"]
    table = table_of(f"{figures['build']['id']}: {kept['before']:,} kept, {kept['after']:,} with this spec", *_COLUMNS)
    for row in figures["stages"]:
        before, after = row["before"], row["after"]
        change = after["kept"] - before["kept"]
        counts = [f"{one[fate]:,}" for fate in ("kept", "dropped") for one in (before, after)]
        table.add_row(row["stage"], *counts[:2], f"{change:+,}" if change else "", *counts[2:])
    show(table)
    for group, words, why in (("came_in", "added", "dropped before"), ("went_out", "removed", "dropped now")):
        own = figures[group]
        reasons = ", ".join(f"{r['reason']} {r['count']:,}" for r in own["reasons"][:5])
        say(f"{words}: {own['count']:,}{f' ({why}: {reasons})' if reasons else ''}")
        _examples(own["examples"])
    missing = figures["not_stored"]
    if missing["count"]:
        say(f"not fetched yet: {missing['count']:,} candidates of {missing['images']:,} images")
        _examples(missing["examples"])
    say(f"page with pictures: {figures['page']} ({figures['seconds']:.1f} s)")


_COLUMNS = ("stage", "kept before", "kept after", "change", "dropped before", "dropped after")


def _examples(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        say(f"  {row['reason']}: {row['text'][:40]!r} {row['url'][:100]} {row['evidence'][:80]}".rstrip())
