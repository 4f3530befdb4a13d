"""Arrays of numbers (`runs`, `earlier`) that the passes `copies` and `edges` write, and their readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dedup.earlier import IMAGES
from pipeline.files.arrays import Arrays, ArrayWriter
from pipeline.matching.crowds import Crowds
from pipeline.matching.image_keys import Ints
from pipeline.store.build import Build
from pipeline.store.commits import Attempt
from pipeline.store.ranges import KeyRange

COPIES = "copies"
KEPT_IMAGES, KEPT_TEXTS = "kept.images", "kept.texts"
"""[K, 3]: number; number of an earlier one that it is equal to, or looks like; 1 for one of `made_from`."""

EDGES = "edges"
"""[K, 2]: the numbers of two that look alike, or are the same."""

_CROWDS = (("members", np.int64), ("starts", np.int64), ("follows", np.uint8), ("pairs", np.int64))


def ranges(size: int, at_most: int) -> list[str]:
    """Names of equal ranges of so many items, about `at_most` each; none of nothing."""
    return [str(part) for part in KeyRange.cut(-(-size // at_most))]


def ranges_of(partition: str) -> tuple[float, float]:
    """Begin and end of a range, as shares of all."""
    part = KeyRange.of_partition(partition)
    return part.first / part.of, (part.last + 1) / part.of


def write_found(attempt: Attempt, found: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays as the file of a partition."""
    with attempt.path("bin").open("wb") as file:
        writer = ArrayWriter(file)
        for name, values in found.items():
            writer.add(name, values)
        writer.finish()


def crowd_arrays(kind: str, crowds: Crowds) -> dict[str, npt.NDArray[Any]]:
    return {f"crowds.{kind}.{name}": getattr(crowds, name).astype(of) for name, of in _CROWDS}


def read_found(build: Build, stage: str, name: str, width: int) -> Ints:
    """[K, width] an array of all partitions of a stage, one after the other."""
    directory, parts = build.stage(stage), [np.zeros((0, width), np.int64)]
    for record in directory.records():
        with Arrays(directory.folder, record.files["bin"].name) as arrays:
            parts.append(arrays[name].copy())
    return np.concatenate(parts)


def read_crowds(build: Build, kind: str) -> Crowds:
    directory, parts = build.stage("dedup.edges"), list[Crowds]()
    for record in directory.records():
        with Arrays(directory.folder, record.files["bin"].name) as arrays:
            found = (arrays[f"crowds.{kind}.{name}"].copy() for name, _ in _CROWDS)
            members, starts, follows, pairs = found
            parts.append(Crowds(members, starts, follows.astype(np.bool_), pairs))
    return Crowds.concat(parts)


class Collapsed:
    """Images, or texts, of a build that need no comparison: copies, and what an earlier build has to the letter."""

    def __init__(self, build: Build, kind: str, size: int) -> None:
        """size: of all images, or texts."""
        self._out, self.copied = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        copies = read_found(build, "dedup.copies", f"{COPIES}.{kind}", 2)
        self._out[copies[:, 0]] = True
        self.copied[copies[:, 1]] = True
        """[N] which are the first of several."""
        kept = read_found(build, "dedup.copies", KEPT_IMAGES if kind == IMAGES else KEPT_TEXTS, 3)
        self._out[kept[kept[:, 2] == 0, 0]] = True

    def remaining(self, numbers: Ints) -> Ints:
        """Places in `numbers` of those that are compared."""
        return np.flatnonzero(~self._out[numbers])
