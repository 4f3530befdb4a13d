"""Texts as dedup compares them, and how like each other two are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_specs.text.folding import normals
from pipeline.matching.sketches import similarities, sketch

LETTERS = [c for c in map(chr, range(0x4E00, 0x8000, 7)) if not c.isnumeric()]
"""Han characters, none of them a numeral."""


def shingles(texts: list[str]) -> list[npt.NDArray[np.uint32]]:
    """The hashes of the shingles of each text."""
    made = sketch(normals(texts), 0.7)
    return np.split(made.shingles, made.starts[1:-1])


def likeness(a: str, b: str) -> float:
    """The similarity of two texts, 0 to 1."""
    both, row = sketch(normals([a, b]), 0.7), np.zeros(1, np.int64)
    return float(similarities(both, row, both, row + 1)[0])
