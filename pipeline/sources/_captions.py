"""A table of captions for a folder of pictures: one row a picture, in CSV, TSV or JSON lines.

A row names its picture by its path in the folder, or by its name, with or without suffix, where only one picture has
it. Each row that cannot be read is a Decision; each line of the file is accounted for (`pipeline.account`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, Field

from data_specs.shard import TEXT_KINDS, Text, TextKind
from pipeline.account import Named, Units
from pipeline.files.inputs import Lines, LongLine
from pipeline.records import Decision, encodable
from pipeline.sources import MAX_UNDECODED
from pipeline.sources._text_files import PACKED, Encoding, columns_of, head_of, no_column, opened, rows_of
from pipeline.texts.cleaning import clean

ColumnNames = str | tuple[str, ...]


class CaptionColumns(BaseModel):
    """Names of the columns of the captions file; without any, a text column is called like its kind of text."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image: str = Field("file", description="column with the path of the picture in the folder, or its file name")
    caption: ColumnNames = Field((), description="column(s) with captions; likewise for the other kinds of text")
    alt: ColumnNames = ()
    title: ColumnNames = ()
    surrounding: ColumnNames = ()
    abstract: ColumnNames = ()
    content: ColumnNames = ()
    tag: ColumnNames = ()

    def by_kind(self) -> dict[TextKind, tuple[str, ...]]:
        """The columns of each kind of text."""
        return self._named() or {kind: (kind,) for kind in TEXT_KINDS}

    def required(self) -> list[str]:
        """Columns that the table must have: those that the spec names."""
        return [self.image, *(name for names in self._named().values() for name in names)]

    def _named(self) -> dict[TextKind, tuple[str, ...]]:
        named = {kind: getattr(self, kind) for kind in TEXT_KINDS}
        return {kind: (own,) if isinstance(own, str) else tuple(own) for kind, own in named.items() if own}


class _Row(NamedTuple):
    """A row of a captions file: a line of JSON, cells by column, what was raised on it, or the name of lines that are
    not a row. lines, told: as in `_text_files.TableRow`."""

    cells: str | dict[str, Any] | Exception | Named
    lines: int = 1
    told: int = 1


@dataclass(frozen=True)
class CaptionsFile:
    """A table of captions. name: its path in the folder. at: its path or URL."""

    name: str
    at: str
    columns: CaptionColumns
    encoding: Encoding

    def texts(
        self,
        pictures: Names,
        is_wanted: Callable[[str], bool],
        lines: Units,
        unreadable: Callable[[str, Exception], Decision],
    ) -> tuple[dict[str, list[Text]], list[Decision]]:
        """Texts by picture, and a Decision for each row that cannot be read, by `unreadable` of its place.

        is_wanted: of which pictures, and names of none, the texts are kept. lines: accounts for the lines of the file.
        Raises ValueError for a file of which no row can be read, and what fsspec raises.
        """
        texts: dict[str, list[Text]] = {}
        broken: list[Decision] = []
        any_is_sound, number = False, 0
        with opened(self.at, self.encoding) as (f, encoding):
            for row in self._rows(f, pictures):
                lines.met += row.lines
                if isinstance(row.cells, Named):
                    lines.named[row.cells] += row.lines
                    continue
                number += 1
                place = f"{self.name}, row {number}"
                if row.told < row.lines:
                    lines.miss(f"{place}: {row.lines - row.told:,} lines in one cell")
                try:
                    named, cells = self._captions_of(row.cells, encoding)
                    name, any_is_sound = pictures.find(named), True
                    if is_wanted(name):
                        texts.setdefault(name, []).extend(texts_of(cells))
                    lines.candidates += row.told * (name in pictures)
                    lines.decisions += row.told * (name not in pictures)
                except Exception as e:
                    broken.append(unreadable(place, e))
                    lines.decisions += row.told
                    if not any_is_sound and len(broken) == MAX_UNDECODED:
                        break
        if broken and not any_is_sound:
            fault = f"none of the first {len(broken)} rows can be read: {broken[0].evidence}"
            raise ValueError(f"not a table of captions ({fault})")
        return texts, broken

    def _rows(self, f: Any, pictures: Names) -> Iterator[_Row]:
        """Rows as the file's suffix says: lines of JSON as text, rows of a table by column.

        Raises ValueError for a table without the columns that are named.
        """
        name = PACKED.sub("", self.name.lower())
        if name.endswith((".jsonl", ".ndjson", ".json")):
            for _, line in Lines(f).numbered():
                is_blank = not isinstance(line, LongLine) and not line.strip("\ufeff\r\n\t ")
                yield _Row(Named.BLANK if is_blank else line)
            return
        usual = "\t" if name.endswith(".tsv") else ","
        separator, header, lines, above = head_of(Lines(f), self.columns.required(), usual)
        self._check_columns(header, (columns_of(line, separator) for line in islice(lines, 5)), pictures)
        yield _Row(Named.HEADER, above)
        image = header.index(self.columns.image)

        def is_row(cells: list[str]) -> bool:
            return pictures.find(cells[image]) in pictures

        for row, taken, told in rows_of(lines, separator, len(header), is_row):
            if isinstance(row, Exception):
                yield _Row(row, len(taken), told)
            elif any(row[len(header) :]):  # a text with the separator in it, and no quotes around it
                yield _Row(ValueError(f"{len(row)} fields, but {len(header)} in the header"), len(taken), told)
            elif row:
                yield _Row(dict(zip(header, row, strict=False)), len(taken), told)
            else:
                yield _Row(Named.BLANK)

    def _check_columns(self, header: Sequence[str], rows: Iterable[list[str]], pictures: Names) -> None:
        """Raises ValueError for a table without a column that is needed, and says what to write into the spec.

        rows: some rows of the table, read only in that case.
        """
        missing = next((name for name in self.columns.required() if name not in header), None)
        if missing is None:
            return
        some = list(rows)
        named = [i for i in range(len(header)) if any(len(r) > i and pictures.find(r[i]) in pictures for r in some)]
        advice = ""
        if named:
            columns = {
                name: [r[i] for r in some if len(r) > i] for i, name in enumerate(header) if i != named[0] and name
            }
            han = {name: sum(map(bool, map(_HAN.search, cells))) for name, cells in columns.items()}
            caption = max(han, key=han.__getitem__) if any(han.values()) else "COLUMN"
            advice = f"; set columns: {{image: {header[named[0]]}, caption: {caption}}}"
        raise ValueError(no_column(header, missing) + advice)

    def _captions_of(self, row: Any, encoding: str) -> tuple[str, dict[TextKind, list[Any]]]:
        """(picture, its cells by kind of text) of a row. Raises whatever is wrong with it."""
        if isinstance(row, Exception):
            raise row
        if isinstance(row, str):
            _encodable(row, encoding)
            row = json.loads(row.removeprefix("\ufeff"))
        elif isinstance(row, dict):
            _encodable("".join(cell for cell in row.values() if isinstance(cell, str)), encoding)
        name = row.get(self.columns.image) if isinstance(row, dict) else None
        if not isinstance(name, str):
            has = f"; it has {', '.join(map(str, row))}"[:200] if isinstance(row, dict) else ""
            raise ValueError(f"each row needs the column `{self.columns.image}`{has}")
        cells: dict[TextKind, list[Any]] = {}
        for kind, columns in self.columns.by_kind().items():
            for value in (row[column] for column in columns if column in row):
                cells.setdefault(kind, []).extend(value if isinstance(value, list) else [value])
        return name, cells


class Names:
    """The pictures of a folder by what a table may call them; a file whose suffix does not tell has to be named whole
    where others have its name."""

    def __init__(self, images: Sequence[str], untold: Collection[str] = ()) -> None:
        self._paths, self._untold = set(images), untold

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Name, and name without suffix -> the one picture that has it, else "". Made for a table without paths."""
        by_name: dict[str, str] = {}
        told = dict[str, str]()
        for image in sorted(self._paths):
            path, names = PurePosixPath(image), by_name if image in self._untold else told
            for name in {_folded(str(name)) for name in (path, path.name, path.stem, path.with_suffix(""))}:
                names[name] = "" if name in names else image
        return {**by_name, **told}

    def __contains__(self, image: str) -> bool:
        return image in self._paths

    def find(self, named: str) -> str:
        """The picture that a row names, by path or by a name that only one has; else the path as it is named."""
        if named in self._paths:
            return named
        path = str(PurePosixPath(named.strip().replace("\\", "/")))
        if path in self._paths:
            return path
        *_, last = path.split("/")
        return self._by_name.get(_folded(path)) or self._by_name.get(_folded(last)) or path


def _folded(name: str) -> str:
    """A name as Windows and macOS compare it: in any case, composed or not."""
    return normalize("NFC", name).casefold()


def _encodable(row: str, encoding: str) -> None:
    """Raises ValueError for a row with bytes that are not of the file's encoding."""
    try:
        row.encode()
    except UnicodeEncodeError:
        raise ValueError(f"contains bytes that are not {encoding}; if the file has another encoding, set it") from None


def texts_of(value: Any) -> list[Text]:
    """Texts of a JSON object: `{"texts": [{"kind", "text"}]}` or `{KIND: TEXT or [TEXT, ...]}`.

    Raises ValueError unless it is a JSON object; keys that are not kinds of text are ignored.
    """
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    pairs: list[tuple[Any, Any]] = []
    originals: dict[Any, Any] = {}  # text -> what it was before a build rewrote it; our own shards have it
    if isinstance(value.get("texts"), list):
        entries = [t for t in value["texts"] if isinstance(t, dict)]
        pairs = [(t.get("kind"), t.get("text")) for t in entries]
        originals = {t["text"]: t["original"] for t in entries if isinstance(t.get("text"), str) and "original" in t}
    else:
        for kind in TEXT_KINDS:
            texts = value.get(kind)
            pairs += [(kind, text) for text in (texts if isinstance(texts, list) else [texts])]
    return [
        Text(k, cleaned, encodable(original) if isinstance(original := originals.get(t, ""), str) else "")
        for k, t in pairs
        if k in TEXT_KINDS and isinstance(t, str) and (cleaned := clean(t))
    ]


_HAN = re.compile("[\u4e00-\u9fff]")
