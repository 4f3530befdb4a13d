"""What benchmarks share: inputs, peers, sides that run in turns, figures with bars, and the JSON line.

Sides run in turns (ours, peer, ours, peer ...) and are compared by medians, so that other load on the machine hits all
of them. Progress goes to stderr; the last line of stdout is one JSON object
`{"figures": {NAME: {"value", "unit", "bar", "holds"}}}`; the exit code is 1 if a figure does not hold.

What a benchmark lacks is one line. The demo's corpus is laid out where it is missing; without the peers' environment
(`make bench-venv`) the figures that need no peer are reported. Only the standard library is imported here, since the
peers' Python runs sides too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CORPUS = next((p for p in (up / "shared/corpus" for up in ROOT.parents) if p.is_dir()), ROOT.parent / "shared/corpus")
SITE = CORPUS / "howtocook-site"
DEMO = ROOT / "demo" / "corpus"
STAMPS = DEMO / "stamps"
PEERS = ROOT / ".bench"

MAIN, LARGE = "brivl_b5_base", "brivl2_b7_large"
"""The main recipes: rehearsed in CI, and those whose figures GPU benchmarks report."""


def told(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


# --- inputs and peers


def photos() -> list[Path]:
    """The photos of HowToCook's site. Ends the program in one line where they are missing."""
    return sorted(needed(SITE / "images").glob("*.jpg"))


def needed(path: Path) -> Path:
    """A part of the corpus beside the checkout. Ends the program in one line where it is missing."""
    if not path.exists():
        raise SystemExit(f"needs {path.relative_to(CORPUS)} of shared/corpus, in a folder above the checkout")
    return path


def stamps() -> list[Path]:
    """The pictures of the demo's corpus, which is downloaded and laid out where it is missing."""
    from tests.demo.corpus import prepare
    from tests.demo.packages import DemoError

    try:
        prepare(DEMO, told)
    except DemoError as e:
        raise SystemExit(str(e)) from None
    return sorted(STAMPS.rglob("*.png"))


@cache
def peer(program: str) -> Path | None:
    """A program of the peers' environment. None where it is missing, which is told."""
    path = PEERS / "bin" / program
    if path.exists():
        return path
    told(f"no {program} in the peers' environment, so figures beside it are left out: run `make bench-venv`")
    return None


# --- processes


def environment(**more: str) -> dict[str, str]:
    """The environment of a side: this checkout, and one thread for each library."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT), **more}


def program(name: str, *words: object, python: Path | str = sys.executable) -> list[str]:
    """The words that run a module of this folder."""
    return [str(python), "-m", f"tests.benchmarks.{name}", *map(str, words)]


def answer_of(command: list[str], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON object on the last line that a process prints. Raises CalledProcessError if it fails."""
    done = subprocess.run(command, env=env or environment(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Side:
    """A process that does its work each time it is asked: `work_on_command` is its other end."""

    def __init__(self, command: list[str], env: Mapping[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        self._command = " ".join(command[1:5])
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env or environment())

    def ask(self) -> dict[str, Any]:
        """Its answer to one more turn; `seconds` is how long its work took."""
        self.begin()
        return self.answer()

    def begin(self) -> None:
        """Start a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next object that it prints; other lines are what a library says."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"side {self._command} ended with {self._process.wait()}")

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def work_on_command(work: Callable[[], Any]) -> None:
    """Do the work once for each line on stdin; answer its seconds, and the object that it returned."""
    for _ in sys.stdin:
        start = time.perf_counter()
        said = work() or {}
        print(json.dumps({"seconds": time.perf_counter() - start, **said}), flush=True)


def interleaved(*sides: Callable[[], object], rounds: int, warm: bool = True) -> list[float]:
    """Median of each side over `rounds` turns: of the float that it returns, else of the seconds that it takes.

    A first turn of each does not count, if `warm`.
    """
    found: list[list[float]] = [[] for _ in sides]
    for turn in range(0 if warm else 1, rounds + 1):
        for side, values in zip(sides, found, strict=True):
            start = time.perf_counter()
            said = side()
            seconds = time.perf_counter() - start
            if turn:
                values.append(said if isinstance(said, float) else seconds)
        told(f"round {turn} of {rounds}")
    return [statistics.median(values) for values in found]


def below(waited: bool = False) -> dict[int, float]:
    """CPU seconds by id of every process below this one; `waited`: with those of processes that it waited for."""
    parents, used = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            used[int(folder.name)] = sum(map(int, fields[11 : 15 if waited else 13])) / os.sysconf("SC_CLK_TCK")

    def is_below(pid: int) -> bool:
        while pid not in (0, 1, os.getpid()):
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return {pid: seconds for pid, seconds in used.items() if pid != os.getpid() and is_below(pid)}


def cpu_seconds() -> float:
    """CPU seconds of this process and of all processes below it, with those that they waited for."""
    return sum(os.times()[:4]) + sum(below(waited=True).values())


# --- figures


@dataclass(frozen=True)
class Figure:
    """One measured figure and its bar; without a bar it holds."""

    value: float
    unit: str
    bar: float | None
    holds: bool


def at_least(value: float, bar: float, unit: str = "x") -> Figure:
    return Figure(round(value, 3), unit, bar, value >= bar)


def at_most(value: float, bar: float, unit: str = "x") -> Figure:
    return Figure(round(value, 3), unit, bar, value <= bar)


def shown(value: float, unit: str = "x") -> Figure:
    """A figure without a bar."""
    return Figure(round(value, 3), unit, None, True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --quick."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="smaller input, about a minute")
    return made


def quick(description: str | None) -> bool:
    """Whether --quick was asked for."""
    return bool(parser(description).parse_args().quick)


def table(rows: list[tuple[str, Figure, str]]) -> None:
    """Print figures, each with its name and what it was the last time."""
    for name, figure, last in rows:
        verdict = "" if figure.bar is None else "holds" if figure.holds else "DOES NOT HOLD"
        bar = "" if figure.bar is None else f"bar {figure.bar}"
        told(f"{name:48} {figure.value:>10} {figure.unit:12} {bar:10} {verdict:14} {last}".rstrip())


def report(figures: Mapping[str, Figure], **more: object) -> int:
    """Print the table and the JSON line, with what else belongs there by name; the exit code."""
    table([(name, figure, "") for name, figure in figures.items()])
    print(json.dumps({"figures": {name: asdict(figure) for name, figure in figures.items()}, **more}))
    return 0 if all(figure.holds for figure in figures.values()) else 1
