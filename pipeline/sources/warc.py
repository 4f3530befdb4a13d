"""warc: web pages from existing WARC and WACZ files, on a disk, in an object store or behind URLs.

Pictures that lie in the files as well, as in those of wget, Browsertrix or Heritrix, are read there and not asked for.

There are two ways to name the files, which may be mixed: `path` (paths, URLs and globs) and `path_list`, a file with
one path per line, plain or gzipped, as Common Crawl publishes for each of its crawls (`warc.paths.gz`); `prefix` is put
before each of its lines.

Limits: files that `path_list` names are taken to be immutable, as Common Crawl's are, and are not checked for changes
one by one; a plain http URL cannot be listed, so globs need a disk, s3, gs or the like.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ConfigDict

from pipeline.errors import BrokenFile, SourceError
from pipeline.files import wacz
from pipeline.files.inputs import no_damage, reason, version, writable
from pipeline.sources._listed_source import ListedSource
from pipeline.sources._look import Budget, Count, FileCount, Look, broken_files, size_of_files, total_of

_IMG = re.compile(rb"<img[\s/]", re.IGNORECASE)

_FORMATS = (b"\x1f\x8b\x08", b"WARC/", b"filedesc:")
"""First bytes of a gzipped file, one of WARC records and one of ARC records; warcio takes any line for the latter."""

MAX_PAGE = 10_000_000
"""Bytes of a page that are looked at: one of some kilobytes may unpack to gigabytes."""


class Warc(ListedSource):
    """Existing WARC files. One file is one part of the extract stage."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "captures/*.warc.gz"}]})

    def warcs(self) -> list[str]:
        """Paths or URLs, each once: those of `path` sorted within each glob, then those of `path_list` as listed.

        A WACZ file stands for the addresses of the WARC files in it. Raises SourceError that names the path which is
        missing, matches nothing or cannot be read.
        """
        files = {file: json.dumps(version(file)) if wacz.is_wacz(file) else "" for file in self._path_files()}
        lines = (self.prefix + line for line in self._lines())
        files = {**files, **{line: "" for line in lines if line not in files}}
        warcs, fault = list[str](), None
        for file, mark in files.items():
            try:
                warcs += wacz.warcs_in(file, self.name, mark)
            except BrokenFile as e:
                warcs, fault = [*warcs, file], fault or e  # `wacz.opened` says so
        if fault is not None and set(warcs) <= set(filter(wacz.is_wacz, files)):  # all are broken
            raise fault
        return warcs[: self.limit] if self.limit else warcs

    def files(self) -> list[str]:
        return self.warcs()

    def address_of(self, part: int, offset: int, length: int) -> str:
        """The address (`stored_at`) of a record in one of its WARC files, or in the WACZ that holds that file."""
        return f"warc:///{self.name}/{part}/{offset}+{length}"

    def record_at(self, address: str) -> tuple[int, int, int]:
        """(part, offset, length) of an address that `address_of` has made."""
        part, _, place = address.removeprefix(f"warc:///{self.name}/").partition("/")
        offset, _, length = place.partition("+")
        return int(part), int(offset), int(length)

    def look(self, budget: Budget) -> Look:
        """Its files, with the HTML pages and pictures of a sample, and the images on the pages."""
        files = self.warcs()
        by_path, stored = self._path_files(), list(dict.fromkeys(map(wacz.file_of, files)))
        broken = broken_files(files, self._first_of, replace(budget))
        sound = [file for file in files if file not in broken.reasons]
        sample = self._sample_file(sound[0], budget) if sound else _FileSample(whole=True)
        pages, images = sample.pages, sample.images
        size = size_of_files(stored if not self.path_list else by_path or stored[:1])
        size = size if len(by_path) == len(stored) else size * len(stored) // max(1, len(by_path))
        total, pictures = (
            total_of(what, [FileCount(number, sample.read, 0, sample.whole)], len(files), size)
            for what, number in (("HTML pages", pages), ("pictures", sample.pictures))
        )
        candidates = Count("candidates", total.number * images // max(1, pages), "about")
        first = writable((sound or files)[0].rpartition("/")[2])
        looked_at = f"{pages:,} pages of {first} with {images:,} <img> tags, {sample.pictures:,} pictures"
        facts = (("looked at", looked_at),)
        warnings = [] if pages else ["the sampled records contain no HTML page"]
        if sample.damage:
            warnings.append(f"{first} is damaged ({sample.damage}); a build reads the intact records")
        warnings += broken.warnings(len(files))
        counts = (Count("WARC files", len(files)), total, *([pictures] if sample.pictures else []))
        figures: dict[str, Any] = {"bytes": size, "candidates": candidates, "pages": total.number}
        return Look(counts, **figures, facts=facts, warnings=tuple(warnings))

    def _first_of(self, number: int, file: str) -> None:
        """Reads the first record of a file. Raises BrokenFile."""
        self._sample_file(file, Budget(rows=1, bytes=1))
        with wacz.opened(file) as (f, _):
            head = f.read(1 << 10).lstrip()
        if not head.startswith(_FORMATS):
            raise BrokenFile(file, f"source {self.name}: not a WARC file (it begins with {head[:16]!r})")

    def _sample_file(self, file: str, budget: Budget) -> _FileSample:
        """Look at the records of a file, up to its first damage. Raises SourceError."""
        from warcio.archiveiterator import ArchiveIterator

        sample, records = _FileSample(), 0
        try:
            with wacz.opened(file) as (f, _):
                for record in ArchiveIterator(f):
                    records += 1
                    kind = _kind_of(record)
                    if record.rec_type == "response" and "html" in kind:
                        sample.pages += 1
                        sample.images += _images_in(record)
                    sample.pictures += kind.startswith("image/")
                    sample.read = f.tell()
                    if sample.read >= budget.bytes or sample.pages >= budget.rows or budget.exhausted:
                        return sample
            sample.whole = True
        except no_damage() as e:
            raise SourceError(file, f"source {self.name}: cannot be read ({reason(e)})") from None
        except Exception as e:  # what others wrote, and a parser
            if not records:
                raise BrokenFile(file, f"source {self.name}: not a WARC file ({reason(e)})") from None
            sample.damage = reason(e)
        return sample


@dataclass(slots=True)
class _FileSample:
    """Result of a look at a file: HTML pages, images on them, pictures, bytes, whether it was read whole, its fault."""

    pages: int = 0
    images: int = 0
    pictures: int = 0
    read: int = 0
    whole: bool = False
    damage: str = ""


def _kind_of(record: Any) -> str:
    """Content-Type of a response of status 200 or of a resource, in small letters; "" for another record."""
    headers = record.http_headers
    if record.rec_type == "resource":
        return str(record.rec_headers.get_header("Content-Type", "")).lower()
    if record.rec_type != "response" or headers is None:
        return ""
    kind = str(headers.get_header("Content-Type", "")).lower()
    return kind if headers.get_statuscode() == "200" or "html" in kind else ""


def _images_in(record: Any) -> int:
    """Images of a page, as far as it can be unpacked and not beyond MAX_PAGE bytes."""
    images, remaining = 0, MAX_PAGE
    try:
        stream = record.content_stream()
        while remaining > 0 and (block := stream.read(min(remaining, 1 << 16))):
            images += len(_IMG.findall(block))
            remaining -= len(block)
    except no_damage():
        raise
    except Exception:  # an encoding that warcio reads in another way than a build
        return images
    return images
