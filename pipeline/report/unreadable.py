"""Unreadable input of a source, weighed: pages, candidates, bytes and files, for the gate `max_unreadable`.

A parser that fails costs a page or a row. Damage costs as much as it swallows: of a tar with one bad header it may be
three quarters, which is one Decision among hundreds. So `extract` counts the bytes that damaged parts and broken files
have, and the rows where metadata state them, beside the size of the input.

Limits: what lies in the web, in single records of remote files or in pictures of a folder is not weighed by bytes; of a
folder its captions file is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields

from pipeline.report.funnel import Funnel
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Build


@dataclass(frozen=True, slots=True)
class Damage:
    """Input of a source and what damage has swallowed of it, as `extract` counts both.

    pictures: of an archive, which are neither pages nor candidates. lost_parts: damaged parts of files, each with a
    Decision of its own.
    """

    input_files: int = 0
    input_bytes: int = 0
    pictures: int = 0
    lost_parts: int = 0
    lost_bytes: int = 0
    lost_rows: int = 0
    lost_files: int = 0


def read_damage(build: Build) -> dict[str, Damage]:
    counts: dict[str, Counter[str]] = {}
    names = [field.name for field in fields(Damage)]
    for record in build.records("extract"):
        total = counts.setdefault(record.partition.rpartition("-")[0], Counter())
        total.update({name: record.counts[name] for name in names if name in record.counts})
    return {source: Damage(**total) for source, total in counts.items()}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A share of a source's things that cannot be read."""

    count: int
    total: int
    things: str
    source: str

    @property
    def share(self) -> float:
        return self.count / self.total

    def says(self, limit: float) -> str:
        share, where = f"{self.share:.1%}", "the report lists what damage cost"
        if self.things in ("pages", "candidates", "images (by a detector)"):
            where = "the log has a traceback of each kind"
        things = f"{self.count:,} of {self.total:,} {self.things} of {self.source}"
        return f"{things} are unreadable ({share}), the spec allows {limit:.1%}; {where}"


def unreadable(source: str, candidates: Funnel, captures: Funnel, damage: Damage, minimum: int) -> Iterator[Unreadable]:
    """Unreadable shares of a source: of pages, candidates with the rows that metadata state, bytes and files.

    A share of fewer than `minimum` entries is left out; there are as many as those that were read and, by bytes, those
    that were not.
    """
    entries = 0
    for things, funnel, lost in (
        ("pages", captures, 0),
        ("candidates", candidates, max(0, damage.lost_rows - damage.lost_parts)),
    ):
        of_source = funnel.of_source(source)
        total = of_source.total + lost
        entries = max(entries, of_source.total + (damage.pictures if things == "pages" else 0))
        count = dict(of_source.reasons()).get(DropReason.UNREADABLE.value, 0)
        if count and total >= minimum:
            yield Unreadable(count + lost, total, things, source)
    if damage.lost_bytes and entries * damage.input_bytes >= minimum * (damage.input_bytes - damage.lost_bytes):
        yield Unreadable(damage.lost_bytes, max(damage.input_bytes, damage.lost_bytes), "bytes", source)
    if damage.lost_files:
        yield Unreadable(damage.lost_files, damage.input_files, "files", source)


def read_undetected(build: Build) -> tuple[int, int]:
    """(images on which a detector failed, images) of a build: they are kept, without regions."""
    return build.counted("detect", "undecodable"), build.counted("detect", "images")
