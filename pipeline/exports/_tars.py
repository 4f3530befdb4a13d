"""Samples as numbered tars, for the formats that are WebDataset."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.files.tars import TarWriter
from pipeline.store.samples import Stored

PER_TAR = 10_000

Members = list[tuple[str, bytes]]


def image_and_text(stored: Stored) -> Members:
    return [(f"{stored.key}.jpg", stored.image), (f"{stored.key}.txt", stored.text.encode())]


def write_tars(
    samples: Iterator[Stored], folder: Path, name: str, members: Callable[[Stored], Members]
) -> tuple[list[Path], int]:
    """Write samples into tars, none of them empty; returns (tars, samples). name: of a tar, with its number for {}."""
    tars, count = list[Path](), 0
    for first in samples:
        tars.append(folder / name.format(len(tars)))
        with tars[-1].open("wb") as f:
            tar = TarWriter(f)
            for stored in itertools.chain([first], itertools.islice(samples, PER_TAR - 1)):
                for member, data in members(stored):
                    tar.add(member, data)
                count += 1
            tar.close()
    return tars, count
