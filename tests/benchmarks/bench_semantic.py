"""Semantic dedup: the leader pass over features of images, beside the plain product with all leaders in float32.

Vectors of 512 numbers with a falling spectrum (the k-th direction as long as 1 / sqrt(k)), in groups. Ours is
`pipeline.matching.semantic` as stage `nearest` runs it; the peer multiplies each block by every leader in full, which
is what a plain exact search does, and takes what lies within the distance in the same order. Seconds are of the
processor. The answers of blocks of 2,048 and of 700 are compared, row by row: they must be equal.

Limits: float32 sums of the peer may decide a pair at the limit otherwise; how many it does is shown.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

DISTANCE = 0.05


def main() -> int:
    from harness import Figure, at_least, quick, report

    small = quick(__doc__ or "")
    count = 20_000 if small else 100_000
    vectors = made(count, 512)
    ours, peer = list[float](), list[float]()
    for turn in range(1 if small else 3):
        kept, own = timed(lambda: passed(vectors, 2_048))
        ours.append(own)
        plain, other = timed(lambda: by_floats(vectors, 2_048))
        peer.append(other)
        print(f"turn {turn + 1}: ours {own:.1f} s, plain {other:.1f} s; kept {len(kept):,}", file=sys.stderr)
    again = passed(vectors, 700)
    apart = len(set(kept) ^ set(plain))
    rate = count / np.median(ours)
    print(f"{rate:,.0f} images per second of a core; {apart} decided otherwise by floats", file=sys.stderr)
    return report(
        {
            "semantic_against_plain": at_least(float(np.median(peer) / np.median(ours)), 1.0 if small else 1.5),
            "semantic_blocks_differ": Figure(len(set(kept) ^ set(again)), "images", 0, kept == again),
        }
    )


def made(count: int, width: int) -> Any:
    """float16 [count, width] unit rows around a twentieth as many centres."""
    rng = np.random.default_rng(0)
    lengths = 1 / np.sqrt(np.arange(1, width + 1))
    centres = rng.normal(size=(count // 20, width)) * lengths
    spread = rng.uniform(0.05, 0.6, size=(count, 1))
    rows = centres[rng.integers(len(centres), size=count)] + spread * rng.normal(size=(count, width)) * lengths
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def timed(work: Any) -> tuple[Any, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def passed(vectors: Any, block: int) -> list[int]:
    """Rows that the leader pass keeps."""
    from pipeline.matching.semantic import SemanticLeaders, codes_of, millionths, resolved

    within, reach = millionths(DISTANCE), millionths(1.5 * DISTANCE)
    leaders, kept = SemanticLeaders(reach), list[int]()
    for low in range(0, len(vectors), block):
        codes = codes_of(vectors[low : low + block])
        own, _ = resolved(codes, leaders.nearest(codes), within, reach, len(kept))
        leaders.add(codes[own], np.arange(len(kept), len(kept) + len(own)))
        kept += [low + row for row in own]
    return kept


def by_floats(vectors: Any, block: int) -> list[int]:
    """The same by full products in float32."""
    leaders, count, kept = np.empty((len(vectors), vectors.shape[1]), np.float32), 0, list[int]()
    for low in range(0, len(vectors), block):
        rows = vectors[low : low + block].astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        free = np.ones(len(rows), np.bool_)
        for start in range(0, count, 16_384):
            free &= ~(rows @ leaders[start : min(count, start + 16_384)].T >= 1 - DISTANCE).any(axis=1)
        near = rows @ rows.T >= 1 - DISTANCE
        own = list[int]()
        for row in np.flatnonzero(free):
            if not near[row, own].any():
                own.append(int(row))
        leaders[count : count + len(own)] = rows[own]
        count += len(own)
        kept += [low + row for row in own]
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
