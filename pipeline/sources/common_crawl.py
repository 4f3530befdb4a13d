"""common_crawl: the pages of one language in a Common Crawl, read by ranges: Chinese pages are 5% of 100 TB.

Common Crawl publishes for each crawl, beside its WARC files, a table of all captures in Parquet (its columnar URL
index, `cc-index/table/cc-main/warc/crawl=.../subset=warc/*.parquet`): URL, detected languages, status, and where the
record lies in which WARC file. This source reads from that table which pages to take, and of the WARC files, which
`prefix` stands before, only the ranges of their records. `path` and `path_list` name the files of the table as source
`warc` does its own: `cc-index-table.paths.gz` is the list that Common Crawl publishes.

A page is taken if its status is 200, its detected type is one of `mime_types`, and one of `languages` is among the
three that Common Crawl detected on it (CLD2), or is the first of them with `first_language`.

A part is up to `rows_per_part` rows of one file of the table. Its records are read in the order in which they lie in
the WARC files. A file of several that cannot be read is a Decision, and so are a part's rows of a damaged row group.

Needs: the extra `s3` for s3://commoncrawl/, the fast way from within its region.

Thresholds: `zho` is the code of Chinese in that table (ISO 639-3, simplified and traditional).

Limits: what Common Crawl did not detect as Chinese is not seen. Files that `path_list` names, and WARC files, are taken
to be immutable. Rows of the table are held a row group at a time, packed. Damage weighs by the bytes of the table.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import unquote

import fsspec
from pydantic import ConfigDict, Field, model_validator

from pipeline.errors import BrokenFile, SourceError
from pipeline.files.damage import Hole, is_damage
from pipeline.files.inputs import emptiness, faults, reason, version, writable
from pipeline.rows.account import Account, Named
from pipeline.rows.decisions import Decision, DropReason, drop_capture
from pipeline.sources import PageRange, RangeSource, unreadable_part
from pipeline.sources._listed_source import ListedSource
from pipeline.sources._look import Budget, Count, Exactness, Look, broken_files, sample_indexes
from pipeline.urls import without_userinfo

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_LANGUAGES, _MIME, _STATUS = "content_languages", "content_mime_detected", "fetch_status"
_LOCATION = ("url", "warc_filename", "warc_record_offset", "warc_record_length")
_SUBSET = re.compile(r"(?:^|/)subset=([^/]*)/")
_ROWS = 1 << 16
"""Rows of the table that are held at once, beside the places of those that were chosen."""

_MAX_OFFSET = 1 << 40
"""Offset in a WARC file at most: no file is larger, and a disk refuses far larger ones as if it were at fault."""


class _Cut(NamedTuple):
    """One part: a file of the table, and of some of its row groups (number, first row, row behind the last).

    begins: it is the first part of the file.
    """

    file: str
    groups: tuple[tuple[int, int, int], ...] = ()
    begins: bool = True

    @property
    def rows(self) -> int:
        return sum(stop - start for _, start, stop in self.groups)


class CommonCrawl(ListedSource, RangeSource):
    """Pages of some languages, by Common Crawl's columnar URL index."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"path": "cc-index/crawl=CC-MAIN-2026-30/subset=warc/*.parquet"}]}
    )

    VERSION: ClassVar[int] = 3

    prefix: str = Field(
        "https://data.commoncrawl.org/", description="prepended to the lines of path_list and the names of WARC files"
    )
    languages: tuple[str, ...] = Field(
        ("zho",), min_length=1, description="ISO 639-3 codes; a page must have at least one of these languages"
    )
    first_language: bool = Field(False, description="only take pages whose first language is one of `languages`")
    mime_types: tuple[str, ...] = Field(
        ("text/html", "application/xhtml+xml"), min_length=1, description="detected MIME types of the pages to take"
    )
    rows_per_part: int = Field(400_000, ge=1, description="rows of the index, of any language, per partition")

    @model_validator(mode="after")
    def _has_codes(self) -> CommonCrawl:
        if odd := [code for code in self.languages if not re.fullmatch("[a-z]{3}", code)]:
            raise ValueError(f"languages: {odd[0]!r} is not a three-letter code; Chinese is zho")
        return self

    def files(self) -> list[str]:
        """The Parquet files of the index, each once, without those of other subsets than `warc`. Raises SourceError."""
        files = [*self._path_files(), *map(self._file_url, self._lines())]
        files = [file for file in dict.fromkeys(files) if _SUBSET.findall(file)[-1:] in ([], ["warc"])]
        if not files:
            raise SourceError(self.name, "none of the files of the index belongs to subset=warc")
        return files[: self.limit] if self.limit else files

    def parts(self) -> int:
        """Runs of at most `rows_per_part` rows; at least one per file.

        Raises SourceError, also where none of several files can be read.
        """
        return sum(1 for _ in self._cuts())

    def opened(self, part: int, account: Account) -> tuple[str, Iterator[PageRange | Decision]]:
        """See `RangeSource.opened`: pages are in the order of WARC files and offsets.

        Raises BrokenFile for a file whose footer cannot be read, or without the index's columns.
        """
        cut = next(itertools.islice(self._cuts(), part, None))
        return cut.file if cut.begins else "", self._pages_of(cut, account)

    def _pages_of(self, cut: _Cut, account: Account) -> Iterator[PageRange | Decision]:
        records, taken = account["records"], 0
        for place in self._ranges(cut):
            if isinstance(place, Hole):
                records.decisions += place.rows - 1  # the reader of captures accounts for one
                taken += place.rows
                yield unreadable_part(_name_of(cut.file), place)
                continue
            taken += 1
            yield place
        records.met += cut.rows
        records.named[Named.OTHER_PAGE] += cut.rows - taken

    def look(self, budget: Budget) -> Look:
        """Its pages and the bytes of their records, counted or estimated from a sample of the index."""
        files, by_path = self.files(), frozenset(self._path_files())
        broken = broken_files(files, lambda _, file: self._cuts_of(file, file in by_path), replace(budget))
        sound = [file for file in files if file not in broken.reasons]
        rows = looked_at = pages = size = 0
        numbers, damage = sample_indexes(len(sound)), list[str]()
        whole = len(numbers) == len(sound)
        for number in numbers:
            cuts = self._cuts_of(sound[number], sound[number] in by_path)
            rows += sum(cut.rows for cut in cuts)
            for cut in cuts:
                if looked_at and budget.exhausted:
                    whole = False
                    break
                looked_at += cut.rows
                for place in self._ranges(cut):
                    if isinstance(place, Hole):
                        damage.append(f"{_name_of(cut.file)}: {place}; a build reads the other rows")
                    elif isinstance(place, PageRange):
                        pages, size = pages + 1, size + place.length
        about: Exactness = "" if whole else "about"
        factor = 1.0 if whole else rows / max(1, looked_at) * len(sound) / max(1, len(numbers))
        page_count = Count("pages", round(pages * factor), about)
        fact = f"{looked_at:,} rows of the index: {pages:,} pages in {', '.join(self.languages)}"
        warnings = [] if pages else ["none of the sampled rows is a page in these languages"]
        warnings += [*broken.warnings(len(files)), *damage[:1]]
        counts = (Count("files of the index", len(files)), page_count)
        size = round(size * factor)
        unit, scale = next((u, n) for u, n in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= n or u == "kB")
        facts = (("looked at", fact), ("reads", f"{about} {size / scale:,.1f} {unit} of WARC files, by ranges".strip()))
        return Look(counts, bytes=size, pages=page_count.number, facts=facts, warnings=tuple(warnings))

    def _file_url(self, name: str) -> str:
        """The path or URL of a file of the crawl."""
        return f"{self.resolve(self.prefix).rstrip('/')}/{name}"

    def _cuts(self) -> Iterator[_Cut]:
        """The parts; of a file that cannot be read one without rows, which says so. Raises SourceError at the end if
        that is every file."""
        files, by_path, faults = self.files(), frozenset(self._path_files()), list[BrokenFile]()
        for file in files:
            try:
                cuts = self._cuts_of(file, file in by_path)
            except BrokenFile as e:
                faults.append(e)
                cuts = [_Cut(file)]
            yield from cuts
        if len(faults) == len(files):
            raise faults[0]

    def _cuts_of(self, file: str, may_change: bool) -> list[_Cut]:
        """The parts of one file. may_change: not for files of a `path_list`, of which each part would ask again.

        Raises SourceError, BrokenFile if its content is the cause.
        """
        cuts: list[_Cut] = []
        groups: list[tuple[int, int, int]] = []
        room = self.rows_per_part
        stamp = version(file) if may_change else []
        if stamp and stamp[1] == 0:
            raise BrokenFile(file, f"source {self.name}: {emptiness(file)}")
        for group, rows in enumerate(_group_rows(file, self.name, json.dumps(stamp))):
            start = 0
            while start < rows:
                stop = min(rows, start + room)
                groups.append((group, start, stop))
                room -= stop - start
                start = stop
                if not room:
                    cuts.append(_Cut(file, tuple(groups), not cuts))
                    groups, room = [], self.rows_per_part
        if groups or not cuts:
            cuts.append(_Cut(file, tuple(groups), not cuts))
        return cuts

    def _ranges(self, cut: _Cut) -> Iterator[PageRange | Decision | Hole]:
        """Locations of the pages of a part, Decisions about rows without one, and first its damaged row groups."""
        from pipeline.files.parquet import hole_of, is_damaged

        rows: list[dict[str, Any]] = []
        with _open_index(cut.file, self.name) as table:
            for group, start, stop in cut.groups:
                try:
                    rows += list(self._page_rows(table, group, start, stop))
                except Exception as e:
                    if not is_damaged(e):
                        raise
                    yield hole_of(table.metadata, group, start, stop, e)
        rows.sort(key=lambda row: (str(row["warc_filename"]), row["warc_record_offset"] or 0))
        for row in rows:
            yield self._range_of(row)

    def _page_rows(self, table: pq.ParquetFile, group: int, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Rows [start, stop) of a row group that are pages to be taken, with the columns of _PLACE."""
        import pyarrow.compute as pc

        masks: list[pa.Array] = []
        for batch in _batches(table, group, start, stop, [_LANGUAGES, _MIME, _STATUS]):
            masks.append(self._is_page(batch))
        if not any(pc.any(mask).as_py() for mask in masks):
            return
        for batch, mask in zip(_batches(table, group, start, stop, list(_LOCATION)), masks, strict=True):
            yield from _as_rows(batch.filter(mask))

    def _is_page(self, batch: pa.RecordBatch) -> pa.Array:
        """Returns the flags of rows whose pages are taken."""
        import pyarrow as pa
        import pyarrow.compute as pc

        start = "^" if self.first_language else "(?:^|,)"
        language = pc.match_substring_regex(
            batch[_LANGUAGES].cast(pa.string()), f"{start}(?:{'|'.join(self.languages)})(?:,|$)"
        )
        kind = pc.is_in(batch[_MIME].cast(pa.string()), pa.array(self.mime_types))
        is_ok = pc.equal(batch[_STATUS], 200)
        return pc.fill_null(pc.and_(pc.and_(language, kind), is_ok), False)

    def _range_of(self, row: dict[str, Any]) -> PageRange | Decision:
        """Returns the location of a row's record; a Decision for a row without a location below `prefix`."""
        url, name = without_userinfo(str(row["url"] or "")), str(row["warc_filename"] or "")
        offset, length = row["warc_record_offset"], row["warc_record_length"]
        is_valid = isinstance(offset, int) and isinstance(length, int) and 0 <= offset <= _MAX_OFFSET and length > 0
        if not is_valid or not _is_below(name):
            why = f"invalid location in the index: {name[:100]!r}, offset {offset}, length {length}"
            return drop_capture(url, self.name, "extract", DropReason.BAD_ROW, why)
        return PageRange(url, self._file_url(name), offset, length)


def _name_of(file: str) -> str:
    """The name of a file, as people may see it."""
    return writable(without_userinfo(file).rpartition("/")[2])


def _is_below(name: str) -> bool:
    """True if a name of a file can only be one below `prefix`; `::` chains file systems of fsspec."""
    steps = re.split(r"[/\\]", unquote(name))
    return bool(name) and not name.startswith("/") and ".." not in steps and not re.search(r"://|::|[\0-\x1f]", name)


def _as_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch; bytes of a text that are not UTF-8 cost a row its name, and not the part."""
    import pyarrow as pa

    columns = {}
    for name in batch.schema.names:
        column = batch[name]
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            values = column.cast(pa.binary()).to_pylist()
            columns[name] = [value and value.decode("utf-8", "replace") for value in values]
        else:
            columns[name] = column.to_pylist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@contextlib.contextmanager
def _open_index(file: str, source: str) -> Iterator[pq.ParquetFile]:
    """A file of the index, open. Raises SourceError; BrokenFile if it is not a Parquet file, or lacks a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with fsspec.open(file, "rb") as raw:
            table = pq.ParquetFile(raw)
            names = table.schema_arrow.names
            missing = [name for name in (*_LOCATION, _LANGUAGES, _MIME, _STATUS) if name not in names]
            if missing:
                problem = f"no column {missing[0]!r}, which the Common Crawl index has"
                raise BrokenFile(file, f"source {source}: {problem}")
            yield table
    except faults(pa.ArrowException) as e:
        is_content = isinstance(e, pa.ArrowException) or is_damage(e)
        problem = "not a readable Parquet file" if is_content else "cannot be read"
        fault = BrokenFile if is_content else SourceError
        raise fault(file, f"source {source}: {problem} ({reason(e)})") from None


def _batches(table: pq.ParquetFile, group: int, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) of a row group, _ROWS at a time at most; the same cuts for any columns.

    Raises EOFError for a group with fewer rows than the footer states.
    """
    at = 0
    for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
        first, last = max(start - at, 0), min(stop - at, batch.num_rows)
        if first < last:
            yield batch.slice(first, last - first)
        at += batch.num_rows
        if at >= stop:
            return
    raise EOFError(f"the row group ends behind row {at:,}")


@functools.lru_cache(maxsize=4096)
def _group_rows(file: str, source: str, mark: str) -> tuple[int, ...]:
    """Rows of each row group of a file. mark: changes with the file."""
    with _open_index(file, source) as table:
        return tuple(table.metadata.row_group(number).num_rows for number in range(table.num_row_groups))
