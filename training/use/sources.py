"""Inputs that can be embedded: numbered rows of pictures and texts.

    PictureSource    picture files
    RowSource        a file of released rows (training/data/released_rows.py)
    TextSource       a file of texts, one per line
    MixedSource      picture files and a file of texts, which do not belong together
    DatasetSource    manifests and plain tars (training/use/dataset_source.py)

Rows are read in the processes that decode (`entries`); metadata that needs no picture is asked for where the part is
put together (`table`). The stamp of a row is a hash of what it is made of, by which an index knows what it has.

Limits: of a file of rows or texts eight bytes per line are in memory, of picture files their names. A picture file has
changed where its size or its time of change has.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.released_rows import BrokenRow, ReleasedRow, parse_row
from training.errors import InputError
from training.evaluation.file_regions import RegionTable
from training.weights.load import Boxes

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Suffixes of the files of a folder that are pictures; what is in them is seen when they are read."""

Stamps = npt.NDArray[np.uint64]
"""[n] a hash of each row."""

MOST_IDS = 32
"""Hex digits of an id that is a digest."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The content of a row.

    name: of the row in messages. content: of the picture's file, None where the row lacks one. boxes: that came with
    it, None where they are to be made. sides: width and height that it must have, if they are known. problem: why
    nothing of the row can be embedded.
    """

    name: str
    content: bytes | None = None
    boxes: Boxes | None = None
    text: str | None = None
    sides: tuple[int, int] | None = None
    problem: str = ""


def digest(*parts: object) -> str:
    """sha256 in hex of some words and numbers."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def hash64(*parts: object) -> int:
    """64 bits of a hash of bytes, words and numbers."""
    raw = (part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass") for part in parts)
    return int.from_bytes(hashlib.blake2b(b"\n".join(raw), digest_size=8).digest(), "big")


def part_rows(total: int) -> int:
    """Rows of a part: large for searching, small so that a killed command repeats little."""
    return min(10_000, max(1_000, total // 20))


class Source(ABC):
    """Rows to embed. `name` describes them and stays the same when rows are added; `origins` lists the inputs."""

    name: str
    origins: tuple[str, ...]
    has_images: bool
    has_texts: bool

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def entries(self, rows: Sequence[int]) -> list[Entry]:
        """Contents of some rows, in their order. Raises ContractError for a fault that stops the work."""

    @abstractmethod
    def table(self, rows: Sequence[int]) -> pa.Table:
        """Columns of data_specs.search.rows.ROWS, in the rows' order; `id` is "" where `entries` finds a problem."""

    def sizes(self, rows: Sequence[int]) -> npt.NDArray[np.int64]:
        """A measure of the length of each row's text: rows of similar length make a batch."""
        return np.zeros(len(rows), np.int64)

    def boxes(self, rows: Sequence[int]) -> list[bytes]:
        """The boxes that come with some rows, as float32; b"" for none."""
        return [b""] * len(rows)

    def stamps(self, rows: Sequence[int]) -> Stamps:
        """[n] hashes of the embedded content of some rows: id, sha256 of the picture, text and boxes."""
        table = self.table(rows)
        columns = [table[name].to_pylist() for name in ("id", "sha256", "caption") if name in table.column_names]
        return np.array([hash64(*row) for row in zip(*columns, self.boxes(rows), strict=True)], np.uint64)

    def runs(self, rows: Sequence[int], size: int) -> list[Sequence[int]]:
        """Some rows in parts of at most `size`."""
        return [rows[low : low + size] for low in range(0, len(rows), size)]


class PictureSource(Source):
    """Picture files, each once, folders in the order of their names. regions: their boxes (use/file_regions.py).

    whole: ids are whole paths, so that a file is the same row however its folder is spelt; else names as given.
    """

    has_images, has_texts = True, False

    def __init__(self, places: Sequence[str], regions: Path | None = None, whole: bool = False) -> None:
        files = [file for place in places for file in _pictures(place)]
        named: dict[str, str] = {}
        for name, file in zip(real_paths(files) if whole else files, files, strict=True):
            named.setdefault(name, file)
        self.files, self._ids = list(named.values()), list(named)
        folders = [place for place in places if Path(place).is_dir()]
        self.name = ", ".join(Path(place).resolve().name for place in folders) or "pictures"
        self.origins = tuple(f"pictures:{digest(Path(place).resolve())}" for place in folders) or ("pictures",)
        self._regions = None if regions is None else RegionTable.open(regions)

    def __len__(self) -> int:
        return len(self.files)

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        return [_picture(self.files[row], self._boxes_of) for row in rows]

    def _boxes_of(self, content: bytes, name: str) -> Boxes | None:
        known = self._regions is not None and self._regions.has(content)
        return self._regions.boxes_of(content, name) if self._regions is not None and known else None

    def table(self, rows: Sequence[int]) -> pa.Table:
        ids, files = [self._ids[row] for row in rows], [Path(self.files[row]) for row in rows]
        return pa.table({"id": pa.array(ids, pa.string()), "where": [_location(file) for file in files]})

    def boxes(self, rows: Sequence[int]) -> list[bytes]:
        if self._regions is None:
            return super().boxes(rows)
        found = (_picture(self.files[row], self._boxes_of).boxes for row in rows)
        return [b"" if boxes is None else np.asarray(boxes, np.float32).tobytes() for boxes in found]

    def stamps(self, rows: Sequence[int]) -> Stamps:
        named = ((_file_version(self.files[row]), self._ids[row]) for row in rows)
        hashes = [hash64(*own, boxes) for own, boxes in zip(named, self.boxes(rows), strict=True)]
        return np.array(hashes, np.uint64)


class MixedSource(Source):
    """Rows of several sources that have pictures or texts, one source after the other; each row has one of the two."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self.has_images, self.has_texts = (any(getattr(own, f"has_{m}s") for own in sources) for m in ("image", "text"))
        self.name = ", ".join(own.name for own in sources)
        self.origins = tuple(origin for own in sources for origin in own.origins)
        self._firsts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def source_of(self, rows: Sequence[int]) -> tuple[Source, Sequence[int]]:
        """The source that some rows belong to, all to one, and their numbers in it."""
        at = int(np.searchsorted(self._firsts, rows[0], side="right")) - 1
        first = int(self._firsts[at])
        return self.sources[at], [row - first for row in rows]

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        source, own = self.source_of(rows)
        return source.entries(own)

    def table(self, rows: Sequence[int]) -> pa.Table:
        source, own = self.source_of(rows)
        return source.table(own)

    def stamps(self, rows: Sequence[int]) -> Stamps:
        found = [source.stamps(own) for source, own in map(self.source_of, self.runs(rows, len(self)))]
        return np.concatenate([np.empty(0, np.uint64), *found])

    def runs(self, rows: Sequence[int], size: int) -> list[Sequence[int]]:
        """Some ascending rows in parts of at most `size`, each of one source."""
        cuts = [0, *np.searchsorted(rows, self._firsts[1:]).tolist()]
        return [run for low, high in pairwise(cuts) for run in super(MixedSource, self).runs(rows[low:high], size)]


class _Lines(Source):
    """A file of lines: where each begins, so that any can be read."""

    has_texts = True

    def __init__(self, file: Path) -> None:
        self._file = file
        self.name = file.name
        self.origins = (f"{type(self).__name__}:{digest(file.resolve())}",)
        self._starts = _line_starts(file)
        self._rows = np.arange(len(self._starts) - 1)
        """Numbers of the lines that are rows."""

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, rows: Sequence[int]) -> list[bytes]:
        """The lines of some rows, without their ends."""
        lines = []
        with self._file.open("rb") as file:
            for number in self._rows[np.asarray(rows, np.int64)].tolist():
                start, stop = int(self._starts[number]), int(self._starts[number + 1])
                lines.append(os.pread(file.fileno(), stop - start, start).removesuffix(b"\n"))
        return lines

    def number(self, row: int) -> int:
        """The line of a row, counted from 1."""
        return int(self._rows[row]) + 1


class TextSource(_Lines):
    """A file of texts, one per line. Words after a tab are a note on the text and are not embedded.

    distinct: a line that stands there before is passed over, and ids are digests of the lines, so that they stay when
    others come in between; otherwise every line is a row, and ids are the lines' numbers.
    """

    has_images = False

    def __init__(self, file: Path, distinct: bool = True) -> None:
        super().__init__(file)
        self._distinct = distinct
        if distinct and len(self):
            hashes = np.fromiter((hash64(line) for line in _read_lines(file)), np.uint64, len(self._rows))
            _, first = np.unique(hashes, return_index=True)
            self._rows = np.sort(first)

    @property
    def repeated(self) -> int:
        """Number of repeated lines, which are skipped."""
        return len(self._starts) - 1 - len(self._rows)

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        entries = []
        for row, line in zip(rows, self._read(rows), strict=True):
            name = f"{self._file}:line {self.number(row)}"
            text, _ = _split_line(line)
            problem = "not UTF-8" if text is None else "" if text.strip() else "empty line"
            entries.append(Entry(name, text=None if problem else text, problem=problem))
        return entries

    def table(self, rows: Sequence[int]) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [] for name in ("id", "caption", "texts", "text_leader")}
        for row, line in zip(rows, self._read(rows), strict=True):
            text, more = _split_line(line)
            named = digest(line.decode("utf-8", "replace"))[:MOST_IDS] if self._distinct else str(self.number(row))
            columns["id"].append(named if text is not None and text.strip() else "")
            columns["caption"].append(text or "")
            columns["texts"].append(_texts([("text", text or ""), *([("title", more)] if more else [])]))
            columns["text_leader"].append(digest(text or ""))
        return pa.table(columns)

    def stamps(self, rows: Sequence[int]) -> Stamps:
        return np.array([hash64(line) for line in self._read(rows)], np.uint64)

    def sizes(self, rows: Sequence[int]) -> npt.NDArray[np.int64]:
        lines = self._rows[np.asarray(rows, np.int64)]
        return self._starts[lines + 1] - self._starts[lines]


class RowSource(_Lines):
    """A file of released rows, with the text of one kind. distinct: a repeated id gets a number."""

    has_images = True

    def __init__(self, file: Path, text_kind: str, distinct: bool = True) -> None:
        super().__init__(file)
        self._kind = text_kind
        lines = [number for number, line in enumerate(_read_lines(file)) if line.strip()]
        self._rows = np.array(lines, np.int64)
        ids = (_id64(line) for line in _read_lines(file) if line.strip())
        hashes = np.fromiter(ids, np.uint64, len(self._rows))
        first = np.zeros(len(hashes), np.bool_)
        first[np.unique(hashes, return_index=True)[1]] = True
        self._repeats = ~first & distinct

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        return [self._entry(self._parse(line, row)) for row, line in zip(rows, self._read(rows), strict=True)]

    def table(self, rows: Sequence[int]) -> pa.Table:
        names = ("id", "caption", "texts", "text_leader", "where")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, line in zip(rows, self._read(rows), strict=True):
            row = self._parse(line, number)
            text = None if isinstance(row, BrokenRow) else row.text(self._kind)
            if isinstance(row, BrokenRow) or text is None:
                values: tuple[Any, ...] = ("", "", [], "", None)
            else:
                named = f"{row.id}#{self.number(number)}" if self._repeats[number] else row.id
                values = (named, text, _texts(row.texts.items()), digest(text), _location(row.image))
            for name, value in zip(names, values, strict=True):
                columns[name].append(value)
        return pa.table(columns)

    def stamps(self, rows: Sequence[int]) -> Stamps:
        ids, lines = self.table(rows)["id"].to_pylist(), self._read(rows)
        parsed = [self._parse(line, row) for row, line in zip(rows, lines, strict=True)]
        files = [_file_version(str(row.image)) if isinstance(row, ReleasedRow) else row.problem for row in parsed]
        hashes = [hash64(self._kind, *row) for row in zip(ids, lines, files, strict=True)]
        return np.array(hashes, np.uint64)

    def _parse(self, line: bytes, row: int) -> ReleasedRow | BrokenRow:
        return parse_row(line, f"{self._file}:line {self.number(row)}", self._file.parent)

    def _entry(self, row: ReleasedRow | BrokenRow) -> Entry:
        if isinstance(row, BrokenRow):
            return Entry(row.where, problem=row.problem)
        name, text = f"{row.where}: {row.id}", row.text(self._kind)
        if text is None:
            return Entry(name, problem=f"no text of kind {self._kind}")
        opened = _picture(str(row.image), lambda content, name: None)
        boxes = row.boxes or None  # a row without boxes is as good as a picture file
        return Entry(name, opened.content, boxes, text, problem=opened.problem)


# --- files


def _pictures(place: str) -> Iterator[str]:
    """The picture at a path, or all in a folder and below it, by name. Raises InputError for a folder without any."""
    if not Path(place).is_dir():
        yield place
        return
    any_found = False
    for folder, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(PICTURES) and not name.startswith("."):
                any_found = True
                yield f"{folder.rstrip('/')}/{name}"
    if not any_found:
        raise InputError(place, f"contains no pictures ({', '.join(PICTURES)})")


def _picture(file: str, boxes: Any) -> Entry:
    """A picture file as an entry. A stranger's row may name a pipe or a device, and reading it would never end."""
    try:
        if not stat.S_ISREG(Path(file).stat().st_mode):
            return Entry(file, problem="not a regular file")
        content = Path(file).read_bytes()
        return Entry(file, content, boxes(content, file))
    except (OSError, ValueError) as e:
        return Entry(file, problem=getattr(e, "strerror", None) or str(e))


def _location(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
    except (OSError, ValueError):
        size = 0
    return {"path": str(file.absolute()), "offset": 0, "size": size, "sha256": ""}


def real_paths(files: Iterable[str]) -> Iterator[str]:
    """Absolute paths of files, with links to their folders resolved."""
    real_path = functools.cache(_real_path)
    for folder, name in map(os.path.split, files):
        yield f"{real_path(folder).rstrip('/')}/{name}"


def _real_path(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # a zero byte in it: the reader of the file says so
        return folder


def _file_version(file: str) -> str:
    try:
        about = Path(file).stat()
    except (OSError, ValueError):
        return "missing"
    return f"{about.st_size} {about.st_mtime_ns}"


def _texts(pairs: Any) -> list[dict[str, str]]:
    return [{"kind": kind, "text": text} for kind, text in pairs]


# --- lines


def _read_lines(file: Path) -> Iterator[bytes]:
    """Lines of a file without their ends, and the first without a byte-order mark."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            yield (line if number else line.removeprefix(b"\xef\xbb\xbf")).removesuffix(b"\n")


def _line_starts(file: Path) -> npt.NDArray[np.int64]:
    """Begin of each line, and the end of the last one. Raises InputError for a file without a line, OSError."""
    starts, at = [0], 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if not number and line.startswith(b"\xef\xbb\xbf"):
                starts[0] = 3
            at += len(line)
            starts.append(at)
    if len(starts) == 1:
        raise InputError(str(file), "contains no lines")
    return np.array(starts, np.int64)


def _split_line(line: bytes) -> tuple[str | None, str]:
    """The text of a line, None where it is not UTF-8, and what follows its first tab."""
    try:
        text, _, more = line.decode("utf-8").removesuffix("\r").partition("\t")
    except UnicodeDecodeError:
        return None, ""
    return text, more.strip()


def _id64(line: bytes) -> int:
    """64 bits of a released row's id, or of the line if the id is missing."""
    try:
        named = json.loads(line)["image_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return hash64(line)
    return hash64(named)
