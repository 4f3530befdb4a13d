"""Text files of users: detects their encoding and the separator of a table's columns.

Encodings: a byte order mark is believed; whatever reads as UTF-8 is UTF-8; otherwise GBK (as gb18030, which includes
it) and Big5 compete as they do for pages (`pipeline.texts.charset`). A file is judged by its first HEAD bytes, so a
table in UTF-8 with a few broken rows stays UTF-8.

Tables: cells may be quoted as RFC 4180 says, and may then hold line breaks. Many tables are not quoted at all, and a
cell of theirs may begin with a quote that nothing closes (`rows_of`).

Limits: a file of a few characters can be read in two ways, and the more usual text wins. UTF-16 without a byte order
mark is not detected. A spec that says `encoding` is believed.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import fsspec
from fsspec.compression import compr
from fsspec.core import get_compression
from pydantic import AfterValidator

from pipeline.files.inputs import MAX_LINE, LongLine, size_of_line
from pipeline.rows.records import encodable
from pipeline.texts import charset

AUTO = "auto"
PACKED = re.compile(r"\.(?:gz|zst|bz2|xz)$", re.IGNORECASE)
"""The suffix of a packed table."""

HEAD = 256 * 1024
"""Bytes from which the encoding of a file is detected."""

SEPARATORS = (",", "\t", ";", "|", "，")
"""Separators of columns that are looked for in the first row of a table, the most usual first."""

csv.field_size_limit(MAX_LINE)  # of the whole process; longer lines are not read

_QUOTED = re.compile(r'\s*"([^"]*)"\s*\Z')

MAX_ROW = 4 * MAX_LINE
"""Characters of a row of several lines that are read."""

WORKBOOKS = (".xlsx", ".xls", ".ods", ".et")
SAVE_AS_CSV = "workbooks are not supported; save the sheet as CSV (UTF-8) and give that file"

_BINARY = {b"PK\x03\x04": "an Excel workbook or a zip archive", b"\xd0\xcf\x11\xe0": "an old Excel workbook"}


def _check_encoding(name: str) -> str:
    try:
        if name != AUTO and not codecs.lookup(name)._is_text_encoding:
            raise LookupError
    except LookupError:
        raise ValueError(f"unknown encoding {name!r}; use gb18030 (= GBK), big5, utf-8, utf-16 or auto") from None
    return name


Encoding = Annotated[str, AfterValidator(_check_encoding)]
"""A Python codec of texts, or AUTO."""


def encoding_of(head: bytes, whole: bool = True) -> str:
    """The Python codec of a text that begins with these bytes; `utf-8` where none fits. whole: they are all of it.

    Raises ValueError for bytes of a binary format.
    """
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise ValueError(f"{what}, not text; save the table as CSV (UTF-8)")
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if _is_utf8(head, whole) or _mostly_utf8(head):
        return "utf-8"
    decoded = charset.decode(head, "")
    return decoded[1] if decoded is not None else "utf-8"


def is_text(head: bytes) -> bool:
    """True if a file that begins with these bytes is a text: without zeros, unless it is in UTF-16."""
    return b"\0" not in head or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _is_utf8(text: bytes, whole: bool = True) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text, final=whole)
    except UnicodeDecodeError:
        return False
    return True


def _mostly_utf8(head: bytes) -> bool:
    """True if bytes are rows of UTF-8 with broken ones among them.

    Of rows beyond ASCII in another encoding at most one in seven is valid UTF-8, and hardly one of several characters.
    """
    rows = [row for row in head.split(b"\n") if not row.isascii()]
    return 2 * sum(map(_is_utf8, rows)) >= len(rows)


def text_of(data: bytes, encoding: str) -> str:
    """The text of a whole (small) file. Raises ValueError, UnicodeError among them, that names the encoding."""
    codec = encoding_of(data) if encoding == AUTO else encoding
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except UnicodeError as e:
        problem = "no encoding fits it" if encoding == AUTO else f"not {encoding}"
        raise ValueError(f"{problem} ({e}); set encoding, e.g. gb18030 or utf-8") from None


class RowsFile(io.TextIOWrapper):
    """A text file of rows. stored: the file as it is stored; unpacked: its content, in bytes."""

    stored: Any
    unpacked: Any

    @property
    def stored_position(self) -> int:
        """Bytes of the stored file that were taken."""
        return int(self.stored.tell())

    def stored_size(self, lines: Sequence[str | LongLine]) -> int:
        """Bytes that lines take in the stored file; of a packed one about as many, by its packing up to here."""
        size = sum(size_of_line(line, self.encoding) for line in lines)
        if self.unpacked is self.stored:
            return size
        try:
            return min(size, size * self.stored_position // max(1, int(self.unpacked.tell())))
        except (OSError, ValueError):  # it does not know its place
            return size


@contextlib.contextmanager
def open_rows(file: str, encoding: str) -> Iterator[tuple[RowsFile, str]]:
    """(a text file of rows, its encoding); bytes that are not of it become lone surrogates.

    Compressed ones (.gz, .zst ...) are unpacked. Raises what fsspec raises, and ValueError for binary bytes.
    """
    if encoding == AUTO:
        with fsspec.open(file, "rb", compression="infer") as f:  # of its own: a compressed file cannot go back
            head = bytes(f.read(HEAD))
        encoding = encoding_of(head, whole=len(head) < HEAD)
    packing = get_compression(file, "infer")
    with fsspec.open(file, "rb") as stored:
        unpacked = stored if packing is None else compr[packing](stored, mode="rb")
        with RowsFile(unpacked, encoding=encoding, errors="surrogateescape", newline="") as f:
            f.stored, f.unpacked = stored, unpacked
            yield f, encoding


def json_object(line: str) -> dict[str, Any] | str:
    """The object in a line of JSON, or what is wrong with it."""
    try:
        value = json.loads(line.lstrip("\ufeff"))
    except (ValueError, RecursionError) as e:
        return f"invalid JSON ({e})"[:200]
    return value if isinstance(value, dict) else "not a JSON object"


class NoText(ValueError):
    """Raised for a cell that is not text."""


def cell_text(value: Any) -> str:
    """A cell of a table as text, of a list its entries; "" for a missing one. Raises NoText, and UnicodeDecodeError."""
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(cell_text, value)))
    if value is None or value != value:  # pandas writes NaN for nothing
        return ""
    if isinstance(value, dict):
        raise NoText(f"is an object instead of text, with the fields {', '.join(map(str, value))}"[:200])
    text = value.decode() if isinstance(value, bytes) else str(value)  # Parquet may not say that strings are text
    return encodable(text).strip()


def separator_of(first_row: str, required: Collection[str] | None, usual: str = ",") -> str:
    """The separator of a table whose first row is this: `usual`, or the first that yields all required columns.

    Where none does, or no column is known (None), the one that yields the most.
    """
    separators = dict.fromkeys((usual, *SEPARATORS))
    names = {separator: columns_of(first_row, separator) for separator in separators}
    fitting = (separator for separator in separators if required is not None and set(required) <= set(names[separator]))
    return next(fitting, max(separators, key=lambda separator: len(names[separator])))


def columns_of(first_row: str, separator: str) -> list[str]:
    try:
        return clean_names(next(csv.reader([first_row], delimiter=separator), []))
    except csv.Error:
        return []


TITLE_ROWS = 5
"""Rows above the header of a table in which it is looked for: a title, a date, an empty row."""


class Head(NamedTuple):
    """Head of a table: separator, names of the columns, the lines behind them, how many lines came before those."""

    separator: str
    columns: list[str]
    rows: Iterator[str]
    lines: int


def head_of(lines: Iterator[str], required: Collection[str] | None, usual: str = ",") -> Head:
    """Returns the head of a table.

    The header is the first row unless only a later one has all required columns or, where none is known (None), two
    cells that are filled. Raises ValueError for a row that no quote ends.
    """
    first = next(lines, "")
    separator = separator_of(first, required, usual)
    header, used = _header_of(first, lines, separator, required)
    above: list[str] = []
    if not _is_header(header, required):
        for line in itertools.islice(lines, TITLE_ROWS):
            above.append(line)
            other = separator_of(line, required, usual)
            for cells in map(clean_names, _readings(line, other)):
                if _is_header(cells, required):
                    return Head(other, cells, lines, used + len(above))
    return Head(separator, header, itertools.chain(above, lines), used)


def _is_header(cells: Collection[str], required: Collection[str] | None) -> bool:
    return set(required) <= set(cells) if required is not None else sum(map(bool, cells)) > 1


def _header_of(
    first: str, lines: Iterable[str], separator: str, required: Collection[str] | None
) -> tuple[list[str], int]:
    """(names of the columns in the first row, its lines), given its first line and the others, which a quoted name may
    go on in."""
    for cells in map(clean_names, _readings(first, separator)):
        if required is None or _is_header(cells, required):
            return cells, 1
    try:
        reader = csv.reader(_Feed(itertools.chain([first], lines)), delimiter=separator)
        return clean_names(next(reader, [])), reader.line_num
    except csv.Error as e:
        raise ValueError(str(e)) from None


def clean_names(header: Sequence[str]) -> list[str]:
    """Names of columns without byte order mark and white space."""
    return [name.lstrip("\ufeff").strip() for name in header]


def no_column(columns: Sequence[str], missing: str) -> str:
    """The fault of a table without a column that is needed, for people."""
    names = ("".join(filter(str.isprintable, name)) for name in columns)
    known = (
        ", ".join(filter(None, names))[:300] or f"none (its first line is {'not text' if any(columns) else 'empty'})"
    )
    return f"no column {missing!r}; columns: {known}"


TableRow = tuple[list[str] | Exception, Sequence[str | LongLine], int]
"""A row of a table: its cells, or what was raised on it; the lines that it takes; how many the cells tell of."""

_BREAKS = re.compile("\r\n?|\n")


def lines_in_cells(cells: list[str] | Exception, lines: int) -> int:
    """Lines of a row that its cells tell of: one, and one for each line break in them. A quote swallowed the others."""
    return 1 if isinstance(cells, Exception) else min(lines, 1 + sum(len(_BREAKS.findall(cell)) for cell in cells))


def rows_of(
    lines: Iterable[str], separator: str, columns: int, is_row: Callable[[list[str]], bool]
) -> Iterator[TableRow]:
    """The rows of a table; what csv or `lines` raises on a row is in the place of its cells.

    To csv a quote at the start of a cell opens one that ends at the next quote, many rows later where it belongs to
    a text and not to the table. So a row of several lines is asked line by line whether they are rows of their own
    (`_are_rows`). If they are, reading goes on at the line with that next quote, which may open a cell itself.

    columns: how many the table has. is_row: whether cells, of which there are as many, are what a row of it has.
    """
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=separator)

    def parse_line(line: str | LongLine) -> list[str] | None:
        """Returns the cells of a line, read as a row of its own; None if it is not one."""
        if isinstance(line, LongLine) or line.count(separator) < columns - 1:
            return None
        readings = (cells for cells in _readings(line, separator) if len(cells) == columns and is_row(cells))
        return next(readings, None)

    while True:
        feed.begin()
        row: list[str] | Exception
        try:
            row = next(reader)
        except StopIteration:
            return
        except (csv.Error, LongLine) as e:
            row = e
        lines_of_row = feed.row_lines
        fits = not isinstance(row, Exception) and len(row) in (0, columns)
        if len(lines_of_row) == 1:
            yield (row if fits else parse_line(lines_of_row[0]) or row), lines_of_row, 1
            continue
        if not _are_rows(lines_of_row, separator, fits, lambda line: parse_line(line) is not None):
            yield row, lines_of_row, lines_in_cells(row, len(lines_of_row))
            continue
        closing = _closing(lines_of_row)
        for line in lines_of_row[:closing]:
            yield (parse_line(line) or _cells_or_error(line, separator)), [line], 1
        feed.put_back(lines_of_row[closing:])


SURE = 3
"""Lines within a well-formed cell that look like rows of the table from which on they are: no caption lists so many."""

MAX_REREAD = 64
"""Lines that are read again at most after a misplaced quote: more would let a file cost the square of its size."""


def _are_rows(
    lines: Sequence[str | LongLine], separator: str, fits: bool, is_row: Callable[[str | LongLine], bool]
) -> bool:
    """True if the lines that csv took for one row are rows of their own; in doubt they are.

    The first or the last line of a row may look like a row: a cell of several lines stands beside a URL. Both hardly
    ever do, and neither do the lines in between, which are of a text. So with too few or too many cells, or with quotes
    where no writer of tables puts them, one line is enough; a well-formed row needs half of those in between,
    or SURE ones.

    fits: the row has the number of cells of the table. is_row: tells if a line is a row by itself.
    """
    first, *between, last = lines
    between = [line for line in between if isinstance(line, LongLine) or line.strip()]
    is_quoted = _is_quoted(lines, separator)
    if fits and is_quoted:
        needed = min(SURE, max(1, (len(between) + 1) // 2))
        matches = sum(1 for _ in itertools.islice(filter(is_row, between), needed))
        return matches + (is_row(first) and is_row(last)) >= needed
    if is_row(first) or any(map(is_row, between)) or (not fits and not is_quoted and is_row(last)):
        return True
    closing_line = lines[_closing(lines)]
    return isinstance(closing_line, str) and _opens(closing_line, separator)


_QUOTES = re.compile('"+')


def _closing(lines: Sequence[str | LongLine]) -> int:
    """The number of the line, from 1 on, with the quote that ends the cell which line 0 opens; that of the last line
    where none does, or where more than READ_AGAIN follow. Quotes in pairs stand for themselves."""
    for number, line in enumerate(lines[1:], 1):
        if isinstance(line, str) and any(len(quotes) % 2 for quotes in _QUOTES.findall(line)):
            return number if len(lines) - number <= MAX_REREAD else len(lines) - 1
    return len(lines) - 1


def _opens(line: str, separator: str) -> bool:
    """True if the first odd run of quotes of a line begins a cell."""
    start = next((run.start() for run in _QUOTES.finditer(line) if len(run.group()) % 2), -1)
    return start == 0 or (start > 0 and line[start - 1] == separator)


def _readings(line: str, separator: str) -> Iterator[list[str]]:
    """The cells of a line: as a writer of tables quotes; else with quotes around a whole cell taken off; else all."""
    with contextlib.suppress(csv.Error):
        yield from csv.reader([line], delimiter=separator, strict=True)
    with contextlib.suppress(csv.Error):
        for cells in csv.reader([line], delimiter=separator, quoting=csv.QUOTE_NONE):
            yield [_QUOTED.sub(r"\1", cell) for cell in cells]
            yield [cell.strip().strip('"') for cell in cells]


class _Feed(Iterator[str]):
    """The lines of a table, of which some may be put back. row_lines: those of the current row, and what was raised."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._returned: list[str | LongLine] = []
        self.begin()

    def begin(self) -> None:
        self.row_lines: list[str | LongLine] = []
        self._size = 0

    def put_back(self, lines: Sequence[str | LongLine]) -> None:
        """Hand these lines out once more, next."""
        self._returned += reversed(lines)

    def __next__(self) -> str:
        if self._size > MAX_ROW:
            raise csv.Error(f"row of more than {MAX_ROW:,} characters")
        line: str | LongLine
        if self._returned:
            line = self._returned.pop()
        else:
            try:
                line = next(self._lines)
            except LongLine as e:
                line = e
        self.row_lines.append(line)
        if isinstance(line, LongLine):
            raise line
        self._size += len(line)
        return line


def _is_quoted(lines: Sequence[str | LongLine], separator: str) -> bool:
    """True if lines are one row whose quotes stand where RFC 4180 has them."""
    try:
        return len(list(csv.reader(map(str, lines), delimiter=separator, strict=True))) == 1
    except csv.Error:
        return False


def _cells_or_error(line: str | LongLine, separator: str) -> list[str] | Exception:
    """The cells of a line, or what is wrong with it."""
    if isinstance(line, LongLine):
        return line
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error as e:
        return e
