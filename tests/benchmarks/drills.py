"""Drills: what becomes of builds and trainings that are disturbed, on a Ray cluster of several nodes.

`make drills` runs each as a test (test_drills.py).

Each drill is a function of the table DRILLS, run in a process of its own with a limit of time, one after the other. It
does something to a build or a training, sees that it hit, and says what came of it: a drill that did not hit has failed
as much as one whose build did not go on. Builds are verified in the end, and the sha256 of their shards are those of
the undisturbed build; trainings end with the losses of an undisturbed one, step by step.

    --only NAME    this drill (again and again for several); --list shows all
    --quick        the short form of some, under 5 minutes
    --kills N      kills of each target in `train_ray`

A table goes to stderr; the last line of stdout is one JSON object (`harness`), with the rows of the table as `drills`.
One figure per row: 1 where it held. Drills of training on Ray have figures of their own (`drill_training`).

Limits: one machine; a node is a raylet of its own. `disk` needs a mount namespace (`unshare -rm`), `memory` a cgroup
that may be written, `clock` Debian's libfaketime. `make drill` (drill_schedule.py) is the same for Airflow.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.benchmarks import drill_nodes, drill_sources, drill_storage, drill_training
from tests.benchmarks.drilling import Build, Row, Scene, command, tars_of
from tests.benchmarks.harness import Figure, at_least, program, report, told
from tests.benchmarks.services import DrillFailed
from tests.processes import descendants, free_ports


@dataclass(frozen=True)
class Drill:
    """A drill: its function, the seconds that it may take, whether it belongs to --quick, what it is prepared for."""

    run: Callable[[Scene], Iterator[Row]]
    limit_s: int
    quick: bool = False
    trains: bool = False
    unshared: bool = False


DRILLS: Mapping[str, Drill] = {
    "raylet": Drill(drill_nodes.raylet, 600, quick=True),
    "head": Drill(drill_nodes.head, 300),
    "driver": Drill(drill_nodes.driver, 240),
    "memory": Drill(drill_nodes.memory, 240),
    "disk": Drill(drill_storage.disk, 480, quick=True, unshared=True),
    "s3": Drill(drill_storage.s3, 900),
    "site": Drill(drill_sources.site, 420, quick=True),
    "images": Drill(drill_sources.images, 420),
    "clock": Drill(drill_sources.clock, 420),
    "train_ray": Drill(drill_training.train_ray, 1_800, trains=True),
    "elastic": Drill(drill_training.elastic, 900, trains=True),
}
"""The table. The first line of each function's docstring says what it does and what is expected."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the short form of some drills, under 5 minutes")
    parser.add_argument("--only", action="append", default=[], choices=DRILLS, metavar="NAME", help="this drill only")
    parser.add_argument("--list", action="store_true", help="show the drills, and what is expected of each")
    parser.add_argument(
        "--kills", type=int, default=3, help="kills of each target in `train_ray`; 10 take half an hour"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder, and keep it with all logs")
    parser.add_argument("--inside", metavar="NAME", help=argparse.SUPPRESS)  # this process runs the drill itself
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        for name, drill in DRILLS.items():
            print(f"{name:12} {(drill.run.__doc__ or '').splitlines()[0]}")
        return 0
    if args.inside:
        return inside(
            args.inside, Scene(args.keep, args.keep.parent / "undisturbed", args.port, args.quick, args.kills)
        )
    folder = args.keep or Path(tempfile.mkdtemp(prefix="wd"))  # short: a socket's path holds 107 bytes
    try:
        return everything(folder.absolute(), args)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)


def everything(folder: Path, args: argparse.Namespace) -> int:
    """Run the drills; the exit code."""
    names = args.only or [name for name, drill in DRILLS.items() if drill.quick or not args.quick]
    _adopt_orphans()
    reference = folder / "undisturbed"
    reference.mkdir(parents=True, exist_ok=True)
    noted = reference / "port"  # a folder that was kept is used again, with the site on the same port
    if not noted.exists():
        noted.write_text(str(free_ports(1)[0]), encoding="utf-8")
    scene = Scene(folder, reference, int(noted.read_text(encoding="utf-8")), args.quick, args.kills)
    if not all(DRILLS[name].trains for name in names) and not (reference / "tars.json").exists():
        prepare_build(scene)
    if any(DRILLS[name].trains for name in names):
        drill_training.prepare(scene)
    rows: list[dict[str, object]] = []
    figures: dict[str, Figure] = {}
    for name in names:
        began = time.monotonic()
        own, measured = one(name, scene, args)
        rows += [{"drill": name, **asdict(row)} for row in own]
        figures[f"drill_{name}"] = at_least(sum(row.held for row in own), len(own), "rows")
        told(f"{name}: {time.monotonic() - began:.0f} s")
        figures |= measured
    table(rows)
    return report(figures, drills=rows)


def prepare_build(scene: Scene) -> None:
    """The undisturbed build, on a Ray of its own."""
    began = time.monotonic()
    with scene.source():
        build = Build(scene, "undisturbed-build", place=str(scene.reference))
        ended = build.ended(300)
    if ended.code or command("verify", build.out).code:
        raise SystemExit(f"the undisturbed build failed: {ended.tail()}")
    tars = tars_of(build.out)
    (scene.reference / "tars.json").write_text(json.dumps(tars), encoding="utf-8")
    told(f"undisturbed build: {len(tars)} tars, {time.monotonic() - began:.0f} s")


def one(name: str, scene: Scene, args: argparse.Namespace) -> tuple[list[Row], dict[str, Figure]]:
    """Run a drill in a process of its own: its rows and figures. What it leaves behind is killed."""
    drill, folder = DRILLS[name], scene.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    words = program("drills", "--inside", name, "--keep", folder, "--port", scene.port)
    words += ["--kills", str(args.kills), *(["--quick"] if scene.quick else [])]
    if drill.unshared:
        words = ["unshare", "-m" if os.geteuid() == 0 else "-rm", *words]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = process.communicate(timeout=drill.limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        printed += json.dumps(asdict(Row("", "", f"not done after {drill.limit_s} s", held=False))) + "\n"
    finally:
        sweep()
    rows, figures = [], {}
    for line in printed.splitlines():
        said = json.loads(line)
        if "figures" in said:
            figures |= {figure: Figure(**values) for figure, values in said["figures"].items()}
        else:
            rows.append(Row(**said))
    return rows or [Row("", "", f"exit {process.returncode}, and nothing said", held=False)], figures


def inside(name: str, scene: Scene) -> int:
    """The drill itself: prints its rows as lines of JSON, then its figures."""
    began = time.monotonic()
    try:
        for row in DRILLS[name].run(scene):
            print(json.dumps(asdict(replace(row, seconds=round(time.monotonic() - began, 1)))), flush=True)
            show(name, row)
            began = time.monotonic()
    except (DrillFailed, subprocess.SubprocessError, OSError) as e:
        failed = Row("", "", f"{type(e).__name__}: {e}", seconds=round(time.monotonic() - began, 1), held=False)
        print(json.dumps(asdict(failed)), flush=True)
        show(name, failed)
    print(json.dumps({"figures": {name: asdict(figure) for name, figure in scene.figures.items()}}), flush=True)
    return 0


def _adopt_orphans() -> None:
    """Be the parent of what drills leave behind (PR_SET_CHILD_SUBREAPER of prctl(2)), so that it can be found."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def sweep() -> None:
    """Kill whatever is left below this process."""
    for _ in range(20):
        left = descendants(os.getpid())
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except OSError:
                continue
        time.sleep(0.2)


COLUMNS = ("drill", "stage", "done and seen", "outcome", "s", "verify", "same", "held")


def table(rows: list[dict[str, object]]) -> None:
    """The table on stderr."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*COLUMNS, title="drills", show_lines=True)
    for row in rows:
        cells = [str(row[name]) for name in ("drill", "stage", "done", "outcome", "seconds", "verify", "same")]
        shown.add_row(*cells, "yes" if row["held"] else "NO")
    Console(stderr=True, width=max(160, shutil.get_terminal_size().columns)).print(shown)


def show(name: str, row: Row) -> None:
    words = [row.stage, row.done, row.outcome, row.verify and f"verify {row.verify}", row.same]
    said = "; ".join(filter(None, words))
    told(f"{name}: {said} [{'held' if row.held else 'DID NOT HOLD'}]")


if __name__ == "__main__":
    sys.exit(main())
