"""url_table: image URLs with their texts in CSV, TSV, JSON lines or Parquet files, the format of Wukong and LAION.

The format follows from the suffix (`.csv .tsv .jsonl .parquet`, the first three also with `.gz` or `.zst`), or from
`format`; encoding and separator are detected (`pipeline.sources._text_files`). `brivl_jsonl` is the row of
BriVL's release: `{"image_id": PATH, "sentences": [[KIND, TEXT], ...], "bbox": ...}`; its PATHs start from `images`, a
URL or a folder.

Boxes of a row (`bbox`, or the column that `columns.bbox` names: a list of [x1, y1, x2, y2] in pixels, in CSV as JSON)
are read as well; the detector `given` makes them the regions of a build.

A row's identity is its `id` column, else its page, else a digest of its texts: never its line number, so that a row
added at the top changes no other row's key. CSV is read by the csv module rather than by pandas, row by row: a broken
row becomes one Decision that names its file and row, and only one row is in memory.

Limits: reading a later part of a file reads through its earlier rows; big tables should be many files.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, get_args
from urllib.parse import quote, unquote

import fsspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_specs.shard import Text, TextKind
from pipeline.errors import BrokenFile, SourceError
from pipeline.files.damage import Hole, is_damage
from pipeline.files.inputs import Lines, faults, reason, version, writable
from pipeline.rows.account import Account, Named
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import Candidate, encodable, sha256_hex
from pipeline.sources import BadLines, Decoding, FileSource, distinct, local_path, with_size
from pipeline.sources._look import Budget, FileCount, lines_of
from pipeline.sources._provenance import web_address
from pipeline.sources._rows import Cells, Row, json_rows, table_rows
from pipeline.sources._text_files import (
    AUTO,
    PACKED,
    SAVE_AS_CSV,
    WORKBOOKS,
    Encoding,
    Head,
    NoText,
    RowsFile,
    cell_text,
    head_of,
    no_column,
    open_rows,
)
from pipeline.texts.cleaning import clean
from pipeline.urls import canonical_url, split_userinfo, without_userinfo

Format = Literal["csv", "tsv", "jsonl", "parquet", "brivl_jsonl"]
BRIVL_KINDS: dict[str, TextKind] = {
    "alt_text": "alt", "sur_text": "surrounding", "surText": "surrounding", "content": "content", "caption": "caption",
    "title": "title", "abstract": "abstract", "tag": "tag",
}  # fmt: skip
"""Kinds of text by BriVL's names. Its `easy` and `first` are parts of surrounding, used only where that is missing."""

_BETWEEN_HAN = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef]) +(?=[\u3000-\u9fff\uff00-\uffef])")
_URL = re.compile(r"\s*(?:https?:)?//[^\s/]", re.IGNORECASE)

ROWS = 1_000
"""Rows of a Parquet file that are in memory at once."""


class Columns(BaseModel):
    """Names of the columns with URLs, ids, boxes and texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_url: str = Field("image_url", description="column with the URL of the image")
    page_url: str | None = Field(None, description="column with the URL of the page")
    id: str | None = Field(None, description="column with a permanent ID of the row")
    bbox: str | None = Field(None, description="column with boxes, a list of [x1, y1, x2, y2] in pixels, best first")
    texts: dict[TextKind, str | tuple[str, ...]] = Field({}, description="kind of text -> column or columns")


class _NoColumns(BrokenFile):
    """A file lacks a column that the spec names."""


class UrlTable(FileSource):
    """Tables of image URLs with their texts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"path": "table.csv", "columns": {"image_url": "url", "texts": {"caption": "caption"}}}]
        }
    )

    VERSION: ClassVar[int] = 5

    format: Format | Literal["auto"] = Field("auto", description="auto: by the file extension")
    columns: Columns = Field(Columns(), description="columns to use: image_url, page_url, id, bbox, texts")
    images: str = Field("", description="URL or folder that image paths are relative to (brivl_jsonl)")
    encoding: Encoding = Field(AUTO, description="encoding of CSV, TSV and JSON lines; auto: detected")
    rows_per_part: int = Field(200_000, gt=0, description="rows per partition of the extract stage")

    @model_validator(mode="after")
    def _texts_are_named(self) -> UrlTable:
        if self.format != "brivl_jsonl" and not self.columns.texts:
            raise ValueError("columns: texts is required, e.g. texts: {caption: NAME_OF_COLUMN}")
        if self.format == "brivl_jsonl" and not self.images:
            raise ValueError("images is required for brivl_jsonl: the URL or folder that image paths are relative to")
        return self

    def parts(self) -> int:
        """Number of parts: each file is divided into ranges of rows, at least one per file."""
        return len(self._cuts())

    def opened(self, part: int, account: Account) -> tuple[str, Iterator[Candidate | Decision]]:
        """See `TableSource.opened`: candidates are in the order of rows, and errors name file and column or row."""
        file, start, stop = self._cuts()[part]
        return "" if start else file, self._entries(file, start, stop, account)

    def _entries(self, file: str, start: int, stop: int, account: Account) -> Iterator[Candidate | Decision]:
        """Candidates and decisions of rows [start, stop) of a file."""
        units = account["rows" if self._format(file) == "parquet" else "lines"]
        bad, number = BadLines(), 0
        for number, cells, lines, in_cells, size in self._fitting_rows(file, start, stop):
            units.met += lines
            if isinstance(cells, Named):
                units.named[cells] += lines
                continue
            if isinstance(cells, Hole):
                units.decisions += cells.rows
                yield self.hole(file, cells, number)
                continue
            row = f"{writable(file.rpartition('/')[2])}, row {number}"
            if in_cells < lines:
                units.miss(f"{row}: {lines - in_cells:,} lines in one cell")
            entries = self.entries(row, number, partial(self._parse_row, cells, row, number), units, in_cells)
            if entries and not isinstance(entries[0], Candidate):
                entries = with_size(entries, size)
            if not bad.has_row:
                bad.take(entries, self._fault(cells))
            yield from entries
        if not start and number < stop:  # else other parts may have further rows
            bad.end(file, self.name)

    def _fault(self, cells: Cells) -> str:
        """Why cells are not a row of the table; "" if they are, even if a URL or a text is missing."""
        if not isinstance(cells, dict):
            return str(cells)
        image = "image_id" if self.format == "brivl_jsonl" else self.columns.image_url
        return "" if image in cells else no_column(list(cells), image)

    def _parse_row(self, cells: Cells, row: str, number: int) -> Iterator[Candidate | Decision]:
        if isinstance(cells, Exception):
            raise cells
        if isinstance(cells, str):
            yield self._broken("", row, number, DropReason.BAD_ROW, f"{row}: {cells}")
        elif self.format == "brivl_jsonl":
            yield self._brivl(cells, row, number)
        else:
            yield self._candidate(cells, row, number)

    def entries_of(self, number: int, file: str, account: Account) -> Iterator[Candidate | Decision]:
        """Yields candidates and decisions of one file, whatever its division into parts. Raises SourceError."""
        return self._entries(file, 0, sys.maxsize, account)

    def count(self, file: str, budget: Budget) -> FileCount:
        """Rows of one file: of Parquet as its footer says, of a text about as many as lines: cells may hold some."""
        kind = self._format(file)
        size = int(version(file)[1] or 0)
        if kind == "parquet":
            return FileCount(_count(file, kind, json.dumps(version(file))), size, size, True)
        lines = lines_of(file, budget)
        return replace(lines, number=max(0, lines.number - 1), whole=False) if kind in ("csv", "tsv") else lines

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of an image below the folder `images`; None for an image on the web, or one that does not exist.

        Raises ValueError for one too large to be read whole.
        """
        prefix = f"url-table:///{self.name}/"
        if not image_url.startswith(prefix):
            return None
        relative = PurePosixPath(unquote(image_url[len(prefix) :]))
        if relative.is_absolute() or ".." in relative.parts:
            return None
        return self.stored_image(self.root() or self.resolve(self.images), str(relative))

    def root(self) -> str:
        return local_path(self.resolve(self.images)) if self.images else ""

    def address_of(self, file: str) -> str:
        folder, path = self.root(), PurePosixPath(file)
        if not folder or not path.is_relative_to(folder):
            return ""
        return f"url-table:///{self.name}/{quote(str(path.relative_to(folder)))}"

    def _cuts(self) -> list[tuple[str, int, int]]:
        """(file, start, stop) of each part: rows start to stop - 1, counted from 0."""
        cuts = []
        files = self.files()
        for file in files:
            try:
                stamp = version(file)
                rows = _count(file, self._format(file), json.dumps(stamp)) if stamp[1] != 0 or len(files) == 1 else 0
            except BrokenFile:
                if len(files) == 1:
                    raise
                rows = 0  # `read` says so
            step = self.rows_per_part
            cuts += [(file, start, start + step) for start in range(0, max(rows, 1), step)]
        return cuts

    def _format(self, file: str) -> Format:
        """The format of a file. Raises SourceError for a suffix that names none."""
        if self.format != "auto":
            return self.format
        suffix = PurePosixPath(PACKED.sub("", file)).suffix.lower()
        formats: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
                                    ".json": "jsonl", ".parquet": "parquet"}  # fmt: skip
        if suffix in WORKBOOKS:
            raise SourceError(file, f"source {self.name}: {SAVE_AS_CSV}")
        if suffix not in formats:
            raise SourceError(file, f"source {self.name}: unknown file extension; set format: csv, tsv, jsonl ...")
        return formats[suffix]

    def _fitting_rows(self, file: str, start: int, stop: int) -> Iterator[Row]:
        """Rows of `_rows`; none of a later part of a file without the columns of the spec.

        Raises BrokenFile for the first part of such a file, and SourceError if no file of the source has the columns:
        then the spec is at fault.
        """
        try:
            yield from self._rows(file, start, stop)
        except _NoColumns as e:
            try:
                _fitting_file(self.model_dump_json())
            except LookupError:
                raise SourceError(e.subject, e.message) from None
            if not start:
                raise

    def has_columns(self, file: str) -> bool:
        """True if a file can be read and has the columns that the spec names."""
        try:
            next(self._rows(file, 0, 1), None)
        except SourceError:
            return False
        return True

    def _rows(self, file: str, start: int, stop: int) -> Iterator[Row]:
        """Rows [start, stop) of a file, numbered from start + 1."""
        kind = self._format(file)
        try:
            if kind == "parquet":
                yield from self._parquet_rows(file, start, stop)
                return
            with open_rows(file, self.encoding) as (f, encoding):
                decoding = Decoding(encoding)
                try:
                    if kind in ("jsonl", "brivl_jsonl"):
                        rows = json_rows(f, decoding)
                    else:
                        head = self._head(file, f, kind, decoding)
                        image = head.columns.index(self.columns.image_url)
                        rows = table_rows(f, decoding, head, lambda cells: bool(_URL.match(cells[image])))
                    for row in rows:
                        if row[0] > stop:
                            return
                        if row[0] > start:
                            yield row
                except faults() as e:
                    raise self.file_error(file, e, f.stored_position) from None
        except faults() as e:
            raise self.file_error(file, e) from None
        except UnicodeError as e:
            problem = "no encoding fits it" if self.encoding == AUTO else f"not {self.encoding}"
            raise BrokenFile(file, f"source {self.name}: {problem} ({e}); set encoding, e.g. gb18030") from None
        except ValueError as e:
            raise BrokenFile(file, f"source {self.name}: {e}") from None

    def _head(self, file: str, f: RowsFile, kind: Format, decoding: Decoding) -> Head:
        """The head of a CSV or TSV file. Raises BrokenFile for one without the columns that the spec names."""
        head = head_of(Lines(f), self._column_names(), "\t" if kind == "tsv" else ",")
        if decoding.fault("".join(head.columns)):
            decoding.end()
        self._check_columns(file, head.columns)
        return head

    def _parquet_rows(self, file: str, start: int, stop: int) -> Iterator[Row]:
        """Rows [start, stop) of a Parquet file, of which only the row groups that hold them are read.

        The rest of a damaged row group is one Hole.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from pipeline.files.parquet import hole_of, is_damaged

        try:
            with fsspec.open(file, "rb") as f:
                table = pq.ParquetFile(f)
                self._check_columns(file, table.schema_arrow.names)
                number = 0
                for group in range(table.num_row_groups):
                    rows = table.metadata.row_group(group).num_rows  # this group holds rows number to number + rows - 1
                    if number + rows > start and number < stop:
                        batches = table.iter_batches(ROWS, row_groups=[group], columns=self._column_names())
                        cells = itertools.chain.from_iterable(map(_cells_of, batches))
                        first, end = max(start, number), min(stop, number + rows)
                        own_rows = itertools.islice(cells, first - number, end - number)
                        at = first
                        try:
                            for at, row in enumerate(own_rows, first + 1):
                                yield at, row, 1, 1, int
                            if at < end:
                                raise EOFError("the row group ends early")
                        except Exception as e:
                            if not is_damaged(e):
                                raise
                            hole = hole_of(table.metadata, group, at - number, end - number, e)
                            yield at + 1, hole, hole.rows, hole.rows, int
                    number += rows
        except (pa.ArrowException, pa.lib.ArrowInvalid) as e:
            raise BrokenFile(file, f"source {self.name}: not a readable Parquet file ({reason(e)})") from None

    def _column_names(self) -> list[str]:
        """The columns that the spec names, each once."""
        columns = [self.columns.image_url]
        columns += [name for name in (self.columns.page_url, self.columns.id, self.columns.bbox) if name]
        for names in self.columns.texts.values():
            columns += [names] if isinstance(names, str) else names
        return list(dict.fromkeys(columns))

    def _check_columns(self, file: str, header: Sequence[str]) -> None:
        missing = [name for name in self._column_names() if name not in header]
        if missing:
            raise _NoColumns(file, f"source {self.name}: {no_column(header, missing[0])}"[:500])

    def _candidate(self, cells: dict[str, Any], row: str, number: int) -> Candidate | Decision:
        texts, columns = list[Text](), self.columns
        try:
            raw, page, row_id = (_cell(cells, name) for name in (columns.image_url, columns.page_url, columns.id))
            for kind, names in columns.texts.items():
                for name in (names,) if isinstance(names, str) else names:
                    texts.append(Text(kind, clean(_cell(cells, name))))
        except NoText as e:
            return self._broken("", row, number, DropReason.BAD_ROW, f"{row}: {e}", texts)
        page = web_address(page)
        try:
            bare, userinfo = split_userinfo(raw)
            url = canonical_url(bare)
        except ValueError as e:
            return self._broken(raw, row, number, DropReason.BAD_URL, f"{row}: {e}", texts)
        candidate = self._make_candidate(url, page, row_id, texts, row, number, cells.get(self.columns.bbox or ""))
        return replace(candidate, userinfo=userinfo) if userinfo and isinstance(candidate, Candidate) else candidate

    def _brivl(self, cells: dict[str, Any], row: str, number: int) -> Candidate | Decision:
        image, sentences = cells.get("image_id"), cells.get("sentences")
        image = encodable(image) if isinstance(image, str) else None
        if image is None or not isinstance(sentences, list):
            return self._broken("", row, number, DropReason.BAD_ROW, f"{row}: image_id and sentences are required")
        texts = _sentences(sentences)
        try:
            url, userinfo = self._image_address(image)
        except ValueError as e:
            return self._broken(image, row, number, DropReason.BAD_URL, f"{row}: {e}", texts)
        origin = without_userinfo(image)
        candidate = self._make_candidate(url, "", origin, texts, row, number, cells.get("bbox"))
        return replace(candidate, userinfo=userinfo) if userinfo and isinstance(candidate, Candidate) else candidate

    def _image_address(self, image: str) -> tuple[str, str]:
        """(address, user info) of a path of a BriVL row. Raises ValueError."""
        if image.startswith(("http://", "https://")):
            bare, userinfo = split_userinfo(image)
            return canonical_url(bare), userinfo
        relative = PurePosixPath(image)
        if ".." in relative.parts or not relative.name:
            raise ValueError(f"image path {image[:100]!r} points outside the folder")
        path = quote(str(relative).lstrip("/"))
        if self.images.lower().startswith(("http://", "https://")):
            bare, userinfo = split_userinfo(self.images)
            return canonical_url(f"{bare.rstrip('/')}/{path}"), userinfo
        return f"url-table:///{self.name}/{path}", ""

    def _make_candidate(
        self, url: str, page: str, row_id: str, texts: list[Text], row: str, number: int, bbox: Any
    ) -> Candidate | Decision:
        """Returns the candidate of a row, or the Decision about its missing text or unreadable boxes."""
        try:
            boxes = _boxes(bbox)
        except ValueError as e:
            return self._broken(url, row, number, DropReason.BAD_ROW, f"{row}: {e}", texts)
        unique = distinct(texts)
        origin = row_id or page or "row:" + sha256_hex("", *(part for t in unique for part in (t.kind, t.text)))[:32]
        candidate = Candidate(self.name, self.source_kind, origin, page, url, unique, number, boxes)
        return candidate if unique else drop(candidate, "extract", DropReason.NO_TEXT, row)

    def _broken(
        self, url: str, row: str, number: int, reason: DropReason, evidence: str, texts: Sequence[Text] = ()
    ) -> Decision:
        """Returns the Decision about a row that is not a candidate; its file and row are its identity."""
        filled = tuple(t for t in texts if t.text)
        return drop(Candidate(self.name, self.source_kind, row, "", url, filled, number), "extract", reason, evidence)


def _cells_of(table: Any) -> list[dict[str, Any] | Exception]:
    """The cells of each row of an Arrow table; what Python raises on a row in its place."""
    try:
        return list(table.to_pylist())
    except Exception:  # one of them: a string that is not UTF-8, a date that Python lacks
        rows: list[dict[str, Any] | Exception] = []
        for at in range(table.num_rows):
            try:
                rows += table.slice(at, 1).to_pylist()
            except Exception as e:
                rows.append(e)
        return rows


def _cell(cells: dict[str, Any], name: str | None) -> str:
    """A cell as text; "" if the column or the cell is missing. Raises NoText that names the column."""
    try:
        return cell_text(cells.get(name)) if name else ""
    except NoText as e:
        raise NoText(f"column {name} {e}") from None


def _boxes(value: Any) -> tuple[float, ...]:
    """Flat numbers x1 y1 x2 y2 ... of a list of boxes, or of its JSON; () without any. Raises ValueError."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise ValueError("its boxes are not JSON") from None
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(box, list) and len(box) == 4 for box in value):
        raise ValueError("its boxes are not lists of four numbers")
    numbers = [number for box in value for number in box]
    if not all(type(n) in (int, float) and math.isfinite(n) and abs(n) < 1e9 for n in numbers):
        raise ValueError("its boxes are not finite numbers")
    return tuple(float(number) for number in numbers)


def _sentences(sentences: list[Any]) -> list[Text]:
    """Texts of a BriVL row: [kind, text] pairs, or plain captions (AIC-ICC), without spaces between Chinese words."""
    pairs: list[tuple[str, str]] = []
    for entry in sentences:
        kind, text = entry if isinstance(entry, list) and len(entry) == 2 else ("caption", entry)
        if isinstance(kind, str) and isinstance(text, str):
            pairs.append((kind, _BETWEEN_HAN.sub("", clean(text))))
    texts = [Text(BRIVL_KINDS[kind], text) for kind, text in pairs if kind in BRIVL_KINDS]
    if not any(t.kind == "surrounding" for t in texts):
        short_text = next((text for name in ("easy", "first") for kind, text in pairs if kind == name), "")
        texts += [Text("surrounding", short_text)] if short_text else []
    return texts


@lru_cache(maxsize=1_000)
def _fitting_file(source: str) -> str:
    """A file with the columns of a UrlTable, which is given as JSON. Raises LookupError, which is not cached."""
    table = UrlTable.model_validate_json(source)
    for file in table.files():
        if table.has_columns(file):
            return file
    raise LookupError("no file with the columns of the spec")


@lru_cache(maxsize=10_000)
def _count(file: str, kind: Format, _version: str) -> int:
    """Number of rows of a file, or an upper bound (lines), by which last parts may be short. Raises SourceError.

    `_version` makes a changed file another entry of the cache.
    """
    assert kind in get_args(Format)
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            with fsspec.open(file, "rb") as f:
                return int(pq.ParquetFile(f).metadata.num_rows)
        with fsspec.open(file, "rb", compression="infer") as f:
            lines = 1
            while block := _read_block(f):
                if block.endswith((b"\r", b"\r\0")):  # the other half of a line's end
                    block += f.read(2)
                # of \r\n, in UTF-16 too, one end; \r alone ends a row as well, and rows beyond the count are not read
                lines += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n") - block.count(b"\r\0\n")
            return lines
    except faults(ValueError) as e:
        fault = BrokenFile if is_damage(e) or isinstance(e, ValueError) else SourceError
        raise fault(file, f"not a readable {kind} file ({reason(e)})") from None


def _read_block(file: Any) -> bytes:
    """The next bytes of a file that may be packed; none behind a damage, which ends its rows."""
    try:
        return bytes(file.read(1 << 20))
    except Exception as e:
        if not is_damage(e):
            raise
        return b""
