"""Samples as numbered tars, for the formats that are WebDataset."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.files.tars import TarWriter
from pipeline.store.samples import Stored

PER_TAR = 10_000
"""Samples of a tar."""

Members = list[tuple[str, bytes]]


def write_tars(
    samples: Iterator[Stored], path: Callable[[int], Path], members: Callable[[Stored], Members]
) -> tuple[int, int]:
    """Write samples into tars at path(0), path(1) ..., none of them empty; returns (tars, samples)."""
    count = 0
    for number in itertools.count():
        first = next(samples, None)
        if first is None:
            return number, count
        with path(number).open("wb") as f:
            tar = TarWriter(f)
            for stored in itertools.chain([first], itertools.islice(samples, PER_TAR - 1)):
                for name, data in members(stored):
                    tar.add(name, data)
                count += 1
            tar.close()
    raise AssertionError
