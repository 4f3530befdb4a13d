"""folder: a folder of pictures (with subfolders), with texts in files next to them or in one table.

    X.jpg  X.txt       the whole text file is one text of kind `text_kind`; X.caption is the same
    X.jpg  X.json      {"caption": TEXT, "alt": [TEXT, ...]} by kinds of text, or {"texts": [{"kind": K, "text": T}]}
    captions: FILE     one table for all, CSV, TSV or JSON lines: a column that names the picture and one for each kind
                       of text, called `file`, `caption`, ... or as `columns` says

Encoding and separator of columns are detected (`pipeline.sources._text_files`). A row names its picture as
`pipeline.sources._captions` says. A text file may also be called X.jpg.txt or X.TXT. A file is a picture by its suffix,
else by its first bytes (`pipeline.pictures.formats`), which the part reads that the file belongs to.

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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, unquote

from pydantic import ConfigDict, Field

from data_specs.shard import Text, TextKind, canonical_json
from data_specs.storage.object_store import StorageError
from pipeline.errors import SourceError
from pipeline.files.inputs import MAX_LINE, Listing, content, faults, files_below, first_bytes, reason, writable
from pipeline.pictures.formats import HEAD, SUFFIXES, TEXT_SUFFIXES, is_picture, readable_formats
from pipeline.rows.account import Account, Named, Units
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import Candidate
from pipeline.sources import TableSource, distinct, local_path
from pipeline.sources._captions import CaptionColumns, CaptionsFile, PictureNames, texts_of
from pipeline.sources._look import Budget, Count, Exactness, Look, Sample
from pipeline.sources._provenance import Fields
from pipeline.sources._text_files import AUTO, PACKED, WORKBOOKS, Encoding, is_text, text_of
from pipeline.texts.cleaning import clean

HEIF_SUFFIXES = (".heic", ".heif")


class _FolderFiles(NamedTuple):
    """All files below a folder; sorted those that may be pictures, and those of them whose suffix does not tell.

    Hidden files and texts are none.
    """

    files: Listing
    images: list[str]
    uncertain: frozenset[str]


class FolderOfImages(TableSource):
    """Pictures with texts from files beside them or from one captions file."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "pictures"}]})

    VERSION: ClassVar[int] = 7

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
        _scan.cache_clear()  # a token is about the folder as it is now
        _has_picture.cache_clear()
        entries: list[Any] = [(writable(name), version) for name, version in sorted(self._listing().items())]
        if any(name.lower().endswith(HEIF_SUFFIXES) for name in self._listing()):
            entries.append("heif" in readable_formats())
        return hashlib.sha256(canonical_json(entries)).hexdigest()

    def listing(self) -> list[str]:
        return self._images()

    def parts(self) -> int:
        return max(1, -(-len(self._images()) // self.images_per_part))

    def opened(self, part: int, account: Account) -> tuple[str, Iterator[Candidate | Decision]]:
        return self._file_url(self.captions) if self.captions and part == 0 else "", self.read(part, account)

    def read(self, part: int, account: Account) -> Iterator[Candidate | Decision]:
        """Candidates of one part by path; a Decision for a picture without text or with a broken text file.

        The first part also reports the rows of the captions file that cannot be read or name no picture of the folder,
        and accounts for the files that are hidden or texts.
        """
        _, all_images, uncertain = self._folder_files()
        files = account["files"]
        images = all_images[part * self.images_per_part : (part + 1) * self.images_per_part]
        table, broken = self._captions(images, account["lines"] if part == 0 else None)
        if part == 0:
            self._account_for_others(files)
            yield from broken
            for name in sorted(set(table) - set(all_images)):
                yield from self.entries(name, -1, partial(self._missing_picture, name, table[name]))
        for row, image in enumerate(images, part * self.images_per_part):
            files.met += 1
            head = self._first_bytes(image) if image in uncertain else b""
            if is_picture(image, partial(bytes, head)):
                yield from self.entries(image, row, partial(self._picture, image, row, table.get(image, [])), files)
                continue
            self._account_for(image, head, files)
            if image in table:
                yield from self.entries(image, -1, partial(self._missing_picture, image, table[image]))

    def _account_for_others(self, files: Units) -> None:
        """Account for the files that no part has: hidden ones, and texts."""
        listing, images, uncertain = self._folder_files()
        candidates, stems = set(images), {stem for image in images if image not in uncertain for stem in _stems(image)}
        others = {stem: image for image in uncertain for stem in _stems(image)}
        for name in listing.keys() - candidates:
            files.met += 1
            stem = name.rpartition(".")[0]
            if _HIDDEN.search(name):
                files.named[Named.HIDDEN] += 1
            elif name == self.captions:
                files.named[Named.TABLE] += 1
            elif stem in stems or (stem in others and self._is_picture(others[stem])):
                files.named[Named.BESIDE] += 1
            else:
                files.named[Named.ALONE] += 1

    def _account_for(self, name: str, head: bytes, files: Units) -> None:
        """Account for a file that may be a picture and is none: a table, or another text. What else it may be, such as
        an archive of pictures, nothing says."""
        if PurePosixPath(PACKED.sub("", name.lower())).suffix in _TABLES:
            files.named[Named.TABLE] += 1
        elif is_text(head):
            files.named[Named.DOCUMENT] += 1
        else:
            files.miss(writable(name))

    def root(self) -> str:
        return local_path(self.resolve(self.path))

    def address_of(self, file: str) -> str:
        folder, path = self.root(), PurePosixPath(file)
        if not folder or not path.is_relative_to(folder) or path.suffix.lower() in TEXT_SUFFIXES:
            return ""
        return self._address(str(path.relative_to(folder)))

    def look(self, budget: Budget) -> Look:
        """Its pictures, the files with texts beside them, and how many of a sample have a text."""
        listing, images, uncertain = self._folder_files()
        suffixes = Counter(PurePosixPath(name).suffix.lower() for name in listing)
        texts = [Count(f"{suffix} files", suffixes[suffix]) for suffix in TEXT_SUFFIXES if suffixes[suffix]]
        tested = sorted(uncertain)[: budget.rows]
        confirmed = list(filter(self._is_picture, tested))
        size = sum(listing[image][0] for image in (*confirmed, *(image for image in images if image not in uncertain)))
        exactness: Exactness = "" if len(tested) == len(uncertain) else "about"
        others = len(confirmed) * len(uncertain) // max(1, len(tested))
        pictures = Count("pictures", len(images) - len(uncertain) + others, exactness)
        sample, account = Sample(budget), Account()
        sample.take(self.read(0, account))
        whole = sample.rows >= pictures.number  # rows of the captions file that name no picture are among them
        candidates = Count("candidates", sample.candidates) if whole else sample.estimate(pictures)
        fields = sample.look_fields(account)
        fields["facts"] += (("with a text", f"{sample.candidates:,} of the sampled pictures"),)
        return Look(counts=(pictures, *texts), bytes=size, candidates=candidates, **fields)

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
        return self.stored_image(self.resolve(self.path), image)

    def _picture(self, image: str, row: int, texts: list[Text]) -> Iterator[Candidate | Decision]:
        """The candidate of one picture, or a Decision. texts: those of the captions file."""
        fault, value = "", None
        try:
            file_texts, value = self._texts_beside(image)
            texts = texts + file_texts
        except ValueError as e:
            fault = str(e)
        candidate = self._candidate(image, distinct(texts), row)
        url, page_url, provenance = self.fields.read(value, candidate.image_url)
        candidate = replace(candidate, image_url=url, page_url=page_url, provenance=provenance)
        if candidate.texts:
            yield candidate
        else:
            yield drop(candidate, "extract", DropReason.BAD_ROW if fault else DropReason.NO_TEXT, fault or image)

    def _candidate(self, image: str, texts: tuple[Text, ...], row: int) -> Candidate:
        return Candidate(self.name, self.source_kind, writable(image), "", self._address(image), texts, row)

    def _address(self, image: str) -> str:
        return f"folder:///{self.name}/{quote(image, errors='surrogateescape')}"

    def _missing_picture(self, name: str, texts: list[Text]) -> Iterator[Decision]:
        """The Decision about a row of the captions file whose picture is not in the folder."""
        evidence = f"{self.captions} lists {name}, which is not a picture in the folder"
        yield drop(self._candidate(name, tuple(texts), -1), "extract", DropReason.BAD_ROW, evidence)

    def _file_url(self, name: str) -> str:
        return f"{self.resolve(self.path).rstrip('/')}/{name}"

    def _listing(self) -> Listing:
        """All files of the folder. Raises SourceError if none of them is a picture."""
        return self._folder_files().files

    def _images(self) -> list[str]:
        """Files that may be pictures, sorted: parts are ranges of them."""
        return self._folder_files().images

    def _folder_files(self) -> _FolderFiles:
        files = _scan(self.resolve(self.path))
        if len(files.uncertain) == len(files.images) and not _has_picture(self):
            raise SourceError(self.resolve(self.path), f"source {self.name}: no pictures ({', '.join(SUFFIXES)})")
        return files

    def _is_picture(self, image: str) -> bool:
        """True if a file that may be a picture is one. Raises SourceError."""
        return is_picture(image, partial(self._first_bytes, image))

    def _first_bytes(self, name: str) -> bytes:
        try:
            return first_bytes(self.resolve(self.path), name, min(HEAD, _scan(self.resolve(self.path)).files[name][0]))
        except StorageError as e:
            raise SourceError(self._file_url(name), f"source {self.name}: {e.strerror}") from None

    def _texts_beside(self, image: str) -> tuple[list[Text], Any]:
        """(texts of X.txt, X.caption and X.json, what X.json holds; None without one). Raises ValueError that names
        the file."""
        texts: list[Text] = []
        value = None
        for name in self._names_beside(image):
            suffix = name[name.rindex(".") :].lower()
            try:
                text = text_of(content(self.resolve(self.path), name, MAX_LINE), self.encoding)
                if suffix == ".json":
                    value = json.loads(text)
                    texts += texts_of(value)
                else:
                    texts.append(Text(self.text_kind, clean(text)))
            except StorageError as e:
                raise SourceError(self._file_url(name), f"source {self.name}: {e.strerror}") from None
            except (OSError, ValueError, RecursionError) as e:
                raise ValueError(f"{name}: cannot be read ({type(e).__name__}: {e})"[:300]) from None
        return texts, value

    def _names_beside(self, image: str) -> list[str]:
        """The text files of a picture X.jpg: X.txt, X.jpg.txt and the like, in small or capital letters."""
        listing, stems = self._listing(), dict.fromkeys(reversed(_stems(image)))
        return [name for suffix in _BESIDE_SUFFIXES for stem in stems if (name := stem + suffix) in listing]

    def _captions(self, images: Sequence[str], lines: Units | None) -> tuple[dict[str, list[Text]], list[Decision]]:
        """Texts of the captions file by picture, and a Decision for each row of it that cannot be read.

        Only `images` are taken and, with `lines`, which accounts for the file, names of no picture: each part of a
        large folder reads the whole table. Raises SourceError that names the file if it cannot be read, or none of
        its rows.
        """
        if not self.captions:
            return {}, []
        file, wanted = self._file_url(self.captions), set(images)
        pictures = PictureNames(self._images(), self._folder_files().uncertain)
        table = CaptionsFile(self.captions, file, self.columns, self.encoding)

        def is_wanted(name: str) -> bool:
            return name in wanted or (lines is not None and name not in pictures)

        def unreadable(place: str, e: Exception) -> Decision:
            return self.unreadable(place, -1, e)

        try:
            return table.texts(pictures, is_wanted, lines or Units(), unreadable)
        except faults(ValueError) as e:
            fault = str(e) if isinstance(e, ValueError) else f"cannot be read ({reason(e)})"
            raise SourceError(file, f"source {self.name}: captions file: {fault}"[:600]) from None


_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", *WORKBOOKS)
"""Suffixes of tables, which may lie beside pictures."""

_HIDDEN = re.compile(r"(?:^|/)(?:\.[^/]|__MACOSX/|@eaDir/|(?:Thumbs\.db|desktop\.ini|Icon\r)$)", re.I)
"""Files that systems keep in folders: of macOS, Windows and Synology, and whatever has a dot in front."""

_BESIDE_SUFFIXES = tuple(spelled for suffix in TEXT_SUFFIXES for spelled in (suffix, suffix.upper()))


def _stems(image: str) -> tuple[str, str]:
    """Names of the text files of a picture, without their suffix."""
    dot = image.rfind(".")
    return image, image[:dot] if dot > image.rfind("/") + 1 else image


@lru_cache(maxsize=8)
def _scan(folder: str) -> _FolderFiles:
    """Returns all files below a folder. Raises SourceError for a missing folder."""
    listing, images, uncertain = files_below(folder), list[str](), set[str]()
    for name in listing:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in TEXT_SUFFIXES or _HIDDEN.search(name):
            continue
        images.append(name)
        if suffix not in SUFFIXES:
            uncertain.add(name)
    return _FolderFiles(listing, sorted(images), frozenset(uncertain))


@lru_cache(maxsize=8)
def _has_picture(source: FolderOfImages) -> bool:
    """True if one of the files of a folder is a picture by its first bytes. Raises SourceError."""
    return any(map(source._is_picture, sorted(_scan(source.resolve(source.path)).uncertain)))
