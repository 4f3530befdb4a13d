"""Bounded look at a source's input, before a build reads all of it; `wenlan-data plan` shows the result.

A look reads a few files as the build would (`Sample`), counts what a file's size or directory tells, and marks each
figure as exact, a lower bound or an estimate. Limits: seconds are counted between rows, so one row (a
captions file is read whole) may take longer.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import fsspec
from fsspec.compression import compr
from fsspec.core import get_compression

from pipeline.errors import BrokenFile, SourceError
from pipeline.files.inputs import emptiness, faults, reason, version, writable
from pipeline.files.wacz import file_of
from pipeline.rows.account import Account
from pipeline.rows.decisions import Decision
from pipeline.rows.records import Candidate

Exactness = Literal["", "about", "at least"]

MAX_SIZED = 1_000
"""Files whose size is asked for; that of the others is taken to be like theirs."""

MAX_READ = 3
"""Files that a look reads rows of."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number of things of a kind. exactness: "" for exact."""

    what: str
    number: int
    exactness: Exactness = ""

    def __str__(self) -> str:
        what = self.what.removesuffix("s") if self.number == 1 else self.what
        return f"{self.exactness} {self.number:,} {what}".strip()


@dataclass(frozen=True, slots=True)
class Look:
    """Result of a look.

    counts: files, rows, pictures, pages and whatever else the kind of source has. bytes: of its files, 0 where
    unknown. candidates: images with texts, None where only the web knows. pages: that are to be crawled or read.
    facts: further lines, (name, value). warnings: effects of the build that are probably unwanted.
    start_urls: pages that a crawl starts from. image_urls: some images that are to be fetched, of different hosts.
    hosts: the busiest hosts that are asked, each with its share of the images, or of a site's pages, 0 to 1.
    """

    counts: tuple[Count, ...] = ()
    bytes: int = 0
    candidates: Count | None = None
    pages: int = 0
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    start_urls: tuple[str, ...] = ()
    image_urls: tuple[str, ...] = ()
    hosts: tuple[tuple[str, float], ...] = ()


@dataclass
class Budget:
    """Time and bytes that a look at one source may take. The time begins at construction."""

    seconds: float = 3.0
    rows: int = 5_000
    bytes: int = 32 << 20
    _began: float = field(default_factory=time.monotonic, init=False)

    @property
    def exhausted(self) -> bool:
        return time.monotonic() - self._began >= self.seconds


class Sample:
    """Entries of a source as a build would read them, up to a budget."""

    MOST_URLS = 3
    MOST_HOSTS = 10

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.candidates = self.dropped = 0
        self._rows: set[tuple[int, int]] = set()
        self._reasons: Counter[str] = Counter()
        self._evidence: dict[str, str] = {}
        self._hosts: Counter[str] = Counter()
        self._urls: dict[str, str] = {}  # by host
        self._parts = 0

    @property
    def rows(self) -> int:
        """Rows looked at: those that are candidates, and those that are none."""
        return len(self._rows) + self.dropped

    def take(self, entries: Iterable[Candidate | Decision]) -> bool:
        """Look at entries of one part; returns whether these were all of it."""
        self._parts += 1
        limit = self._budget.rows
        for number, entry in enumerate(entries, 1):
            if isinstance(entry, Candidate):
                self._add(entry)
            else:
                self.dropped += entry.lost is None or entry.lost.lines  # a damaged part of a file is not a row
                self._reasons[entry.reason] += 1
                self._evidence.setdefault(entry.reason, entry.evidence or entry.url)
            if number >= limit or self._budget.exhausted:
                return False
        return True

    def _add(self, candidate: Candidate) -> None:
        self.candidates += 1
        self._rows.add((self._parts, candidate.row))
        stored = candidate.provenance is not None and candidate.provenance.stored_at
        if candidate.image_url.startswith(("http://", "https://")) and not stored:
            host = urlsplit(candidate.image_url).netloc
            self._hosts[host] += 1
            if len(self._urls) < self.MOST_URLS and not candidate.userinfo:  # a password goes to the owner alone
                self._urls.setdefault(host, candidate.image_url)

    def estimate(self, rows: Count) -> Count:
        """Candidates among so many rows, if the others are like those looked at."""
        share = self.candidates / self.rows if self.rows else 0.0
        exact = not rows.exactness and self.rows == rows.number
        return Count("candidates", self.candidates if exact else round(rows.number * share), "" if exact else "about")

    def look_fields(self, account: Account) -> dict[str, Any]:
        """Fields of a Look: rows read, reasons of dropped rows, images to try, and what nothing accounts for."""
        facts = [("looked at", f"{self.rows:,} rows; {self.dropped:,} would be dropped")]
        facts += [(name, f"{n:,}, e.g. {self._evidence[name][:160]}") for name, n in self._reasons.most_common(3)]
        for unit, units in account:
            facts += [(unit, f"{units.met:,} looked at: {units.others()}")] if units.named else []
        none_kept, missed = self.rows and not self.candidates, (units.missed(unit) for unit, units in account)
        return {
            "facts": tuple(facts),
            "warnings": (*(("a build would drop all sampled rows",) if none_kept else ()), *filter(None, missed)),
            "image_urls": tuple(self._urls.values()),
            "hosts": tuple((host, n / self.candidates) for host, n in self._hosts.most_common(self.MOST_HOSTS)),
        }


@dataclass(frozen=True, slots=True)
class FileCount:
    """Progress of counting in one file. read, size: in bytes of the stored file."""

    number: int
    read: int
    size: int
    whole: bool


def total_of(what: str, readings: Sequence[FileCount], files: int, size: int) -> Count:
    """Returns the count in all files, extrapolated from those that were read. size: of all files, in bytes."""
    number, read = sum(r.number for r in readings), sum(r.read for r in readings)
    if len(readings) == files and all(r.whole for r in readings):
        return Count(what, number)
    if not size or not read:
        return Count(what, number, "at least")
    return Count(what, max(number, round(number * size / read)), "about")


@dataclass(frozen=True, slots=True)
class BrokenFiles:
    """Files that a build cannot read, with the reason of each. looked_at: files of which the first entry was read."""

    reasons: dict[str, str]
    looked_at: int

    def warnings(self, files: int) -> tuple[str, ...]:
        """One line about the broken files, of so many; none if there are none."""
        if not self.reasons:
            return ()
        listed = [f"{writable(file.rpartition('/')[2])} ({why[:100]})" for file, why in self.reasons.items()]
        more = f" and {len(listed) - MAX_READ:,} more" if len(listed) > MAX_READ else ""
        total = f"{files:,} files" if self.looked_at == files else f"the {self.looked_at:,} files looked at"
        first = ", ".join(listed[:MAX_READ])
        return (f"a build cannot read {len(listed):,} of {total}: {first}{more}",)


def broken_files(files: Sequence[str], read_first: Callable[[int, str], object], budget: Budget) -> BrokenFiles:
    """Looks at the beginning of each file, up to a budget; an empty file is broken as well.

    read_first: reads the first entry of a file, and raises BrokenFile for one that is not what it should be. It raises
    here, too, where the file is the only one.
    """
    reasons = dict[str, str]()
    for number, file in enumerate(files):
        try:
            if len(files) > 1 and (why := emptiness(file_of(file))):
                reasons[file] = why
            else:
                read_first(number, file)
        except BrokenFile as e:
            if len(files) == 1:
                raise
            reasons[file] = _SOURCE.sub("", e.message)
        if budget.exhausted:
            return BrokenFiles(reasons, number + 1)
    return BrokenFiles(reasons, len(files))


_SOURCE = re.compile(r"^source \S+: ")

_READ_SIZE = 1 << 13
"""Bytes of a packed file that are read at a time."""


class _SmallReads(io.RawIOBase):
    """A file in small reads, whose place tells how much was unpacked: from Python 3.12 on gzip reads 128 kB ahead."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return bytes(self._file.read(_READ_SIZE if size < 0 else min(size, _READ_SIZE)))


def lines_of(file: str, budget: Budget) -> FileCount:
    """Lines of a text file, compressed or not, up to the budget. Raises SourceError."""
    packing, lines, read, last = get_compression(file, "infer"), 0, 0, b"\n"
    try:
        with fsspec.open(file, "rb") as raw, contextlib.ExitStack() as unpacked:
            f = raw if packing is None else unpacked.enter_context(compr[packing](_SmallReads(raw)))
            while block := f.read(1 << 18):
                lines, last = lines + block.count(b"\n"), block[-1:]
                read = raw.tell()
                if read >= budget.bytes or budget.exhausted:
                    return FileCount(lines, read, 0, bool(not f.read(1)))
    except faults() as e:
        raise SourceError(file, f"cannot be read ({reason(e)})") from None
    return FileCount(lines + (last != b"\n"), read, read, True)


def size_of_files(files: Sequence[str]) -> int:
    """Bytes of files together; 0 where their server does not say. Raises SourceError."""
    sized = files[:MAX_SIZED]
    sizes = [version(file)[1] or 0 for file in sized]
    return round(sum(sizes) * len(files) / max(1, len(sized)))


def sample_indexes(number: int, limit: int = MAX_READ) -> list[int]:
    """At most so many of the numbers from 0 on, the first and the last among them."""
    if number <= limit:
        return list(range(number))
    return [round(at * (number - 1) / (limit - 1)) for at in range(limit)]
