"""Images with details, drawn by chance: few kinds of maps and hashes, each changed a little, so that many are near."""

from __future__ import annotations

import numpy as np

from pipeline.matching.image_comparison import Details
from pipeline.pictures import details


def drawn_details(rng: np.random.Generator, size: int, kinds: int, flips: int, share: float = 0.7) -> Details:
    """Details of a share of `size` images. Maps of one kind are the same but for words in another place, or noise."""
    blocks = rng.integers(10, 50, (kinds, 6, 6)).repeat(8, axis=1).repeat(8, axis=2)
    maps = blocks[rng.integers(0, kinds, size), : details.SIDE, : details.SIDE]
    maps = maps + rng.integers(0, 2, maps.shape)
    for row in np.flatnonzero(rng.random(size) < 0.3).tolist():
        x, y = rng.integers(2, 30, 2)
        maps[row, y : y + 3, x : x + 12] = rng.integers(0, 64, (3, 12))
    hashes = rng.integers(1, 2**63, (kinds, 1), dtype=np.uint64)[rng.integers(0, kinds, (size, len(details.PARTS))), 0]
    for _ in range(flips):
        hashes ^= np.uint64(1) << rng.integers(0, 64, hashes.shape, dtype=np.uint64)
    stored = details.stored(hashes, np.clip(maps, 0, 63).astype(np.uint8))
    of = np.flatnonzero(rng.random(size) < share)
    return Details(of, stored[of])
