"""One build on 1, 2 and 4 Ray nodes of one CPU each (real raylets on this machine): what each stage gains, and memory.

The same drawn pairs (`drawn_pairs.py`) are built on each number of nodes, which must give the same dataset. The table
shows the seconds of each stage, by its own clock, and over those on one node, and the CPU seconds of its tasks; a stage
of one partition gains nothing. Where it takes longer for the same CPU, its task waited for the machine.
No more nodes gain than the machine has cores; what four of them take on two cores is shown, and holds no bar.

    faster_on_2     seconds of all stages on one node / on two, at least 1.5
    driver_mb_N     the most memory of the driver's process at N candidates; it must not grow with them
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from drawn_pairs import drawn_spec
from harness import Figure, at_least, at_most, report
from ray_nodes import Nodes

FASTER, GROWTH_MB = 1.5, 60.0
"""Bars: of two nodes; and of the driver's memory, from the smallest number of candidates to the largest."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 pairs on 1 and 2 nodes, and 500")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--sizes", default="10000,100000", help="candidates at which the driver's memory is looked at")
    args = parser.parse_args()
    pairs, counts = (2_000, [1, 2]) if args.quick else (args.pairs, [int(n) for n in args.nodes.split(",")])
    sizes = [500, 2_000] if args.quick else [int(n) for n in args.sizes.split(",")]
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="wenlan-nodes-") as name:
        folder = Path(name)
        spec = drawn_spec(folder / "pairs", pairs, 0)
        built = {}
        for count in counts:
            (folder / f"cluster{count}").mkdir()
            with Nodes(folder / f"cluster{count}", count, store_bytes=200_000_000) as nodes:
                built[count] = build(spec, folder / f"on{count}", nodes.environment)
        show(built)
        assert len({own["content_digest"] for own in built.values()}) == 1, "another dataset on other nodes"
        seconds = {count: sum(stage["seconds"] for stage in own["stages"].values()) for count, own in built.items()}
        if not args.quick:  # whose stages take less than a worker needs to come up
            figures["faster_on_2"] = at_least(seconds[1] / seconds[2], FASTER)
        memory = {pairs: built[1]["driver_mb"]}
        for size in sizes:
            if size not in memory:
                own = drawn_spec(folder / f"pairs{size}", size, 0)
                memory[size] = build(own, folder / f"size{size}", {})["driver_mb"]
        for size in sorted(memory):
            figures[f"driver_mb_{size}"] = at_most(memory[size], memory[min(memory)] + GROWTH_MB, "MB")
    return report(figures)


def build(spec: Path, out: Path, environment: dict[str, str]) -> dict[str, Any]:
    """build.json of a build, with `content_digest` of its dataset and `driver_mb` of its process."""
    command = [sys.executable, "-m", "pipeline", "build", str(spec), "--out", str(out)]
    peak = 0.0
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        done = threading.Event()

        def look() -> None:
            nonlocal peak
            while not done.wait(0.2):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
                    peak = max([peak, *(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))])

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        began = time.monotonic()
        assert process.wait() == 0, f"the build ended with {process.returncode}"
        done.set()
        looking.join()
    known: dict[str, Any] = json.loads((out / "build.json").read_text("utf-8"))
    manifest = json.loads((out / "shards/manifest.json").read_text("utf-8"))
    print(f"{out.name}: {time.monotonic() - began:.0f} s, driver {peak:.0f} MB", file=sys.stderr)
    return {**known, "content_digest": manifest["content_digest"], "driver_mb": peak}


def show(built: dict[int, dict[str, Any]]) -> None:
    """Seconds of each stage by the number of nodes, how much faster than one, and CPU seconds of the tasks."""
    heads = "".join(f"  {f'{count} nodes, s':>11s}       x    CPU s" for count in built)
    print(f"\nstage            partitions{heads}", file=sys.stderr)
    for name, stage in built[min(built)]["stages"].items():
        if stage["partitions"]:
            cells = ""
            for own in (known["stages"][name] for known in built.values()):
                faster = stage["seconds"] / max(0.01, own["seconds"])
                cells += f"  {own['seconds']:11.2f}  {faster:6.2f}  {own['cost']['cpu_seconds']:7.2f}"
            print(f"{name:16s} {stage['partitions']:10d}{cells}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
