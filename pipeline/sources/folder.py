"""folder: a folder of pictures, at any depth, with their texts in files beside them or in one table.

    X.jpg  X.txt       the whole text file is one text of kind `text_kind`
    X.jpg  X.json      {"caption": TEXT, "alt": [TEXT, ...]} by kinds of text, or {"texts": [{"kind": K, "text": T}]}
    captions: FILE     one table for all: CSV, TSV or JSON lines with the columns `file` and one for each kind of text

The pictures are read from the folder itself and not fetched. Their image_url is the one that X.json states
(`pipeline.sources._provenance`; img2dataset's files have it), else `folder:///NAME/PATH`, by which they are read and
which is the same wherever the folder lies. Any path that fsspec opens will do.

Limits: each process lists the whole folder, and keeps the list until `token` is called again. Links that lead out of
the folder are followed, as the file system does.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import fsspec
from pydantic import ConfigDict, Field

from data_specs.shard import TEXT_KINDS, Text, TextKind, canonical_json
from pipeline.errors import SourceError
from pipeline.files.inputs import MAX_LINE, Lines, LongLine
from pipeline.records import Candidate, Decision, DropReason, drop, encodable
from pipeline.sources import MAX_UNDECODED, TableSource
from pipeline.sources._provenance import Fields
from pipeline.texts.cleaning import clean

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")

Listing = dict[str, tuple[int, str]]
"""Path relative to the folder -> (size, time or ETag)."""


class FolderOfImages(TableSource):
    """Pictures with texts from files beside them or from one captions file."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "pictures"}]})

    VERSION: ClassVar[int] = 2

    path: str = Field(description="folder or URL of a folder; pictures are looked for at any depth")
    captions: str = Field("", description="table of texts, relative to the folder: CSV, TSV or JSON lines")
    text_kind: TextKind = Field("caption", description="kind of the text in an X.txt")
    fields: Fields = Field(Fields(), description="names of fields of X.json that say where a picture came from")
    images_per_part: int = Field(10_000, gt=0, description="pictures of one partition of the extract stage")

    def token(self) -> Any:
        """Digest of the paths, sizes and times of all pictures and text files. Raises SourceError."""
        _list.cache_clear()  # a token is about the folder as it is now
        named = [(_writable(name), version) for name, version in sorted(self._listing().items())]
        return hashlib.sha256(canonical_json(named)).hexdigest()

    def parts(self) -> int:
        return max(1, -(-len(self._images()) // self.images_per_part))

    def read(self, part: int) -> Iterator[Candidate | Decision]:
        """Candidates of one part by path; a Decision for a picture without text or with a broken text file.

        The first part also reports the rows of the captions file that cannot be read or name no picture of the folder.
        """
        all_images = self._images()
        images = all_images[part * self.images_per_part : (part + 1) * self.images_per_part]
        table, broken = self._captions() if self.captions else ({}, [])
        if part == 0:
            yield from broken
            yield from (self._missing(name, table[name]) for name in sorted(set(table) - set(all_images)))
        for row, image in enumerate(images, part * self.images_per_part):
            yield from self.entries(image, row, partial(self._picture, image, row, table.get(image, [])))

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of a picture of this folder; None for any other address, and for a picture that no longer exists."""
        prefix = f"folder:///{self.name}/"
        if not image_url.startswith(prefix):
            return None
        image = unquote(image_url[len(prefix) :])
        if image not in self._listing():
            return None
        try:
            with fsspec.open(self._at(image), "rb") as f:
                return bytes(f.read())
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
        return Candidate(self.name, self.source_kind, image, "", f"folder:///{self.name}/{quote(image)}", texts, row)

    def _missing(self, name: str, texts: list[Text]) -> Decision:
        """The Decision about a row of the captions file whose picture is not in the folder."""
        evidence = f"{self.captions} names {name}, which is no picture of the folder"
        return drop(self._candidate(name, tuple(texts), -1), "extract", DropReason.BAD_ROW, evidence)

    def _at(self, name: str) -> str:
        return f"{self.resolve(self.path).rstrip('/')}/{name}"

    def _listing(self) -> Listing:
        """All files of the folder. Raises SourceError if none of them is a picture."""
        listing = _list(self.resolve(self.path))
        if not any(PurePosixPath(name).suffix.lower() in SUFFIXES for name in listing):
            raise SourceError(self.resolve(self.path), f"source {self.name}: holds no pictures ({', '.join(SUFFIXES)})")
        return listing

    def _images(self) -> list[str]:
        return sorted(name for name in self._listing() if PurePosixPath(name).suffix.lower() in SUFFIXES)

    def _beside(self, image: str) -> tuple[list[Text], Any]:
        """(texts of X.txt and X.json, what X.json holds; None without one). Raises ValueError that names the file."""
        texts: list[Text] = []
        value = None
        for suffix in (".txt", ".json"):
            name = str(PurePosixPath(image).with_suffix(suffix))
            if name not in self._listing():
                continue
            try:
                with fsspec.open(self._at(name), "rb") as f:
                    read = f.read(MAX_LINE + 1)
                if len(read) > MAX_LINE:
                    raise ValueError(f"more than {MAX_LINE:,} bytes")
                content = read.decode("utf-8-sig")
                if suffix == ".txt":
                    texts.append(Text(self.text_kind, clean(content)))
                else:
                    value = json.loads(content)
                    texts += texts_of(value)
            except (OSError, ValueError, RecursionError) as e:
                raise ValueError(f"{name}: cannot be read ({type(e).__name__}: {e})"[:300]) from None
        return texts, value

    def _captions(self) -> tuple[dict[str, list[Text]], list[Decision]]:
        """Texts of the captions file by picture, and a Decision for each row of it that cannot be read.

        Raises SourceError that names the file if it cannot be read, or none of its rows.
        """
        file = self._at(self.captions)
        texts: dict[str, list[Text]] = {}
        broken: list[Decision] = []
        try:
            with fsspec.open(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as f:
                for number, row in enumerate(_rows(f, self.captions), 1):
                    try:
                        for name, own in _captions_of(row):
                            texts.setdefault(name, []).extend(own)
                    except Exception as e:
                        broken.append(self.unreadable(f"{self.captions}, row {number}", -1, e))
                        if not texts and len(broken) == MAX_UNDECODED:
                            break
        except (OSError, ValueError) as e:
            raise SourceError(file, f"source {self.name}: no captions file that can be read ({e})"[:400]) from None
        if broken and not texts:
            fault = f"none of its first {len(broken)} rows: {broken[0].evidence}"
            raise SourceError(file, f"source {self.name}: no captions file that can be read ({fault})"[:400])
        return texts, broken


def texts_of(value: Any) -> list[Text]:
    """Texts of a JSON object: `{"texts": [{"kind", "text"}]}` or `{KIND: TEXT or [TEXT, ...]}`.

    Raises ValueError if it is no JSON object; keys that are no kind of text are ignored.
    """
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
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


def _captions_of(row: Any) -> Iterator[tuple[str, list[Text]]]:
    """(picture, its texts) of a row of a captions file, none for a blank line. Raises whatever is wrong with it."""
    if isinstance(row, Exception):
        raise row
    if isinstance(row, str):
        if not row.strip():
            return
        row.encode()  # raises for bytes that are not UTF-8
        row = json.loads(row)
    elif isinstance(row, dict):
        "".join(cell for cell in row.values() if isinstance(cell, str)).encode()
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        raise ValueError("each row needs the column `file`")
    own = {kind: texts for kind, texts in row.items() if kind in TEXT_KINDS}
    yield str(PurePosixPath(row["file"])), texts_of(own)


def _rows(f: Any, name: str) -> Iterator[Any]:
    """Rows of a captions file as its suffix says: lines of JSON as text, rows of TSV or CSV by column."""
    if name.lower().endswith((".jsonl", ".ndjson", ".json")):
        yield from (line for _, line in Lines(f).numbered())
        return
    rows = csv.DictReader(Lines(f), delimiter="\t" if name.lower().endswith(".tsv") else ",")
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except (csv.Error, LongLine) as e:
            yield e


def _writable(name: str) -> str:
    """A file's name with escapes for bytes that are not UTF-8, so that it can be hashed."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=8)
def _list(folder: str) -> Listing:
    """All files below a folder. Raises SourceError if there is no such folder."""
    try:
        fs, root = fsspec.url_to_fs(folder)
        if not fs.isdir(root):
            raise SourceError(folder, "there is no such folder")
        files = fs.find(root, detail=True)
    except (OSError, ValueError, ImportError) as e:
        raise SourceError(folder, f"cannot be listed ({e or type(e).__name__})") from None
    root = root.rstrip("/")
    return {
        str(name)[len(root) :].lstrip("/"): (
            int(info.get("size") or 0),
            str(next((info[k] for k in ("ETag", "etag", "mtime", "LastModified") if info.get(k)), "")),
        )
        for name, info in files.items()
    }
