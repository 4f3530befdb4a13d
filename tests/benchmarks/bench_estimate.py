"""What `plan --estimate` says a build costs, against builds that were run: 10,000, 100,000 and 1,000,000 drawn pairs.

Each size is built from tars of drawn pairs (`drawn_pairs.py`) by `wenlan-data build` in a process of its own, with the
filters and the dedup that a spec has by default. The estimate for each larger size is made from the build of the
smallest. What the stages' partitions took is held against it; a figure holds where it is within a fifth.

--write FILE keeps what was measured as growth.json, by which estimates are made (`pipeline/report/growth.py`). The
check needs another seed than the one it was written with, else it would be held against itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drawn_pairs import drawn_spec
from harness import Figure, report

from pipeline.report.estimate import Machines, estimated
from pipeline.stages import STAGES

WITHIN, ROUGHLY = 0.2, 0.6
"""Of what was measured; and at --quick, where half of the cost is what processes load once."""
FIGURES = ("seconds", "cpu_seconds", "bytes")
BOUNDS = ("driver_seconds", "longest_seconds", "peak_bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="500 and 2,000 pairs, under 60 seconds")
    parser.add_argument("--sizes", default="10000,100000,1000000", help="pairs; the smallest is the measure")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path, help="keep what was measured in this file, beside other sizes")
    args = parser.parse_args()
    sizes = [500, 2_000] if args.quick else sorted(int(size) for size in args.sizes.split(","))
    built = {}
    with tempfile.TemporaryDirectory(prefix="wenlan-estimate-") as name:
        for size in sizes:
            built[size] = build(Path(name) / str(size), size, args.seed, args.workers)
            if args.write:
                write(args.write, size, built[size])
    figures = {}
    for size in sizes[1:]:
        told = estimated(built[sizes[0]], size, STAGES, Machines(args.workers))
        show(size, told, built[size])
        measured = {key: sum(stage["cost"][key] for stage in built[size]["stages"].values()) for key in FIGURES}
        measured["wall_seconds"] = sum(stage["seconds"] for stage in built[size]["stages"].values())
        for key, value in measured.items():
            figures[f"{key}_of_{size}"] = close(told["total"][key] / value, ROUGHLY if args.quick else WITHIN)
    return report(figures)


def close(ratio: float, within: float) -> Figure:
    return Figure(round(ratio, 3), "x", within, 1 - within <= ratio <= 1 + within)


def build(folder: Path, pairs: int, seed: int, workers: int) -> dict[str, Any]:
    """build.json of a build over so many drawn pairs."""
    spec = drawn_spec(folder, pairs, seed)
    command = ["-m", "pipeline", "build", str(spec), "--out", str(folder / "out"), "--workers", str(workers)]
    began = time.monotonic()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    known: dict[str, Any] = json.loads((folder / "out/build.json").read_text("utf-8"))
    outside = seconds - sum(stage["seconds"] for stage in known["stages"].values())
    print(f"{pairs:,} pairs built in {seconds:.0f} s, {outside:.0f} s of it outside of stages", file=sys.stderr)
    return known


def show(size: int, told: dict[str, Any], known: dict[str, Any]) -> None:
    """Both, stage by stage."""
    print(f"\n{size:,} pairs   CPU s told  measured   wall s told  measured   MB told  measured", file=sys.stderr)
    for name, own in told["stages"].items():
        cost, bounds, wall = (known["stages"][name][key] for key in ("cost", "bounds", "seconds"))
        pairs = ((own["cpu_seconds"], cost["cpu_seconds"]), (own["wall_seconds"], wall))
        cells = "  ".join(f"{one:11.1f} {other:9.1f}" for one, other in pairs)
        memory = f"{own['peak_bytes'] / 1e6:8.0f} {bounds['peak_bytes'] / 1e6:9.0f}"
        print(f"{name:16s} {cells}  {memory}", file=sys.stderr)


def write(file: Path, size: int, known: dict[str, Any]) -> None:
    """Keep what was measured at a size."""
    stored = json.loads(file.read_text("utf-8")) if file.exists() else {"sizes": [], "stages": {}}
    rows = {
        at: {name: {key: values[place] for key, values in of.items()} for name, of in stored["stages"].items()}
        for place, at in enumerate(stored["sizes"])
    }
    rows[size] = {
        name: {
            **{key: stage["cost"][key] for key in FIGURES},
            **{key: stage["bounds"][key] for key in BOUNDS},
            "partitions": stage["partitions"],
            "seen": stage["funnel"].get("seen", 0),
        }
        for name, stage in known["stages"].items()
    }
    sizes = sorted(rows)
    stages = {
        name: {key: [rows[at].get(name, {}).get(key, 0) for at in sizes] for key in own}
        for name, own in rows[size].items()
        if any(rows[at].get(name, {}).get("partitions") for at in sizes)
    }
    lines = [f"{json.dumps(name)}: {json.dumps(own)}" for name, own in stages.items()]
    file.write_text(f'{{"sizes": {json.dumps(sizes)}, "stages": {{\n' + ",\n".join(lines) + "\n}}\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
