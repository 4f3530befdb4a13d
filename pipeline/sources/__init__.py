"""Sources of captures and candidates. One file per kind; the file's name is `kind` in a spec.

There are three interfaces. A PageSource has WARC files of web pages, which `pipeline.stages.extract` turns into
candidates; a RangeSource names single records of such files. A TableSource has rows that are candidates already. All
are divided into parts, and each part is one partition of the extract stage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field

from data_specs.build import BuildSpec, SourceRef, resolve_path
from data_specs.shard import SourceKind, Text
from data_specs.storage.object_store import StorageError
from pipeline.errors import OURS, BrokenFile, SourceError, evidence
from pipeline.files.damage import Hole, is_damage
from pipeline.files.inputs import content, expand, has_globs, reason, version, writable
from pipeline.plugins import Plugin, configure
from pipeline.rows.account import Account, Units
from pipeline.rows.decisions import Decision, DropReason, Lost, drop, drop_capture
from pipeline.rows.records import Candidate
from pipeline.sources._look import (
    Budget,
    Count,
    FileCount,
    Look,
    Sample,
    broken_files,
    lines_of,
    sample_indexes,
    size_of_files,
    total_of,
)

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda paths: (paths,) if isinstance(paths, str) else paths)]
"""One path or a list of them, as a spec has it."""


class Source(Plugin):
    """Base of all sources. `base` is the folder that relative paths start from; it does not belong to the identity."""

    name: str
    source_kind: SourceKind
    base: str = ""

    def identity(self) -> dict[str, Any]:
        """The plug-in's identity without `base`: a moved folder is the same source."""
        identity = super().identity()
        identity["options"].pop("base")
        return identity

    def resolve(self, path: str) -> str:
        """A path or URL of the spec, made absolute against `base`."""
        return resolve_path(self.base, path)

    def token(self) -> Any:
        """A JSON value that changes with the source's content (sizes and times of files, ETags), for the fingerprint.

        Raises SourceError if the source cannot be read at all.
        """
        raise TypeError(f"{type(self).__name__} must say what it reads")

    def listing(self) -> list[str]:
        """The files by whose order its parts are numbered, as they are now; none where the spec names each of them, in
        its own order: each part would ask a store for all. Raises SourceError."""
        return []

    def look(self, budget: Budget) -> Look:
        """Returns a summary of the input, read within a budget, for `wenlan-data plan`.

        Raises SourceError as a build would: for missing input, or input without the columns of the spec.
        """
        raise TypeError(f"{type(self).__name__} must look at its input")


IMAGE_CAPS = ("max_images_per_page", "max_images_per_host", "page_texts")
"""Options of a PageSource that decide what becomes of its pages, and not which pages there are."""


class PageSource(Source):
    """A source of web pages in WARC files."""

    max_images_per_page: int = Field(2_000, gt=0, description="maximum number of candidates per page")
    max_images_per_host: int = Field(
        1_000_000, gt=0, description="maximum number of candidates per host within one WARC file"
    )
    page_texts: Literal["drop", "keep"] = Field(
        "drop", description="pictures with no text but their page's title and abstract, beyond two of a page"
    )

    def warcs(self) -> list[str]:
        """Paths or URLs of its WARC files; empty for a source that `pipeline.stages.crawl` fills."""
        return []


@dataclass(frozen=True, slots=True)
class PageRange:
    """Location of a page's capture: a gzip member of a WARC file, by path or URL. url: of the page."""

    url: str
    file: str
    offset: int
    length: int


def unreadable_part(name: str, hole: Hole) -> Decision:
    """The Decision about a part of a file of captures (without a source), with its weight in bytes."""
    decision = drop_capture(f"{name}, byte {hole.start}", "", "extract", DropReason.UNREADABLE, f"{name}: {hole}")
    return replace(decision, url="", page_url="", lost=Lost(hole.bytes))


class RangeSource(PageSource):
    """A source of web pages that lie scattered in WARC files, of which the records alone are read, as an index says."""

    def parts(self) -> int:
        """Number of parts; follows from the content that `token` stands for."""
        raise TypeError(f"{type(self).__name__} must say its parts")

    def files(self) -> list[str]:
        """The files of the index. Raises SourceError."""
        raise TypeError(f"{type(self).__name__} must say what it reads")

    def opened(self, part: int, account: Account) -> tuple[str, Iterator[PageRange | Decision]]:
        """(file of the index that begins with a part, "" for a later part of one; the pages of the part in a stable
        order, and a Decision for each without a place and each damaged part of the file). Raises SourceError.

        account: gets what else the part holds.
        """
        raise TypeError(f"{type(self).__name__} must say where its pages lie")


class TableSource(Source):
    """A source whose rows are candidates."""

    def parts(self) -> int:
        """Number of parts; follows from the content that `token` stands for."""
        raise TypeError(f"{type(self).__name__} must say its parts")

    def read(self, part: int, account: Account) -> Iterator[Candidate | Decision]:
        """Candidates of one part in a stable order; a Decision for every other row. Raises SourceError.

        account: gets the raw input of the part in units of the source (`Units.met`), and the names of what is neither.
        It may be left empty: then the entries are the input.
        """
        raise TypeError(f"{type(self).__name__} must read its parts")

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of an image that is stored in the source itself; None if it must be fetched from the web."""
        return None

    def stored_image(self, folder: str, name: str) -> bytes | None:
        """Bytes of a picture below a folder of this source; None for one that no longer exists.

        Raises ValueError for one too large to be read whole, SourceError.
        """
        try:
            return content(folder, name)
        except StorageError as e:  # with a failing store it is unknown whether the picture is gone
            raise SourceError(f"{folder.rstrip('/')}/{name}", f"source {self.name}: {e.strerror}") from None
        except OSError:
            return None

    def root(self) -> str:
        """Absolute path of the local folder in which the pictures of the source lie; "" if they lie in none."""
        return ""

    def address_of(self, file: str) -> str:
        """The image_url by which the source reads a local picture, given its absolute path; "" for one it has not.

        Follows from the path alone: the file may be gone.
        """
        return ""

    def entries(
        self,
        row: str,
        number: int,
        parse: Callable[[], Iterable[Candidate | Decision]],
        units: Units | None = None,
        count: int = 1,
    ) -> list[Candidate | Decision]:
        """Returns the result of `parse` for one row; one Decision if it raises.

        Every table source reads its rows through this, so that a bad row does not end a part. row: for people. units:
        gets what became of the `count` units that the row is.
        """
        entries = self._parsed(row, number, parse)
        if units is not None:
            units.take(entries, count, row)
        return entries

    def _parsed(
        self, row: str, number: int, parse: Callable[[], Iterable[Candidate | Decision]]
    ) -> list[Candidate | Decision]:
        try:
            entries = list(parse())
        except OURS:
            raise
        except Exception as e:
            return [self.unreadable(row, number, e)]
        characters = sum(len(text.text) for entry in entries if isinstance(entry, Candidate) for text in entry.texts)
        if characters > MAX_CHARACTERS:
            excess = OverflowError(
                f"texts of {characters:,} characters; at most {MAX_CHARACTERS:,} are allowed per row"
            )
            return [self.unreadable(row, number, excess)]
        return entries

    def unreadable(self, row: str, number: int, error: Exception) -> Decision:
        """The Decision about a row, or a piece of a file, that raised. row: file and row, for people."""
        broken = Candidate(self.name, self.source_kind, row, "", "", (), number)
        return drop(broken, "extract", DropReason.UNREADABLE, f"{row}: {evidence(error, row)}")

    def hole(self, file: str, hole: Hole, number: int = -1) -> Decision:
        """The Decision about a part of a file that cannot be read, with its weight."""
        name = writable(file.rpartition("/")[2])
        broken = Candidate(self.name, self.source_kind, f"{name}, byte {hole.start}", "", "", (), number)
        decision = drop(broken, "extract", DropReason.UNREADABLE, f"{name}: {hole}")
        return replace(decision, lost=Lost(hole.bytes, hole.rows))

    def opened(self, part: int, account: Account) -> tuple[str, Iterator[Candidate | Decision]]:
        """(file that begins with a part, what `read` yields of the part). The file, by path or URL, is "" for a later
        part of one and where a source has no files of rows. Raises SourceError."""
        return "", self.read(part, account)

    def file_error(self, file: str, error: Exception, read: int = 0) -> SourceError:
        """The error about a file, of what `faults` catches: BrokenFile if its content is the cause.

        read: bytes of it that were read before.
        """
        message = f"source {self.name}: cannot be read ({reason(error)})"
        return BrokenFile(file, message, read) if is_damage(error) else SourceError(file, message)


BAD_LINE = (DropReason.BAD_ROW, DropReason.UNREADABLE)


def with_size(
    entries: list[Candidate | Decision], size: Callable[[], int], reasons: Sequence[DropReason] = BAD_LINE
) -> list[Candidate | Decision]:
    """Returns the entries of a line; if they are one Decision of these reasons, with the size of the line in bytes.

    One line may hold most of a file: an array in place of lines, or lines that lost their ends.
    """
    if len(entries) != 1 or not isinstance(entries[0], Decision) or entries[0].reason not in reasons:
        return entries
    return [replace(entries[0], lost=Lost(size(), lines=1))]


class BadLines:
    """Tells a file without any row from one with bad lines among its rows. has_row: whether a row was taken."""

    def __init__(self) -> None:
        self._bad = self._bytes = 0
        self._fault, self.has_row = "", False

    def take(self, entries: Sequence[Candidate | Decision], fault: str) -> None:
        """Notes a line with its entries. fault: why it is not a row; "" for a row, whatever becomes of it."""
        if not fault:
            self.has_row = True
        elif not self.has_row:
            self._bad += 1
            self._fault = self._fault or fault
            self._bytes += sum(own.lost.bytes for own in entries if isinstance(own, Decision) and own.lost is not None)

    def end(self, file: str, source: str) -> None:
        """To be called after the last line of a file. Raises BrokenFile for one with bad lines only."""
        if self._bad and not self.has_row:
            message = f"source {source}: none of its {self._bad:,} rows can be read; row 1: {self._fault}"
            raise BrokenFile(file, message[:500], self._bytes)


MAX_CHARACTERS = 100_000
"""Characters of all texts of a row, ten times those of a long article: every text filter reads them in a second."""

_ESCAPED = re.compile("[\udc80-\udcff]")

MAX_UNDECODED = 10
"""Rows at the beginning of a file that may be of another encoding before the whole file is taken to be."""


class Decoding:
    """Checks that the rows of a text file are of its encoding. The file is opened with `errors="surrogateescape"`.

    A row that is not is a fault of its own. A file of which no row is (rows of plain ASCII count for nothing) has
    another encoding than it was said to have, and that is a fault of the spec.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding, self._undecoded, self._decoded = encoding, 0, False

    def fault(self, row: str) -> UnicodeError | None:
        """Returns the fault of a row as text; None for a sound one. Raises UnicodeError for the file."""
        if row.isascii():
            return None
        if not _ESCAPED.search(row):
            self._decoded = True
            return None
        self._undecoded += 1
        if not self._decoded and self._undecoded == MAX_UNDECODED:
            self.end()
        return UnicodeError(f"contains bytes that are not {self._encoding}")

    def end(self) -> None:
        """To be called after the last row. Raises UnicodeError for a file of which no row was sound."""
        if self._undecoded and not self._decoded:
            raise UnicodeError(f"none of the first {self._undecoded} non-ASCII rows can be decoded")


def distinct(texts: Sequence[Text]) -> tuple[Text, ...]:
    """The texts that are not empty, in their order; of equal ones the first stays."""
    unique = dict[str, Text]()
    for text in texts:
        if text.text:
            unique.setdefault(text.text, text)
    return tuple(unique.values())


def local_path(path: str) -> str:
    """The absolute path of a file or folder on the local disk, given its path or file:// URL; "" for another URL."""
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    return "" if "://" in path else os.path.abspath(path)  # noqa: PTH100  (Path keeps `..`, or follows links)


class FileSource(TableSource):
    """A table source in files. One file is one part, unless a kind divides files."""

    path: Paths = Field(description="path, URL or glob of its files, or a list of them", min_length=1)

    def files(self) -> list[str]:
        """The files that `path` names, each once. Raises SourceError for a path that is missing or matches nothing."""
        return expand(self.path, self.name, self.base)

    def token(self) -> Any:
        """Name, size and time (or ETag) of each file. Raises SourceError."""
        return [version(file) for file in self.files()]

    def parts(self) -> int:
        """One part per file. Raises SourceError."""
        return len(self.files())

    def opened(self, part: int, account: Account) -> tuple[str, Iterator[Candidate | Decision]]:
        file = self.files()[part]
        return file, self.entries_of(part, file, account)

    def read(self, part: int, account: Account) -> Iterator[Candidate | Decision]:
        return self.opened(part, account)[1]

    def listing(self) -> list[str]:
        return self.files() if has_globs(self.path) else []

    ROWS: ClassVar[str] = "rows"
    """Name of a file's entries, for people."""

    def look(self, budget: Budget) -> Look:
        """Its files with their rows, counted or estimated, and what a sample of the rows is worth."""
        files = self.files()
        broken = broken_files(files, self._first_of, replace(budget))
        sound = [number for number in range(len(files)) if files[number] not in broken.reasons]
        size, numbers = size_of_files(files), [sound[at] for at in sample_indexes(len(sound))]
        sample, account = Sample(budget), Account()
        complete = [sample.take(self._sound_entries(number, files[number], account)) for number in numbers]
        if all(complete) and len(complete) == len(files):
            rows = Count(self.ROWS, sample.rows)
        else:
            counting = replace(budget)  # with a time of its own
            rows = total_of(self.ROWS, [self.count(files[number], counting) for number in numbers], len(files), size)
        counts = (Count("files", len(files)), rows)
        fields = sample.look_fields(account)
        fields["warnings"] += broken.warnings(len(files))
        return Look(counts=counts, bytes=size, candidates=sample.estimate(rows), **fields)

    def _first_of(self, number: int, file: str) -> None:
        """Reads the first entry of a file. Raises BrokenFile."""
        next(iter(self.entries_of(number, file, Account())), None)

    def _sound_entries(self, number: int, file: str, account: Account) -> Iterator[Candidate | Decision]:
        """Entries of a file up to the place where it breaks off, if others are there to be read."""
        try:
            yield from self.entries_of(number, file, account)
        except BrokenFile:
            if len(self.files()) == 1:
                raise

    def entries_of(self, number: int, file: str, account: Account) -> Iterator[Candidate | Decision]:
        """Yields candidates and decisions of one file, the `number`th. Raises SourceError.

        account: as of `read`.
        """
        raise TypeError(f"{type(self).__name__} must read its files")

    def count(self, file: str, budget: Budget) -> FileCount:
        """Rows of one file, up to a budget. Raises SourceError."""
        return lines_of(file, budget)


def sources_of(spec: BuildSpec) -> list[Source]:
    """The spec's sources, configured, in its order. Raises SpecError."""
    return [source_of(spec, ref, f"sources[{i}]") for i, ref in enumerate(spec.sources)]


def source_of(spec: BuildSpec, ref: SourceRef, where: str = "") -> Source:
    options = {"name": ref.name, "source_kind": ref.source_kind, "base": spec.base, **ref.options}
    return configure("sources", ref.kind, options, Source, where)
