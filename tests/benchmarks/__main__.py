"""Runs the benchmarks one after the other, and ends with one table of all figures: `make bench`.

    python -m tests.benchmarks [NAME ...] [--quick] [--record]

A figure of the table has its bar, whether it holds, and its value in `results.json`, the last time that --record was
given: that of the same form, else that of the full one. A benchmark that ends without figures, or takes longer than its
limit, is one line. The exit code is 1 if one of them did, or if a figure does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import ROOT, Figure, program, table, told

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
LOGS = ROOT / "demo" / "bench"
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
LIMIT_S = {True: 600, False: 4 * 3600}
"""Seconds that one benchmark may take, with and without --quick."""


def run(name: str, quick: bool) -> dict[str, Any] | str:
    """The figures of a benchmark by name, or why there are none."""
    command, began = program(f"bench_{name}", *(["--quick"] if quick else [])), time.monotonic()
    log = LOGS / f"{name}.log"
    told(f"{name}: progress is in {log.relative_to(ROOT)}")
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=LIMIT_S[quick])
        except subprocess.TimeoutExpired:
            return f"stopped after {LIMIT_S[quick]} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it, or a peer, has left behind
            process.communicate()
    told(f"{name}: {time.monotonic() - began:.0f} s")
    lines = out.strip().splitlines()
    if not lines or not lines[-1].startswith('{"figures"'):
        return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
    figures: dict[str, Any] = json.loads(lines[-1])["figures"]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="smaller input, half an hour for all")
    parser.add_argument("--record", action="store_true", help=f"write the figures to {RESULTS.name}")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"{', '.join(unknown)}: not a benchmark; there are {', '.join(NAMES)}")
    form = "quick" if asked.quick else "full"
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    LOGS.mkdir(parents=True, exist_ok=True)
    rows, faults = list[tuple[str, Figure, str]](), list[str]()
    for name in asked.names or NAMES:
        found = run(name, asked.quick)
        if isinstance(found, str):
            faults.append(f"{name}: {found}")
            continue
        last = {own: results.get(name, {}).get(own, {}) for own in (form, "full")}
        for figure, values in found.items():
            before = [f"{own}, last {last[own][figure]}" for own in last if figure in last[own]]
            rows.append((f"{name}.{figure}", Figure(**values), "".join(before[:1])))
        if asked.record:
            own = {figure: values["value"] for figure, values in found.items()}
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            results.setdefault(name, {})[form] = {"measured": today, **own}
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    told("")
    table(rows)
    for fault in faults:
        told(f"no figures: {fault}")
    return int(bool(faults) or not all(figure.holds for _, figure, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
