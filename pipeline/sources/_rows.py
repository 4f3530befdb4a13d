"""Rows of text files, as lines of JSON or as tables: the reader of every source that has such files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.files.damage import Hole
from pipeline.files.inputs import Lines, LongLine
from pipeline.rows.account import Named
from pipeline.sources import Decoding
from pipeline.sources._text_files import Head, RowsFile, json_object, rows_of

Cells = dict[str, Any] | str | Exception
"""Cells of a row by column, or a message that says what is wrong with it, or what it raised."""


Row = tuple[int, Cells | Named | Hole, int, int, Callable[[], int]]
"""A row of a file, or what is in place of rows: its number from 1, of lines that are not a row that of the next one, of
a Hole that of its first; its cells; the lines that it takes, of Parquet the rows; how many of them its cells tell of;
its bytes in the file, 0 of Parquet and of lines that are not a row. Not a class: a file has millions of them."""


def json_rows(f: RowsFile, decoding: Decoding) -> Iterator[Row]:
    """Rows of JSON lines; blank lines do not count. Raises UnicodeError for a file of another encoding."""
    number = 1
    for _, line in Lines(f).numbered():
        if isinstance(line, str) and not line.lstrip("\ufeff").strip():
            yield number, Named.BLANK, 1, 1, int
            continue
        cells: Cells = line if isinstance(line, LongLine) else decoding.fault(line) or json_object(line)
        yield number, cells, 1, 1, partial(f.stored_size, [line])
        number += 1
    decoding.end()


def table_rows(
    f: RowsFile, decoding: Decoding, head: Head, is_row: Callable[[list[str]], bool], short: bool = False
) -> Iterator[Row]:
    """Rows of a table below its head, which is the first. Raises UnicodeError for a file of another encoding.

    is_row: as of `rows_of`. short: a row may lack its last cells, or have empty ones behind them.
    """
    yield 1, Named.HEADER, head.lines, head.lines, int
    columns, number = len(head.columns), 1
    for row, lines, in_cells in rows_of(head.rows, head.separator, columns, is_row):
        cells: Cells
        if isinstance(row, Exception):
            cells = row if isinstance(row, LongLine) else str(row)
        elif not row:
            yield number, Named.BLANK, 1, 1, int
            continue
        elif fault := decoding.fault("".join(row)):
            cells = fault
        elif any(row[columns:]) if short else len(row) != columns:
            cells = f"{len(row)} fields, but {columns} in the header"
        else:
            cells = dict(zip(head.columns, row, strict=False))
        yield number, cells, len(lines), in_cells, partial(f.stored_size, lines)
        number += 1
    decoding.end()
