"""Counts of words and probabilities, stored by the judge `balance` for its second pass and for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.store.build import Build
from pipeline.store.partitions import read_at_once

CONCEPTS = "curate.concepts"
"""The pass that counts; the driver reduces its counts to the probabilities."""

COUNTS_SCHEMA = pa.schema([("entry", pa.int32()), ("texts", pa.int64())])
"""Entries by their number in the word list, and the pairs in whose primary text each occurs; those of none left out."""


@dataclass(frozen=True, slots=True)
class Probabilities:
    """threshold: t. frequent: the texts of each entry that occurs in more than t, by the entry's number."""

    threshold: int
    frequent: dict[int, int]

    def of(self, entries: list[int]) -> float:
        """The probability with which a pair with these entries, at least one, is kept."""
        dropped = 1.0
        for entry in entries:
            texts = self.frequent.get(entry)
            if texts is None:
                return 1.0
            dropped *= 1 - self.threshold / texts
        return 1 - dropped


def as_json(probabilities: Probabilities) -> Any:
    """The probabilities as the pass reduces to them."""
    return {"threshold": probabilities.threshold, "frequent": list(probabilities.frequent.items())}


def read(build: Build) -> Probabilities:
    """The probabilities as the driver left them."""
    written = build.stage(CONCEPTS).reduced()
    return Probabilities(written["threshold"], dict(written["frequent"]))


def summed(build: Build) -> npt.NDArray[np.int64]:
    """[E] the texts of each entry of the word list, over all partitions."""
    directory, counts = build.stage(CONCEPTS), np.zeros(0, np.int64)
    for table in read_at_once(directory.table, directory.records()):
        entries = table["entry"].to_numpy()
        counts = np.pad(counts, (0, max(0, int(entries.max(initial=-1)) + 1 - len(counts))))
        counts[entries] += table["texts"].to_numpy()
    return counts
