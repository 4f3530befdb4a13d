"""Texts as dedup compares them, and how like each other two are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_specs.text.folding import normals
from pipeline.dedup.greedy import NONE, Nodes
from pipeline.matching.sketches import are_same, similarities, sketch
from pipeline.matching.text_edges import TextEntries, TextJoin
from pipeline.matching.text_rows import TextRows

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


def leaders_among(texts: TextRows, threshold: float) -> list[int]:
    """The row of the leader of each of some distinct texts, which come in order."""
    own, size = texts.sketches, len(texts)
    join, entries = TextJoin(threshold, own.without_keys, np.arange(size, dtype=np.uint32)), TextEntries.of(own.keys)
    join.join(entries.keys, entries.owner.astype(np.int64))
    edges, crowds = join.edges()

    def alike(text: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        rows = np.full(len(others), text)
        shared: npt.NDArray[np.bool_] = (own.keys[rows] == own.keys[others]).any(axis=1)
        return are_same(own, rows, own, others, threshold) & shared

    nothing = np.zeros(0, np.int64)
    nodes = Nodes(nothing.reshape(0, 2), edges, crowds, nothing, alike)
    led, leaders = np.zeros(len(nodes), np.bool_), list(range(size))
    for text, node in enumerate(nodes.of(np.arange(size)).tolist()):
        if node != NONE and not led[node]:
            matching = nodes.matching(node, lambda some: ~led[some] & (some > node))  # noqa: B023
            led[matching] = True
            for other in nodes.numbers[matching].tolist():
                leaders[other] = text
    return leaders
