"""Text files as people have them: their encoding, and the separator of a table's columns, told by their bytes.

Encodings: a byte order mark is believed; bytes with many zeros are UTF-16; whatever reads as UTF-8 is
UTF-8; otherwise GBK (as gb18030, which includes it) and Big5 compete as they do for pages (`pipeline.texts.charset`).
A file is judged by its first HEAD bytes, so a table in UTF-8 with a few broken rows stays UTF-8.

Limits: a file of a few characters can be read in two ways, and the more usual text wins. A spec that says `encoding`
is believed.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Annotated, Any

import fsspec
from pydantic import AfterValidator

from pipeline.files.inputs import MAX_LINE, LongLine
from pipeline.records import encodable
from pipeline.texts import charset

AUTO = "auto"
PACKED = re.compile(r"\.(?:gz|zst|bz2|xz)$")
"""The suffix of a packed table."""

HEAD = 256 * 1024
"""Bytes by which the encoding of a file is told."""

FEW_ZEROS = 10
"""Bytes per zero from which on a text is not in UTF-16, if it is one in UTF-8: no Chinese one is both."""

_USUAL = re.compile("[\t-~\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
"""Characters of Chinese texts. With its bytes in the other order a third of a text is of these."""

SEPARATORS = (",", "\t", ";", "|", "，")
"""Separators of columns that are looked for in the first row of a table, the most usual first."""

_NO_TEXT = {b"PK\x03\x04": "an Excel workbook or a zip archive", b"\xd0\xcf\x11\xe0": "an old Excel workbook"}


def _known(name: str) -> str:
    try:
        if name != AUTO and not codecs.lookup(name)._is_text_encoding:
            raise LookupError
    except LookupError:
        raise ValueError(f"{name!r} is no encoding; gb18030 (includes GBK), big5, utf-8, utf-16, or auto") from None
    return name


Encoding = Annotated[str, AfterValidator(_known)]
"""A Python codec of texts, or AUTO."""


def encoding_of(head: bytes, whole: bool = True) -> str:
    """The Python codec of a text that begins with these bytes; `utf-8` where none fits. whole: they are all of it.

    Raises ValueError for bytes of a format that is no text.
    """
    for magic, what in _NO_TEXT.items():
        if head.startswith(magic):
            raise ValueError(f"is {what}, no text; save the table as CSV (UTF-8)")
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    is_utf8 = _reads_as_utf8(head, whole)
    # no text has zeros but UTF-16: one for each ASCII character, and for each 一 (U+4E00); or they are broken cells
    if b"\0" in head and not (is_utf8 and FEW_ZEROS * head.count(0) < len(head)):
        orders = ("utf-16-be", "utf-16-le") if head[::2].count(0) > head[1::2].count(0) else ("utf-16-le", "utf-16-be")
        return max(orders, key=lambda name: len(_USUAL.findall(head.decode(name, "replace"))))
    if is_utf8:
        return "utf-8"
    decoded = charset.decode(head, "")
    return decoded[1] if decoded is not None else "utf-8"


def _reads_as_utf8(head: bytes, whole: bool) -> bool:
    """Whether bytes are UTF-8, or rows of UTF-8 with broken ones among them.

    Of rows beyond ASCII in another encoding at most one in seven is valid UTF-8, and hardly one of several characters.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        rows = [row for row in head.split(b"\n") if not row.isascii()]
        return 2 * sum(map(_is_utf8, rows)) >= len(rows)
    return True


def _is_utf8(row: bytes) -> bool:
    try:
        row.decode()
    except UnicodeDecodeError:
        return False
    return True


def text_of(data: bytes, encoding: str) -> str:
    """The text of a whole (small) file. Raises ValueError, UnicodeError among them, that names the encoding."""
    codec = encoding_of(data) if encoding == AUTO else encoding
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except UnicodeError as e:
        told = "no encoding fits it" if encoding == AUTO else f"is not {encoding}"
        raise ValueError(f"{told} ({e}); set encoding, e.g. gb18030 or utf-8") from None


@contextlib.contextmanager
def opened(file: str, encoding: str) -> Iterator[tuple[Any, str]]:
    """(a text file of rows, its encoding); bytes that are not of it become lone surrogates.

    Compressed ones (.gz, .zst ...) are unpacked. Raises what fsspec raises, and ValueError for what is no text.
    """
    if encoding == AUTO:
        with fsspec.open(file, "rb", compression="infer") as f:  # of its own: a compressed file cannot go back
            head = bytes(f.read(HEAD))
        encoding = encoding_of(head, whole=len(head) < HEAD)
    with fsspec.open(file, "rt", compression="infer", encoding=encoding, errors="surrogateescape", newline="") as f:
        yield f, encoding


class Rows(Iterator[list[str]]):
    """The cells of each row of a CSV or TSV table, its header first.

    A quote that nobody closes, such as that of a text in a table whose writer quotes nothing, would make one cell of
    all rows behind it. So where a line within a row looks like the first line of a row, each line is read by itself.
    `is_row` tells by the cells of a line; set it once the header is known. A text of several lines, of which one looks
    like a row, is cut there.

    `next` raises csv.Error or LongLine for a row that cannot be read, and goes on behind it when it is called again.
    """

    def __init__(self, lines: Iterator[str], separator: str) -> None:
        csv.field_size_limit(MAX_LINE)
        self.is_row: Callable[[list[str]], bool] = lambda cells: False
        self._separator = separator
        self._reader = csv.reader(map(self._noted, lines), delimiter=separator)
        self._taken: list[str] = []  # lines of the row that is being read
        self._size = 0  # characters of them
        self._again: deque[str | Exception] = deque()

    def __next__(self) -> list[str]:
        if self._again:
            line = self._again.popleft()
            if isinstance(line, Exception):
                raise line
            return next(csv.reader([line], delimiter=self._separator), [])
        self._taken, self._size = [], 0
        try:
            row = next(self._reader)
        except (csv.Error, LongLine) as e:
            if not self._holds_rows():
                raise
            if self._size <= MAX_LINE:  # it is about a line more
                self._again.append(e)
        else:
            if not self._holds_rows():
                return row
        self._again.extendleft(reversed(self._taken))
        return next(self)

    def _noted(self, line: str) -> str:
        self._taken.append(line)
        self._size += len(line)
        if self._size > MAX_LINE and len(self._taken) > 1:
            raise LongLine(f"a row of more than {MAX_LINE:,} characters")
        return line

    def _holds_rows(self) -> bool:
        """Whether the lines of a row look like rows of their own."""
        if len(self._taken) < 2:
            return False
        first, *others = csv.reader(self._taken, delimiter=self._separator, quoting=csv.QUOTE_NONE)
        return self.is_row(first) and any(map(self.is_row, others))


class NoText(ValueError):
    """A cell that is no text."""


def cell_text(value: Any) -> str:
    """A cell of a table as text, of a list its entries; "" for a missing one. Raises NoText, and UnicodeDecodeError."""
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(cell_text, value)))
    if value is None or value != value:  # pandas writes NaN for nothing
        return ""
    if isinstance(value, dict):
        raise NoText(f"is no text but an object of {', '.join(map(str, value))}"[:200])
    text = value.decode() if isinstance(value, bytes) else str(value)  # Parquet may not say that strings are text
    return encodable(text).strip()


def separator_of(first_row: str, wanted: Collection[str] | None, usual: str = ",") -> str:
    """The separator of a table whose first row is this: `usual`, or the first that yields all wanted columns.

    Where none does, or no column is known (None), the one that yields the most.
    """
    separators = dict.fromkeys((usual, *SEPARATORS))
    names = {separator: columns_of(first_row, separator) for separator in separators}
    fitting = (separator for separator in separators if wanted is not None and set(wanted) <= set(names[separator]))
    return next(fitting, max(separators, key=lambda separator: len(names[separator])))


def columns_of(first_row: str, separator: str) -> list[str]:
    """Names of the columns in the first row of a table."""
    try:
        return cleaned(next(csv.reader([first_row], delimiter=separator), []))
    except csv.Error:
        return []


def cleaned(header: Sequence[str]) -> list[str]:
    """Names of columns without byte order mark and white space."""
    return [name.lstrip("\ufeff").strip() for name in header]


def no_column(columns: Sequence[str], missing: str) -> str:
    """The fault of a table without a column that is needed, for people."""
    known = ", ".join(columns)[:300] or "none: it is empty"
    return f"has no column {missing!r}; its columns: {known}"
