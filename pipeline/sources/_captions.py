"""A table of captions for a folder of pictures: one row a picture, in CSV, TSV or JSON lines.

A row names its picture by its path in the folder, or by its name, with or without suffix, where only one picture has
it. Each row that cannot be read is a Decision; each line of the file is accounted for (`pipeline.rows.account`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, Field

from data_specs.shard import TEXT_KINDS, Text, TextKind
from pipeline.files.inputs import Lines
from pipeline.rows.account import Named, Units
from pipeline.rows.decisions import Decision, Lost
from pipeline.rows.records import encodable
from pipeline.sources import MAX_UNDECODED, Decoding
from pipeline.sources._rows import Row, json_rows, table_rows
from pipeline.sources._text_files import PACKED, Encoding, RowsFile, head_of, no_column, open_rows
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
        return self._specified() or {kind: (kind,) for kind in TEXT_KINDS}

    def required(self) -> list[str]:
        """Columns that the table must have: those that the spec names."""
        return [self.image, *(name for names in self._specified().values() for name in names)]

    def _specified(self) -> dict[TextKind, tuple[str, ...]]:
        columns = {kind: getattr(self, kind) for kind in TEXT_KINDS}
        return {kind: (own,) if isinstance(own, str) else tuple(own) for kind, own in columns.items() if own}


@dataclass(frozen=True)
class CaptionsFile:
    """A table of captions. name: its path in the folder. url: its path or URL."""

    name: str
    url: str
    columns: CaptionColumns
    encoding: Encoding

    def texts(
        self,
        pictures: PictureNames,
        is_wanted: Callable[[str], bool],
        lines: Units,
        unreadable: Callable[[str, Exception], Decision],
    ) -> tuple[dict[str, list[Text]], list[Decision]]:
        """Texts by picture, and a Decision with its weight for each row that cannot be read, by `unreadable` of its
        place.

        is_wanted: of which pictures, and names of none, the texts are kept. lines: accounts for the lines of the file.
        Raises ValueError for a file of which no row can be read, and what fsspec raises.
        """
        texts: dict[str, list[Text]] = {}
        broken: list[Decision] = []
        any_is_sound = False
        with open_rows(self.url, self.encoding) as (f, encoding):
            for number, row, line_count, in_cells, size in self._rows(f, encoding, pictures):
                lines.met += line_count
                if isinstance(row, Named):
                    lines.named[row] += line_count
                    continue
                place = f"{self.name}, row {number}"
                if in_cells < line_count:
                    lines.miss(f"{place}: {line_count - in_cells:,} lines in one cell")
                try:
                    image, cells = self._captions_of(row)
                    name, any_is_sound = pictures.find(image), True
                    if is_wanted(name):
                        texts.setdefault(name, []).extend(texts_of(cells))
                    lines.candidates += in_cells * (name in pictures)
                    lines.decisions += in_cells * (name not in pictures)
                except Exception as e:
                    broken.append(replace(unreadable(place, e), lost=Lost(size(), lines=1)))
                    lines.decisions += in_cells
                    if not any_is_sound and len(broken) == MAX_UNDECODED:
                        break
        if broken and not any_is_sound:
            fault = f"none of the first {len(broken)} rows can be read: {broken[0].evidence}"
            raise ValueError(f"not a table of captions ({fault})")
        return texts, broken

    def _rows(self, f: RowsFile, encoding: str, pictures: PictureNames) -> Iterator[Row]:
        """Rows as the file's suffix says. Raises ValueError for a table without the columns that are named, and for a
        file of another encoding."""
        name = PACKED.sub("", self.name.lower())
        if name.endswith((".jsonl", ".ndjson", ".json")):
            return json_rows(f, Decoding(encoding))
        head = head_of(Lines(f), self.columns.required(), "\t" if name.endswith(".tsv") else ",")
        if missing := [name for name in self.columns.required() if name not in head.columns]:
            raise ValueError(f"{no_column(head.columns, missing[0])}; set columns: {{image: ..., caption: ...}}")
        image = head.columns.index(self.columns.image)
        return table_rows(
            f, Decoding(encoding), head, lambda cells: pictures.find(cells[image]) in pictures, short=True
        )

    def _captions_of(self, row: Any) -> tuple[str, dict[TextKind, list[Any]]]:
        """(picture, its cells by kind of text) of a row. Raises whatever is wrong with it."""
        if not isinstance(row, dict):
            raise row if isinstance(row, Exception) else ValueError(row)
        name = row.get(self.columns.image)
        if not isinstance(name, str):
            has = f"; it has {', '.join(map(str, row))}"[:200]
            raise ValueError(f"each row needs the column `{self.columns.image}`{has}")
        cells: dict[TextKind, list[Any]] = {}
        for kind, columns in self.columns.by_kind().items():
            for value in (row[column] for column in columns if column in row):
                cells.setdefault(kind, []).extend(value if isinstance(value, list) else [value])
        return name, cells


class PictureNames:
    """The pictures of a folder by what a table may call them; a file whose suffix does not tell has to be named whole
    where others have its name."""

    def __init__(self, images: Sequence[str], uncertain: Collection[str] = ()) -> None:
        self._paths, self._uncertain = set(images), uncertain

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Name, and name without suffix -> the one picture that has it, else "". Made for a table without paths."""
        by_name: dict[str, str] = {}
        certain = dict[str, str]()
        for image in sorted(self._paths):
            path, names = PurePosixPath(image), by_name if image in self._uncertain else certain
            for name in {_folded(str(name)) for name in (path, path.name, path.stem, path.with_suffix(""))}:
                names[name] = "" if name in names else image
        return {**by_name, **certain}

    def __contains__(self, image: str) -> bool:
        return image in self._paths

    def find(self, name: str) -> str:
        """The picture that a row names, by path or by a name that only one has; else the path as the row has it."""
        if name in self._paths:
            return name
        path = str(PurePosixPath(name.strip().replace("\\", "/")))
        if path in self._paths:
            return path
        *_, last = path.split("/")
        return self._by_name.get(_folded(path)) or self._by_name.get(_folded(last)) or path


def _folded(name: str) -> str:
    """A name as Windows and macOS compare it: in any case, composed or not."""
    return normalize("NFC", name).casefold()


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
