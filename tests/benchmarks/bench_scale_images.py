"""Near images at scale: the leader pass over a million images' hashes and signatures, 50,000 of them one hot cluster.

What is measured is what dedup runs on images: blocks of `leaders.BLOCK` by rank, `ImageLeaders.first`, `among` for
those without a leader, `add` for those that are kept, at the shipped radius and threshold; one process of one thread
that reads the columns from a file block by block. The exponent is that of its CPU time from 100,000 to 1,000,000
images. Images are drawn (`drawn_images.py`).

The rate of candidates times the number of images tells what 30 million and 650 million would cost; of images that are
compared in parallel `bench_candidates.py` does. At radius 10 on 64 bits the plain index is timed alone: its queries by
the thousand, against 100,000 and 1,000,000 codes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
SIZES = (100_000, 1_000_000)


def main() -> int:
    from drawn_images import missing, prepare
    from harness import at_most, quick, report

    small = quick(__doc__ or "")
    if missing():
        print("bench_scale_images needs ../shared/corpus and the demo corpus (`make demo` unpacks it)", file=sys.stderr)
        return 1
    few, many = (5_000, 50_000) if small else SIZES
    with tempfile.TemporaryDirectory(prefix="wenlan-scale-") as name:
        folder = Path(name)
        prepare(folder, many, small)
        first, second = (_leader_pass(folder, count) for count in (few, many))
    growth = math.log(second["cpu"] / first["cpu"]) / math.log(many / few)
    at_ten = radius_ten(few, many)
    return report(
        {
            "images_seconds": at_most(second["wall"], 120, "s"),
            "images_memory": at_most(second["gb"], 4, "GB"),
            "images_exponent": at_most(growth, 1.15, ""),
            "images_exponent_radius_10": at_most(at_ten, 1.6, ""),
        }
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# What is measured.


def _leader_pass(folder: Path, count: int) -> dict[str, float]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, __file__, "--pass", str(folder), str(count)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one_thread, "PYTHONPATH": str(ROOT)},
    )
    wall, cpu, gb, kept, candidates = map(float, done.stdout.split())
    _say(
        f"{count:,} images: {wall:.1f} s, {cpu:.1f} s of CPU, {gb:.2f} GB, {int(kept):,} kept;"
        f" an image has {candidates:.1f} candidates: {candidates / kept * 30e6:,.0f} at 30 million leaders,"
        f" {candidates / kept * 650e6:,.0f} at 650 million"
    )
    return {"wall": wall, "cpu": cpu, "gb": gb}


def serve_pass(folder: Path, count: int) -> None:
    """The leader pass; prints seconds, CPU seconds, GB, leaders, and how many of them an image is compared with."""
    from drawn_images import ASKED, leaders

    from pipeline.matching.leader_pass import BLOCK
    from pipeline.pictures.hashing import HASHES
    from pipeline.pictures.signatures import GRIDS, SIZE

    index = leaders()
    wall, cpu = time.perf_counter(), time.process_time()
    with (folder / "phash").open("rb") as hashes, (folder / "signature").open("rb") as signatures:
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            phash = np.frombuffer(hashes.read(size * HASHES * 8), np.uint64).reshape(size, HASHES)
            signature = np.frombuffer(signatures.read(size * GRIDS * SIZE), np.uint8).reshape(size, -1)
            rest = np.flatnonzero(index.first(phash, signature) < 0)
            kept = list[int]()
            for row, before in zip(rest, index.among(phash[rest], signature[rest]), strict=True):
                if not any(int(rest[earlier]) in kept for earlier in before):
                    kept.append(int(row))
            index.add(phash[kept], signature[kept])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    with (folder / "phash").open("rb") as hashes:
        hashes.seek(-ASKED * HASHES * 8, os.SEEK_END)
        asked = np.frombuffer(hashes.read(), np.uint64).reshape(ASKED, HASHES)
    print(wall, cpu, int(peak.split()[1]) / 2**20, index.count, index.candidates(asked) / ASKED)


def radius_ten(few: int, many: int) -> float:
    """Exponent of the time in which the plain index compares all codes with all, at radius 10."""
    from pipeline.matching.hash_index import HashIndex

    codes = np.random.default_rng(10).integers(1, 2**64, many, dtype=np.uint64)
    seconds = []
    for size in (few, many):
        index = HashIndex(10)
        start = time.process_time()
        index.add(codes[:size], np.arange(size))
        index.near(codes[:1])  # what was added is sorted when it is first asked
        built = time.process_time() - start
        start = time.process_time()
        index.near(codes[:4_096])
        seconds.append(built + (time.process_time() - start) * size / 4_096)
    _say(f"radius 10, all with all: {seconds[0]:.0f} s at {few:,} codes, {seconds[1]:.0f} s at {many:,}")
    return math.log(seconds[1] / seconds[0]) / math.log(many / few)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pass"]:
        serve_pass(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        raise SystemExit(main())
