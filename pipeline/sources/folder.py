"""folder: a folder of pictures (with subfolders), with texts in files next to them or in one table.

    X.jpg  X.txt       the whole text file is one text of kind `text_kind`; X.caption is the same
    X.jpg  X.json      {"caption": TEXT, "alt": [TEXT, ...]} by kinds of text, or {"texts": [{"kind": K, "text": T}]}
    captions: FILE     one table for all, CSV, TSV or JSON lines: a column that names the picture and one for each kind
                       of text, called `file`, `caption`, ... or as `columns` says

Encoding and separator of columns are detected (`pipeline.sources._text_files`). A row names its picture by
its path in the folder, or by its name, with or without suffix, where only one picture has it.

A text file may also be called X.jpg.txt or X.TXT. A file is a picture by its suffix, else by its first bytes
(`pipeline.pictures.formats`), which the part reads that the file belongs to.

The pictures are read from the folder itself and not fetched. Their image_url is the one that X.json states
(`pipeline.sources._provenance`; img2dataset's files have it), else `folder:///NAME/PATH`, by which they are read and
which is the same wherever the folder lies. Any path that fsspec opens will do.

Limits: each process lists the whole folder, and keeps the list until `token` is called again. Links that lead out of
the folder are followed; a folder behind several of them is read once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple
from unicodedata import normalize
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field

from data_specs.shard import TEXT_KINDS, Text, TextKind, canonical_json
from data_specs.storage.object_store import StorageError
from pipeline.errors import SourceError
from pipeline.files.inputs import (
    MAX_LINE,
    Lines,
    Listing,
    content,
    faults,
    files_below,
    first_bytes,
    reason,
    writable,
)
from pipeline.pictures.formats import HEAD, SUFFIXES, TEXT_SUFFIXES, is_picture, readable_formats
from pipeline.records import Candidate, Decision, DropReason, drop, encodable
from pipeline.sources import MAX_UNDECODED, TableSource, local_path
from pipeline.sources._look import Budget, Count, Exactness, Look, Sample
from pipeline.sources._provenance import Fields
from pipeline.sources._text_files import (
    AUTO,
    PACKED,
    Encoding,
    columns_of,
    head_of,
    no_column,
    opened,
    rows_of,
    text_of,
)
from pipeline.texts.cleaning import clean

HEIF_SUFFIXES = (".heic", ".heif")


class _Listed(NamedTuple):
    """All files below a folder; sorted those that may be pictures, and those of them whose suffix does not tell."""

    files: Listing
    images: list[str]
    untold: frozenset[str]


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


class FolderOfImages(TableSource):
    """Pictures with texts from files beside them or from one captions file."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "pictures"}]})

    VERSION: ClassVar[int] = 5

    path: str = Field(description="path or URL of the folder; includes pictures in subfolders")
    captions: str = Field("", description="table of texts, relative to the folder: CSV, TSV or JSON lines")
    columns: CaptionColumns = Field(CaptionColumns(), description="names of the columns in the captions file")
    encoding: Encoding = Field(AUTO, description="encoding of the text files and the captions file; auto: detected")
    text_kind: TextKind = Field("caption", description="kind of the text in X.txt")
    fields: Fields = Field(Fields(), description="fields of X.json that tell where the picture came from")
    images_per_part: int = Field(10_000, gt=0, description="pictures per partition of the extract stage")

    def token(self) -> Any:
        """Digest of the paths, sizes and times of all pictures and text files. Raises SourceError.

        A folder with HEIF pictures has another one once they can be read, so that the same command reads them then.
        """
        _list.cache_clear()  # a token is about the folder as it is now
        _has_picture.cache_clear()
        named: list[Any] = [(writable(name), version) for name, version in sorted(self._listing().items())]
        if any(name.lower().endswith(HEIF_SUFFIXES) for name in self._listing()):
            named.append("heif" in readable_formats())
        return hashlib.sha256(canonical_json(named)).hexdigest()

    def listing(self) -> list[str]:
        return self._images()

    def parts(self) -> int:
        return max(1, -(-len(self._images()) // self.images_per_part))

    def read(self, part: int) -> Iterator[Candidate | Decision]:
        """Candidates of one part by path; a Decision for a picture without text or with a broken text file.

        The first part also reports the rows of the captions file that cannot be read or name no picture of the folder.
        """
        all_images = self._images()
        images = all_images[part * self.images_per_part : (part + 1) * self.images_per_part]
        table, broken = self._captions(all_images, images, part == 0) if self.captions else ({}, [])
        if part == 0:
            yield from broken
            for name in sorted(set(table) - set(all_images)):
                yield from self.entries(name, -1, partial(self._missing, name, table[name]))
        for row, image in enumerate(images, part * self.images_per_part):
            if self._is_picture(image):
                yield from self.entries(image, row, partial(self._picture, image, row, table.get(image, [])))
            elif image in table:
                yield from self.entries(image, -1, partial(self._missing, image, table[image]))

    def root(self) -> str:
        return local_path(self.resolve(self.path))

    def address_of(self, file: str) -> str:
        folder, path = self.root(), PurePosixPath(file)
        if not folder or not path.is_relative_to(folder) or path.suffix.lower() in TEXT_SUFFIXES:
            return ""
        return self._address(str(path.relative_to(folder)))

    def look(self, budget: Budget) -> Look:
        """Its pictures, the files with texts beside them, and how many of a sample have a text."""
        listing, images, untold = self._listed()
        suffixes = Counter(PurePosixPath(name).suffix.lower() for name in listing)
        texts = [Count(f"{suffix} files", suffixes[suffix]) for suffix in TEXT_SUFFIXES if suffixes[suffix]]
        asked = sorted(untold)[: budget.rows]
        told = list(filter(self._is_picture, asked))
        size = sum(listing[image][0] for image in (*told, *(image for image in images if image not in untold)))
        exactness: Exactness = "" if len(asked) == len(untold) else "about"
        others = len(told) * len(untold) // max(1, len(asked))
        pictures = Count("pictures", len(images) - len(untold) + others, exactness)
        sample = Sample(budget)
        sample.take(self.read(0))
        whole = sample.rows >= pictures.number  # rows of the captions file that name no picture are among them
        candidates = Count("candidates", sample.candidates) if whole else sample.estimated(pictures)
        described = sample.described()
        described["facts"] += (("with a text", f"{sample.candidates:,} of the sampled pictures"),)
        return Look(counts=(pictures, *texts), bytes=size, candidates=candidates, **described)

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of a picture of this folder; None for any other address, and for a picture that no longer exists.

        Raises ValueError for one too large to be read whole.
        """
        prefix = f"folder:///{self.name}/"
        if not image_url.startswith(prefix):
            return None
        image = unquote(image_url[len(prefix) :], errors="surrogateescape")
        if image not in self._listing():
            return None
        try:
            return content(self.resolve(self.path), image)
        except StorageError as e:  # with a failing store it is unknown whether the picture is gone
            raise SourceError(self._at(image), f"source {self.name}: {e.strerror}") from None
        except OSError:
            return None

    def _picture(self, image: str, row: int, texts: list[Text]) -> Iterator[Candidate | Decision]:
        """The candidate of one picture, or a Decision. texts: those of the captions file."""
        fault, value = "", None
        try:
            beside, value = self._beside(image)
            texts = texts + beside
        except ValueError as e:
            fault = str(e)
        distinct = tuple({t.text: t for t in reversed(texts) if t.text}.values())[
            ::-1
        ]  # of equal texts the first stays
        candidate = self._candidate(image, distinct, row)
        url, page_url, provenance = self.fields.read(value, candidate.image_url)
        candidate = replace(candidate, image_url=url, page_url=page_url, provenance=provenance)
        if distinct:
            yield candidate
        else:
            yield drop(candidate, "extract", DropReason.BAD_ROW if fault else DropReason.NO_TEXT, fault or image)

    def _candidate(self, image: str, texts: tuple[Text, ...], row: int) -> Candidate:
        return Candidate(self.name, self.source_kind, writable(image), "", self._address(image), texts, row)

    def _address(self, image: str) -> str:
        return f"folder:///{self.name}/{quote(image, errors='surrogateescape')}"

    def _missing(self, name: str, texts: list[Text]) -> Iterator[Decision]:
        """The Decision about a row of the captions file whose picture is not in the folder."""
        evidence = f"{self.captions} lists {name}, which is not a picture in the folder"
        yield drop(self._candidate(name, tuple(texts), -1), "extract", DropReason.BAD_ROW, evidence)

    def _at(self, name: str) -> str:
        return f"{self.resolve(self.path).rstrip('/')}/{name}"

    def _listing(self) -> Listing:
        """All files of the folder. Raises SourceError if none of them is a picture."""
        return self._listed().files

    def _images(self) -> list[str]:
        """Files that may be pictures, sorted: parts are ranges of them."""
        return self._listed().images

    def _listed(self) -> _Listed:
        listed = _list(self.resolve(self.path))
        if len(listed.untold) == len(listed.images) and not _has_picture(self):
            raise SourceError(self.resolve(self.path), f"source {self.name}: no pictures ({', '.join(SUFFIXES)})")
        return listed

    def _is_picture(self, image: str) -> bool:
        """True if a file that may be a picture is one. Raises SourceError."""
        return is_picture(image, partial(self._first_bytes, image))

    def _first_bytes(self, name: str) -> bytes:
        try:
            return first_bytes(self.resolve(self.path), name, HEAD)
        except StorageError as e:
            raise SourceError(self._at(name), f"source {self.name}: {e.strerror}") from None

    def _beside(self, image: str) -> tuple[list[Text], Any]:
        """(texts of X.txt, X.caption and X.json, what X.json holds; None without one). Raises ValueError that names
        the file."""
        texts: list[Text] = []
        value = None
        for name in self._names_beside(image):
            suffix = name[name.rindex(".") :].lower()
            try:
                written = text_of(content(self.resolve(self.path), name, MAX_LINE), self.encoding)
                if suffix == ".json":
                    value = json.loads(written)
                    texts += texts_of(value)
                else:
                    texts.append(Text(self.text_kind, clean(written)))
            except StorageError as e:
                raise SourceError(self._at(name), f"source {self.name}: {e.strerror}") from None
            except (OSError, ValueError, RecursionError) as e:
                raise ValueError(f"{name}: cannot be read ({type(e).__name__}: {e})"[:300]) from None
        return texts, value

    def _names_beside(self, image: str) -> list[str]:
        """The text files of a picture X.jpg: X.txt, X.jpg.txt and the like, in small or capital letters."""
        listing, stem = self._listing(), str(PurePosixPath(image).with_suffix(""))
        stems = dict.fromkeys((stem, image))
        return [name for suffix in _BESIDE for stem in stems if (name := stem + suffix) in listing]

    def _captions(
        self, images: Sequence[str], own: Sequence[str], others: bool
    ) -> tuple[dict[str, list[Text]], list[Decision]]:
        """Texts of the captions file by picture, and a Decision for each row of it that cannot be read.

        Of all images only `own` are taken and, with `others`, other names: each part of a large
        folder reads the whole table. Raises SourceError that names the file if it cannot be read, or none of its rows.
        """
        file, pictures, wanted = self._at(self.captions), _Names(images, self._listed().untold), set(own)
        texts: dict[str, list[Text]] = {}
        broken: list[Decision] = []
        any_is_sound = False
        try:
            with opened(file, self.encoding) as (f, encoding):
                for number, row in enumerate(self._caption_rows(f, pictures), 1):
                    try:
                        for named, cells in self._captions_of(row, encoding):
                            name, any_is_sound = pictures.find(named), True
                            if name in wanted or (others and name not in pictures):
                                texts.setdefault(name, []).extend(texts_of(cells))
                    except Exception as e:
                        broken.append(self.unreadable(f"{self.captions}, row {number}", -1, e))
                        if not any_is_sound and len(broken) == MAX_UNDECODED:
                            break
        except faults(ValueError) as e:
            fault = str(e) if isinstance(e, ValueError) else f"cannot be read ({reason(e)})"
            raise SourceError(file, f"source {self.name}: captions file: {fault}"[:600]) from None
        if broken and not any_is_sound:
            fault = f"none of the first {len(broken)} rows can be read: {broken[0].evidence}"
            raise SourceError(file, f"source {self.name}: captions file: not a table of captions ({fault})"[:600])
        return texts, broken

    def _caption_rows(self, f: Any, pictures: _Names) -> Iterator[Any]:
        """Rows of a captions file as its suffix says: lines of JSON as text, rows of a table by column.

        What csv raises on a row is in its place. Raises ValueError for a table without the columns that are named.
        """
        name = PACKED.sub("", self.captions.lower())
        if name.endswith((".jsonl", ".ndjson", ".json")):
            yield from (line for _, line in Lines(f).numbered())
            return
        usual = "\t" if name.endswith(".tsv") else ","
        separator, header, lines = head_of(Lines(f), self.columns.required(), usual)
        self._check_columns(header, (columns_of(line, separator) for line in islice(lines, 5)), pictures)
        image = header.index(self.columns.image)

        def is_row(cells: list[str]) -> bool:
            return pictures.find(cells[image]) in pictures

        for cells in rows_of(lines, separator, len(header), is_row):
            if isinstance(cells, Exception):
                yield cells
            elif any(cells[len(header) :]):  # a text with the separator in it, and no quotes around it
                yield ValueError(f"{len(cells)} fields, but {len(header)} in the header")
            elif cells:
                yield dict(zip(header, cells, strict=False))

    def _check_columns(self, header: Sequence[str], rows: Iterable[list[str]], pictures: _Names) -> None:
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

    def _captions_of(self, row: Any, encoding: str) -> Iterator[tuple[str, dict[TextKind, list[Any]]]]:
        """(picture, its cells by kind of text) of a row of a captions file, none for a blank line. Raises whatever is
        wrong with it."""
        if isinstance(row, Exception):
            raise row
        if isinstance(row, str):
            if not row.strip("\ufeff\r\n\t "):
                return
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
        yield name, cells


class _Names:
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


_BESIDE = tuple(spelled for suffix in TEXT_SUFFIXES for spelled in (suffix, suffix.upper()))

_HAN = re.compile("[\u4e00-\u9fff]")


@lru_cache(maxsize=8)
def _list(folder: str) -> _Listed:
    """Returns all files below a folder. Raises SourceError for a missing folder."""
    listing, images, untold = files_below(folder), list[str](), set[str]()
    for name in listing:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in TEXT_SUFFIXES:
            continue
        images.append(name)
        if suffix not in SUFFIXES:
            untold.add(name)
    return _Listed(listing, sorted(images), frozenset(untold))


@lru_cache(maxsize=8)
def _has_picture(source: FolderOfImages) -> bool:
    """True if one of the files of a folder is a picture by its first bytes. Raises SourceError."""
    return any(map(source._is_picture, sorted(_list(source.resolve(source.path)).untold)))
