"""Near images at scale: the leader pass over a million images' hashes and signatures, 50,000 of them one hot cluster.

What is measured is what dedup runs on images: blocks of `leaders.BLOCK` by rank, `ImageLeaders.first`, `among` for
those without a leader, `add` for those that are kept, at the shipped radius and threshold; one process of one thread
that reads the columns from a file block by block. The exponent is that of its CPU time from 100,000 to 1,000,000
images.

The images are drawn, not random bits: a smoothed bootstrap (Silverman and Young, "The bootstrap: to smooth or not to
smooth?", 1987) of real photos and stamps. A drawn image is a real one, shrunk towards the mean, plus Gaussian noise
with the covariance of all real ones. Frequencies and signatures are sums over pixels, so the drawing is done on them:
hashes have the real correlations between their bits and between parts, and signatures agree with them. How much noise
is fitted: the share of pairs that the index brings together is that of the real pictures, photos and stamps alike. The
hot cluster are real copies of one photo (`copies.COPIES`), with noise of two grey levels on every cell.

The rate of candidates times the number of images tells what 30 million and 650 million would cost. At radius 10 on 64
bits the plain index is timed alone: its queries by the thousand, against 100,000 and 1,000,000 codes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
PHOTOS = ROOT.parent / "shared" / "corpus" / "howtocook-site"
STAMPS = ROOT / "demo" / "corpus" / "stamps"
PART, ASKED = 4_096, 2_048
SIZES = (100_000, 1_000_000)
HOT = 0.05
RANK = 256


def main() -> int:
    from harness import at_most, quick, report

    small = quick(__doc__ or "")
    if not STAMPS.is_dir() or not PHOTOS.is_dir():
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


# Real pictures, and drawn ones.


def prepare(folder: Path, count: int, small: bool) -> None:
    """`phash` and `signature` of `count` images in the order of their ranks, as plain files, and of ASKED more."""
    files = [*sorted(PHOTOS.rglob("*.jpg")), *sorted(STAMPS.rglob("*.png"))][:: 4 if small else 1]
    with ProcessPoolExecutor(2) as pool:
        real = np.stack(list(pool.map(_sums, map(Path.read_bytes, files), chunksize=16)))
        hot = np.stack(list(pool.map(_hot, range(70 if small else 420), chunksize=8)))
        rate, pairs = _pair_rate(*_looks(real))
        noise, reached = _fitted(real, rate)
        _say(
            f"{len(files):,} real pictures: {pairs:,} pairs are candidates, {rate:.2e} of all;"
            f" drawn with noise {noise:.2f}: {reached:.2e}"
        )
        np.savez(folder / "drawing.npz", *_drawing(real), hot, noise)
        tasks = [(folder, start, min(PART, count - start), HOT) for start in range(0, count, PART)]
        tasks.append((folder, count, ASKED, 0.0))  # none of the hot cluster, for counting candidates
        with (folder / "phash").open("wb") as phash, (folder / "signature").open("wb") as signature:
            for hashes, signatures in pool.map(_drawn_looks, tasks):
                phash.write(hashes)
                signature.write(signatures)


def _sums(data: bytes) -> Any:
    """What hashes and signature are made of: frequencies of all parts, then the signature's means, as one row."""
    from pipeline.features.signature import Signature
    from pipeline.pictures.decode import decode
    from pipeline.pictures.hashing import levels_of
    from pipeline.pictures.thumbs import REDUCE_TO, THUMB, Views, fill

    squares = np.empty((1, THUMB, THUMB, 4), np.uint8)
    fill(squares[0], decode(data, 10**9, reduce_to=REDUCE_TO))
    views = Views(squares)
    means = np.frombuffer(Signature().of(views)[0], np.uint8)
    return np.concatenate([levels_of(views.thumbs).ravel(), means]).astype(np.float32)


def _hot(number: int) -> Any:
    """The same of a copy of one photo."""
    from copies import COPIES
    from PIL import Image

    from pipeline.pictures.decode import decode

    picture = decode(sorted(PHOTOS.rglob("*.jpg"))[7].read_bytes(), 10**9).pixels
    kinds = list(COPIES.values())
    return _sums(kinds[number % len(kinds)](Image.fromarray(picture), number // len(kinds)))


def _looks(rows: Any) -> tuple[Any, Any]:
    """Hashes [N, HASHES] and signatures [N, bytes] of rows of sums; drawn images have no margins."""
    from pipeline.pictures.hashing import CONTENT, HASHES, codes_of

    own = HASHES - 1
    levels = np.rint(rows[:, : own * 64].astype(np.float64)).reshape(-1, 64)
    means = np.clip(np.rint(rows[:, own * 64 :]), 0, 255).astype(np.uint8)
    return np.insert(codes_of(levels).reshape(-1, own), CONTENT, 0, axis=1), means


def _pair_rate(phash: Any, signature: Any) -> tuple[float, int]:
    """Share of pairs that the index takes for candidates, and their number."""
    leaders = _leaders()
    leaders.add(phash, signature)
    size = len(phash)
    pairs = (leaders.candidates(phash) - size) // 2  # both ways, and each with itself
    return pairs / (size * (size - 1) / 2), pairs


def _drawing(real: Any) -> tuple[Any, Any, Any]:
    """Mean, deviations from it, and RANK directions of a Gaussian with the deviations' covariance."""
    middle = real.mean(axis=0)
    apart = real - middle
    _, values, vectors = np.linalg.svd(apart.astype(np.float64), full_matrices=False)
    spread = values[:RANK, None] * vectors[:RANK] / math.sqrt(len(real))
    return middle, apart, spread.astype(np.float32)


def _draw(middle: Any, apart: Any, spread: Any, noise: float, count: int, seed: int) -> Any:
    """Rows of `count` drawn images."""
    rng = np.random.default_rng(seed)
    chosen = apart[rng.integers(0, len(apart), count)]
    return middle + math.sqrt(1 - noise**2) * chosen + noise * _normal(rng, (count, len(spread))) @ spread


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.standard_normal(shape, dtype=np.float32)


def _fitted(real: Any, rate: float) -> tuple[float, float]:
    """The noise at which as many pairs of drawn images are candidates, and their rate."""
    drawing, low, high, reached = _drawing(real), 0.0, 1.0, 0.0
    for _ in range(7):
        noise = (low + high) / 2
        reached, _ = _pair_rate(*_looks(_draw(*drawing, noise, 8_000, 1)))
        low, high = (noise, high) if reached > rate else (low, noise)
    return noise, reached


def _drawn_looks(task: tuple[Path, int, int, float]) -> tuple[bytes, bytes]:
    folder, start, count, hot_share = task
    with np.load(folder / "drawing.npz") as file:
        *drawing, hot, noise = (file[f"arr_{n}"] for n in range(5))
    rows = _draw(*drawing, float(noise), count, start + 2)
    rng = np.random.default_rng([2, start])
    copies = np.flatnonzero(rng.random(count) < hot_share)
    rows[copies] = hot[rng.integers(0, len(hot), len(copies))] + 2 * _normal(rng, (len(copies), rows.shape[1]))
    phash, signature = _looks(rows)
    return phash.tobytes(), signature.tobytes()


# What is measured.


def _leaders(radius: int | None = None) -> Any:
    from data_specs.build import Dedup
    from pipeline.matching.near_images import ImageLeaders

    return ImageLeaders(Dedup().image_distance if radius is None else radius, Dedup().image_signature)


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
    from pipeline.matching.leader_pass import BLOCK
    from pipeline.pictures.hashing import HASHES
    from pipeline.pictures.signatures import GRIDS, SIZE

    leaders = _leaders()
    wall, cpu = time.perf_counter(), time.process_time()
    with (folder / "phash").open("rb") as hashes, (folder / "signature").open("rb") as signatures:
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            phash = np.frombuffer(hashes.read(size * HASHES * 8), np.uint64).reshape(size, HASHES)
            signature = np.frombuffer(signatures.read(size * GRIDS * SIZE), np.uint8).reshape(size, -1)
            rest = np.flatnonzero(leaders.first(phash, signature) < 0)
            kept = list[int]()
            for row, before in zip(rest, leaders.among(phash[rest], signature[rest]), strict=True):
                if not any(int(rest[earlier]) in kept for earlier in before):
                    kept.append(int(row))
            leaders.add(phash[kept], signature[kept])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    with (folder / "phash").open("rb") as hashes:
        hashes.seek(-ASKED * HASHES * 8, os.SEEK_END)
        asked = np.frombuffer(hashes.read(), np.uint64).reshape(ASKED, HASHES)
    print(wall, cpu, int(peak.split()[1]) / 2**20, leaders.count, leaders.candidates(asked) / ASKED)


def radius_ten(few: int, many: int) -> float:
    """Exponent of the time in which the plain index compares all codes with all, at radius 10."""
    from pipeline.matching.near_images import HashIndex

    codes = np.random.default_rng(10).integers(1, 2**64, many, dtype=np.uint64)
    seconds = []
    for size in (few, many):
        index = HashIndex(10)
        start = time.process_time()
        index.add(codes[:size], np.arange(size))
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
