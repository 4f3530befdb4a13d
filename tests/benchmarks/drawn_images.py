"""Hashes and signatures of drawn images, by the million, and of one hot cluster among them.

The images are drawn, not random bits: a smoothed bootstrap (Silverman and Young, "The bootstrap: to smooth or not to
smooth?", 1987) of real photos and stamps. A drawn image is a real one, shrunk towards the mean, plus Gaussian noise
with the covariance of all real ones. Frequencies and signatures are sums over pixels, so the drawing is done on them:
hashes have the real correlations between their bits and between parts, and signatures agree with them. Pictures with
margins, whose content has a hash and a grid of its own, are drawn from those with margins, as many as there are. How
much noise is fitted: the share of pairs that the index brings together is that of the real pictures, photos and stamps
alike. The hot cluster are real copies of one photo (`copies.COPIES`), with noise of two grey levels on every cell.

Limits: two images drawn from one real picture are variants of it, as drawings in two colours are; the more images are
drawn from so few pictures, the more variants has each of them, while the real ones grow more different.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import photos, stamps, told

PART = 4_096
HOT = 0.05
RANK = 256


def prepare(folder: Path, count: int, small: bool, hot: float = HOT) -> None:
    """`phash` and `signature` of so many images in the order of their ranks, as files; hot: share of the cluster."""
    with ProcessPoolExecutor(2) as pool:
        fit(folder, small, pool)
        tasks = [(folder, start, min(PART, count - start), hot) for start in range(0, count, PART)]
        with (folder / "phash").open("wb") as phash, (folder / "signature").open("wb") as signature:
            for hashes, signatures in pool.map(_bytes_of_looks, tasks):
                phash.write(hashes)
                signature.write(signatures)


def fit(folder: Path, small: bool, pool: ProcessPoolExecutor) -> None:
    """What images are drawn from, as `drawing.npz`."""
    files = [*photos(), *stamps()]
    real = np.stack(list(pool.map(_sums, map(Path.read_bytes, files), chunksize=16)))
    hot = np.stack(list(pool.map(_hot, range(70 if small else 420), chunksize=8)))
    rate, pairs = _pair_rate(*_looks(real))
    noise, reached = _fitted(real, rate)
    told(
        f"{len(files):,} real pictures, {int(real[:, 0].sum()):,} with margins: {pairs:,} pairs are candidates,"
        f" {rate:.2e} of all; drawn with noise {noise:.2f}: {reached:.2e}"
    )
    np.savez(folder / "drawing.npz", *_drawing(real)[0], *_drawing(real)[1], hot, noise)


def _sums(data: bytes) -> Any:
    """What hashes and signature are made of, as one row: whether there are margins, frequencies of all parts, means."""
    from pipeline.features.columns import FEATURES
    from pipeline.pictures.decode import decode
    from pipeline.pictures.hashing import CONTENT, levels_of
    from pipeline.pictures.thumbs import REDUCE_TO, THUMB, Views, content, fill, unframed

    picture = decode(data, 10**9, reduce_to=REDUCE_TO)
    squares = np.empty((1, THUMB, THUMB, 4), np.uint8)
    fill(squares[0], picture)
    inside, between = unframed(picture), content(picture)
    views = Views(squares, {} if inside is None else {0: inside}, {} if between is None else {0: between})
    means = np.frombuffer(FEATURES["signature"].of(views)[0], np.uint8)
    of_content = np.zeros(64) if between is None else levels_of(views.content_thumbs)[0, 0]
    levels = np.insert(levels_of(views.unframed_thumbs)[0], CONTENT, of_content, axis=0)
    return np.concatenate([[between is not None], levels.ravel(), means]).astype(np.float32)


def _hot(number: int) -> Any:
    """The same of a copy of one photo."""
    from PIL import Image

    from pipeline.pictures.decode import decode
    from tests.benchmarks.copies import COPIES

    picture = decode(photos()[7].read_bytes(), 10**9).pixels
    kinds = list(COPIES.values())
    return _sums(kinds[number % len(kinds)](Image.fromarray(picture), number // len(kinds)))


def _looks(rows: Any) -> tuple[Any, Any]:
    """Hashes [N, HASHES] and signatures [N, bytes] of rows of sums."""
    from pipeline.pictures.hashing import CONTENT, HASHES, codes_of
    from pipeline.pictures.signatures import GRIDS

    levels = np.rint(rows[:, 1 : 1 + HASHES * 64].astype(np.float64)).reshape(-1, 64)
    codes = codes_of(levels).reshape(-1, HASHES)
    means = np.clip(np.rint(rows[:, 1 + HASHES * 64 :]), 0, 255).astype(np.uint8)
    without = rows[:, 0] < 0.5
    codes[without, CONTENT] = 0
    means.reshape(len(rows), GRIDS, -1)[without, GRIDS - 1] = 0
    return codes, means


def _pair_rate(phash: Any, signature: Any) -> tuple[float, int]:
    """Share of pairs whose hashes are near, and their number."""
    from data_specs.build import Dedup
    from pipeline.matching.image_comparison import families

    size, pairs = len(phash), 0
    every = [(of, part) for of in families(Dedup().image_distance) if not of.fine for part in of.parts]
    for row in range(size):  # 0 is near nothing
        near = np.zeros(size - row - 1, np.bool_)
        for family, part in every:
            for one, other in ((family.asks, part), (part, family.asks)):
                codes = phash[row + 1 :, other]
                near |= (
                    (np.bitwise_count(codes ^ phash[row, one]) <= family.radius) & (codes != 0) & (phash[row, one] != 0)
                )
        pairs += int(np.count_nonzero(near))
    return pairs / (size * (size - 1) / 2), pairs


def _drawing(real: Any) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Of pictures without margins, and of those with: mean, deviations from it, and directions of a Gaussian.

    The Gaussian, of RANK directions, has the deviations' covariance.
    """
    return _of_one_kind(real[real[:, 0] < 0.5]), _of_one_kind(real[real[:, 0] >= 0.5])


def _of_one_kind(real: Any) -> tuple[Any, Any, Any]:
    middle = real.mean(axis=0)
    apart = real - middle
    _, values, vectors = np.linalg.svd(apart.astype(np.float64), full_matrices=False)
    spread = values[:RANK, None] * vectors[:RANK] / math.sqrt(len(real))
    return middle, apart, spread.astype(np.float32)


def _draw(kinds: Any, noise: float, count: int, seed: int) -> tuple[Any, Any]:
    """Rows of `count` drawn images, and the number of the real picture that each was drawn from."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, sum(len(apart) for _, apart, _ in kinds), count)
    rows, start = np.empty((count, kinds[0][1].shape[1]), np.float32), 0
    for middle, apart, spread in kinds:
        here = np.flatnonzero((chosen >= start) & (chosen < start + len(apart)))
        rows[here] = middle + math.sqrt(1 - noise**2) * apart[chosen[here] - start]
        rows[here] += noise * _normal(rng, (len(here), len(spread))) @ spread
        rows[here, 0] = middle[0]
        start += len(apart)
    return rows, chosen


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.standard_normal(shape, dtype=np.float32)


def _fitted(real: Any, rate: float) -> tuple[float, float]:
    """The noise at which as many pairs of drawn images are candidates, and their rate."""
    kinds, low, high, reached = _drawing(real), 0.0, 1.0, 0.0
    for _ in range(7):
        noise = (low + high) / 2
        reached, _ = _pair_rate(*_looks(_draw(kinds, noise, 8_000, 1)[0]))
        low, high = (noise, high) if reached > rate else (low, noise)
    return noise, reached


def _drawn(task: tuple[Path, int, int, float]) -> tuple[Any, Any, Any]:
    """Hashes, signatures and the real picture of each, of (folder, first image, count, share of the hot cluster)."""
    folder, start, count, hot_share = task
    with np.load(folder / "drawing.npz") as file:
        *kinds, hot, noise = (file[f"arr_{n}"] for n in range(8))
    rows, chosen = _draw((kinds[:3], kinds[3:]), float(noise), count, start + 2)
    rng = np.random.default_rng([2, start])
    copies = np.flatnonzero(rng.random(count) < hot_share)
    of_hot = hot[rng.integers(0, len(hot), len(copies))]
    rows[copies] = of_hot + 2 * _normal(rng, (len(copies), rows.shape[1]))
    rows[copies, 0] = of_hot[:, 0]
    return *_looks(rows), chosen


def _bytes_of_looks(task: tuple[Path, int, int, float]) -> tuple[bytes, bytes]:
    phash, signature, _ = _drawn(task)
    return phash.tobytes(), signature.tobytes()
