"""What stages `concepts` and `balance` leave for one another and for the report: counts by entry, and the plan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.shard import canonical_json
from pipeline.store.build import Build
from pipeline.store.partitions import Record

COUNTS_SCHEMA = pa.schema([("entry", pa.int32()), ("texts", pa.int64())])
"""Entries by their number in the word list, and the pairs in whose primary text each occurs; those of none left out."""

FILE = "_probabilities.json"
"""In the folder of `balance`: the fingerprint, and the fields of Probabilities."""

READ_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Probabilities:
    """threshold: t. frequent: the texts of each entry that occurs in more than t, by the entry's number.

    entries: sha256 of the word list in which that is its number; "" of a build that an older wenlan counted.
    """

    threshold: int
    frequent: dict[int, int]
    entries: str = ""

    def fit(self, sha256: str) -> bool:
        """Whether the numbers of entries are those of a word list."""
        return self.entries in ("", sha256)

    def of(self, entries: list[int]) -> float:
        """The probability with which a pair with these entries, at least one, is kept."""
        dropped = 1.0
        for entry in entries:
            texts = self.frequent.get(entry)
            if texts is None:
                return 1.0
            dropped *= 1 - self.threshold / texts
        return 1 - dropped


def write(build: Build, probabilities: Probabilities) -> None:
    """Leave the probabilities for the tasks."""
    stage = build.stage("balance")
    value = {"fingerprint": stage.fingerprint, "threshold": probabilities.threshold, "entries": probabilities.entries}
    stage.folder.write(FILE, canonical_json({**value, "frequent": list(probabilities.frequent.items())}))


def read(build: Build) -> Probabilities | None:
    """The probabilities as the driver left them; None if there are none, or those of another fingerprint."""
    stage = build.stage("balance")
    written = stage.folder.find_json(FILE, {})
    if written.get("fingerprint") != stage.fingerprint:
        return None
    return Probabilities(written["threshold"], dict(written["frequent"]), written.get("entries", ""))


def summed(build: Build, stage: str, suffix: str) -> npt.NDArray[np.int64]:
    """[E] the texts of each entry of the word list, over all partitions of a stage."""
    directory, counts = build.stage(stage), np.zeros(0, np.int64)
    records = directory.records()

    def read(record: Record) -> pa.Table:
        return directory.table(record, suffix)

    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        for start in range(0, len(records), READ_AT_ONCE):
            for table in threads.map(read, records[start : start + READ_AT_ONCE]):
                entries = table["entry"].to_numpy()
                counts = np.pad(counts, (0, max(0, int(entries.max(initial=-1)) + 1 - len(counts))))
                counts[entries] += table["texts"].to_numpy()
    return counts
