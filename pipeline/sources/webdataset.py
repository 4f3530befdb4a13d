"""webdataset: existing tar shards of `KEY.jpg` with `KEY.txt` and `KEY.json`, grouped as webdataset does.

This is how another project's dataset, or a released one of ours, becomes a source. Texts are those of KEY.json
(`pipeline.sources.folder.texts_of` says in which forms; our own shards fit), else those of KEY.txt, KEY.caption and
KEY.jpg.txt, each of kind `text_kind`. A member is a picture by its suffix, else by its first bytes
(`pipeline.pictures.formats`). Of KEY.0.jpg, KEY.1.jpg ... each is a candidate, with the texts of KEY.0.json, KEY.0.txt
... or else of the sample. Of other pictures in a sample the one with the shortest suffix is the candidate, and each of
the others is a Decision.

Pictures are read from their tars. Their image_url is the one that KEY.json states (`pipeline.sources._provenance`),
else `webdataset:///NAME/SHARD/MEMBER`, by which they are read; of several members of one name, as in tars that were
joined, the second has the address `MEMBER?2`.

A sample with a member that cannot be read is one Decision, and so are a file that belongs to no sample, and a damaged
part of a tar, behind which reading goes on (`pipeline.files.tar_members`). Tars that were joined into one file are read
to its end.

Limits: `pipe:` addresses are refused, since they run commands. A tar is indexed in each process that reads pictures
from it, once as long as 256 MB hold the indexes of all tars: 20 bytes a picture, 12 million pictures. Members above
64 MiB and sparse ones are not read; a tar that is packed as a whole (.tar.gz) is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import fsspec
import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, field_validator

from data_specs.shard import Text, TextKind
from pipeline.errors import BrokenFile, SourceError
from pipeline.files.damage import Hole
from pipeline.files.inputs import faults, reason, version, writable
from pipeline.files.tar_members import Member, members_of
from pipeline.pictures.formats import HEAD, SUFFIXES, TEXT_SUFFIXES, is_picture
from pipeline.rows.account import Account, Named, Units
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import Candidate, encodable
from pipeline.sources import FileSource, distinct
from pipeline.sources._captions import texts_of
from pipeline.sources._look import Budget, FileCount
from pipeline.sources._provenance import Fields
from pipeline.sources._text_files import AUTO, Encoding, text_of
from pipeline.texts.cleaning import clean

MAX_MEMBER = 64 << 20

_META = re.compile(r"__[^/]*__($|/)")
"""Names that webdataset passes over."""

_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)$")
"""Key and suffix of a member: a suffix begins at the first dot."""

_NUMBERED = re.compile(r"\d+\.(?=[^.]*$)")
"""The number of a picture or text, in its suffix, among several of a sample: 0.jpg."""

_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


class WebDataset(FileSource):
    """Tar shards of pictures and texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "shards/*.tar"}]})

    VERSION: ClassVar[int] = 10

    text_kind: TextKind = Field("caption", description="kind of the text in KEY.txt")
    encoding: Encoding = Field(AUTO, description="encoding of KEY.txt and KEY.json; auto: detected")
    fields: Fields = Field(Fields(), description="fields of KEY.json that tell where the picture came from")

    @field_validator("path")
    @classmethod
    def _runs_nothing(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if path.startswith("pipe:"):
                raise ValueError(f"{path!r}: commands are not allowed; give a path or a URL")
        return paths

    ROWS: ClassVar[str] = "samples"

    def count(self, file: str, budget: Budget) -> FileCount:
        """Samples of one tar: its files by their names up to the first dot, up to a budget."""
        samples, last, size = 0, "", int(version(file)[1] or 0)
        try:
            with fsspec.open(file, "rb") as f:
                for member in members_of(f):
                    if isinstance(member, Hole):
                        continue  # `read` says so
                    folder, _, name = member.name.rpartition("/")
                    key = f"{folder}/{name.partition('.')[0]}"
                    if member.info.isreg() and not _META.match(name):
                        samples, last = samples + (key != last), key
                    if budget.exhausted:
                        return FileCount(samples, member.info.offset, size, False)
        except faults() as e:
            raise SourceError(file, f"cannot be read ({reason(e)})") from None
        return FileCount(samples, size, size, True)

    def entries_of(self, number: int, file: str, account: Account) -> Iterator[Candidate | Decision]:
        """Candidates of one tar in its order; a Decision for each member, and each part of it, that cannot be read.

        Raises BrokenFile for a tar of which nothing can be read, SourceError where its disk or server fails.
        """
        shard = file.rpartition("/")[2]
        row, duplicates = -1, list[ValueError]()  # second members of one name in a sample
        strays, holes, units = list[str](), list[Hole](), account["members"]

        try:
            with fsspec.open(file, "rb") as f:
                members = _members(f, strays, holes, units)
                for row, sample in enumerate(_samples(members, duplicates)):
                    label = f"{shard}, {encodable(str(sample['__key__']))}"
                    entries = self.entries(label, row, partial(self._candidates, sample, shard, row))
                    _account_for(sample, entries, units, label)
                    yield from entries
        except faults() as e:
            raise self.file_error(file, e) from None
        if row < 0 and holes:
            hint = "; decompress it, since pictures are read by their offsets" if file.lower().endswith(_PACKED) else ""
            raise BrokenFile(file, f"source {self.name}: not a readable tar ({holes[0].why}){hint}")
        for hole in holes:
            units.met += 1
            units.decisions += 1
            yield self.hole(file, hole)
        for number, error in enumerate(duplicates):
            units.decisions += 1
            yield self.unreadable(f"{shard}, refused member {number}", -1, error)
        for name in map(encodable, strays):
            stray = Candidate(self.name, self.source_kind, f"{shard}/{name}", "", "", (), -1)
            units.decisions += 1
            fault = f"{shard}: {name[:200]} does not belong to a sample (KEY.SUFFIX)"
            yield drop(stray, "extract", DropReason.BAD_ROW, fault)

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of a picture in one of the tars; None for any other address, and for one that no longer exists."""
        prefix = f"webdataset:///{self.name}/"
        if not image_url.startswith(prefix):
            return None
        names = image_url[len(prefix) :].split("/", 1)
        shard, member = (*names, "")[:2]
        member, _, nth = member.partition("?")
        tar = self._tar(unquote(shard, errors="surrogateescape"))
        name = unquote(member, errors="surrogateescape")
        place = _INDEXES.get(*tar).locate(name, int(nth) if nth.isdecimal() else 1) if tar else None
        if tar is None or place is None:
            return None
        with fsspec.open(tar[0], "rb") as f:
            f.seek(place[0])
            return bytes(f.read(place[1]))

    def _tar(self, name: str) -> tuple[str, str] | None:
        """The tar of this name and its version; None if missing. Raises SourceError for one that cannot be read.

        Tars are listed once for all pictures, and again where one came or went since.
        """
        tars = _tars_by_name(self)
        if name in tars:
            with contextlib.suppress(SourceError):  # it went since; or its disk fails, which is said below
                return tars[name], json.dumps(version(tars[name]))
        _tars_by_name.cache_clear()
        tars = _tars_by_name(self)
        return (tars[name], json.dumps(version(tars[name]))) if name in tars else None

    def files(self) -> list[str]:
        """The tars that `path` names. Raises SourceError, also for two of one name: addresses hold the tar's name."""
        files = super().files()
        names = [file.rpartition("/")[2] for file in files]
        clash = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if clash:
            raise SourceError(clash, f"source {self.name}: two tars have this name; put them into two sources")
        return files

    def _candidates(self, sample: dict[str, Any], shard: str, row: int) -> Iterator[Candidate | Decision]:
        """The candidates of one sample, and Decisions on its other pictures, or on the lack of one."""
        for data in sample.values():
            if isinstance(data, Exception):
                raise data
        key = str(sample["__key__"])
        pictures = sorted((s for s in sample if isinstance(sample[s], _Picture)), key=lambda s: (len(s), s))
        chosen = [suffix for suffix in pictures if _NUMBERED.match(suffix)] or pictures[:1]
        if not pictures:
            candidate = self._candidate(shard, key, _Picture(key), row)
            yield drop(candidate, "extract", DropReason.BAD_ROW, f"{shard}, {key}: no picture")
        for suffix in pictures:
            candidate = self._candidate(shard, key, sample[suffix], row)
            if suffix in chosen:
                yield self._with_texts(candidate, sample, suffix, suffix == chosen[0], f"{shard}, {key}")
            else:
                fault = f"{shard}, {key}: one picture is taken, {chosen[0]}; {suffix} is another one without a number"
                yield drop(candidate, "extract", DropReason.BAD_ROW, fault)

    def _candidate(self, shard: str, key: str, member: _Picture, row: int) -> Candidate:
        places = (quote(name, errors="surrogateescape") for name in (shard, member.name))
        url = "/".join((f"webdataset:///{self.name}", *places)) + (f"?{member.nth}" if member.nth > 1 else "")
        return Candidate(self.name, self.source_kind, writable(f"{shard}/{key}"), "", url, (), row)

    def _with_texts(
        self, candidate: Candidate, sample: dict[str, Any], suffix: str, is_first: bool, label: str
    ) -> Candidate | Decision:
        """A picture of a sample with its texts and origin, or the Decision about it.

        is_first: of several pictures the first is the one that KEY.json is about.
        """
        number = _NUMBERED.match(suffix)
        texts, fault = list[Text](), ""
        url, page_url, provenance = candidate.image_url, "", candidate.provenance
        try:
            for stem in ("",) if number is None else (number[0], ""):
                if f"{stem}json" in sample:
                    value = json.loads(text_of(sample[f"{stem}json"], self.encoding))
                    texts = texts or texts_of(value)
                    if provenance is None and (stem or is_first):
                        url, page_url, provenance = self.fields.read(value, candidate.image_url)
                names = (f"{stem}txt", f"{stem}caption", f"{suffix}.txt")
                texts = texts or [
                    Text(self.text_kind, clean(text_of(sample[name], self.encoding)))
                    for name in names
                    if name in sample
                ]
        except (ValueError, RecursionError) as e:
            fault = f"{label}: {e}"
        candidate = replace(candidate, texts=distinct(texts), image_url=url, page_url=page_url, provenance=provenance)
        if fault:
            return drop(candidate, "extract", DropReason.BAD_ROW, fault)
        return candidate if candidate.texts else drop(candidate, "extract", DropReason.NO_TEXT, label)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture among the members of a sample, by its name in the tar, and the how manieth of that name it is."""

    name: str
    nth: int = 1


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Key and suffix of a member as webdataset has them (`base_plus_ext`); one without a suffix is its own key."""
    found = _NAME.match(name)
    return found.groups() if found else (name, "")  # type: ignore[return-value]


def _account_for(sample: Mapping[str, Any], entries: Sequence[Candidate | Decision], units: Units, label: str) -> None:
    """Account for the members of a sample: each picture has an entry, or one entry is about all of them."""
    members = [suffix for suffix in sample if not suffix.startswith("__")]
    others = [suffix for suffix in members if not isinstance(sample[suffix], _Picture)]
    if len(entries) != len(members) - len(others):
        units.take(entries, len(members), label)
        return
    for entry in entries:
        units.take([entry])
    for suffix in others:
        units.named[Named.BESIDE if f".{suffix}".endswith(TEXT_SUFFIXES) else Named.MEMBER] += 1


def _samples(members: Iterable[tuple[str, Any]], duplicates: list[ValueError]) -> Iterator[dict[str, Any]]:
    """Samples as webdataset groups them (`group_by_keys`): members of one key in a row, by suffixes in lower case.

    webdataset imports torch, a second of each worker. duplicates: gets an error for each member whose suffix the
    sample has already.
    """
    for key, own in itertools.groupby(members, key=lambda member: _key_and_suffix(member[0])[0]):
        sample: dict[str, Any] = {"__key__": key}
        for name, data in own:
            suffix = _key_and_suffix(name)[1].lower()
            if suffix in sample:
                duplicates.append(ValueError(f"{name}: the sample has another file with the suffix {suffix}"))
            else:
                sample[suffix] = data
        yield sample


def _members(file: Any, strays: list[str], holes: list[Hole], units: Units) -> Iterator[tuple[str, Any]]:
    """Names and contents of members to group, with a _Picture in place of a picture's bytes, which nothing needs here.

    webdataset's own iterator reads every member whole: a sparse one of 2 kB may claim 6 GB. Like it, this one passes
    over other entries than files and over names such as `__meta__`. An unreadable member gives its error in place of
    bytes. Names of files that belong to no sample, those without suffix that are not pictures, go to `strays`. units:
    gets how many there are, and names for those that are passed over.
    """
    names, repeats = set[int](), Counter[int]()  # of pictures; of those that came before
    for member in members_of(file):
        if isinstance(member, Hole):
            holes.append(member)
            continue
        units.met += 1
        if not member.info.isreg() or _META.match(member.info.name):
            units.named[Named.METADATA if member.info.isreg() else Named.LINK] += 1
            continue
        if member.name.rpartition("/")[2].startswith("._"):  # what macOS keeps beside each file
            units.named[Named.HIDDEN] += 1
            continue
        data = _data(member)
        if isinstance(data, _Picture):
            digest = _digest(member.name)
            repeats[digest] += digest in names
            names.add(digest)
            data = replace(data, nth=1 + repeats[digest])
        if isinstance(data, _Picture) or _NAME.match(member.name):
            yield member.name, data
        else:
            strays.append(member.name)


def _data(member: Member) -> bytes | _Picture | Exception:
    name, size = member.name, member.info.size
    if member.info.issparse():
        return ValueError(f"{name[:200]} is a sparse file")
    if size > MAX_MEMBER:
        return ValueError(f"{name[:200]} has {size} bytes; at most {MAX_MEMBER} are allowed")
    if name.lower().endswith(SUFFIXES):
        return _Picture(name)
    data = member.read()
    return _Picture(name) if is_picture(name, lambda: data) else data


@lru_cache(maxsize=16)
def _tars_by_name(source: WebDataset) -> dict[str, str]:
    return {file.rpartition("/")[2]: file for file in source.files()}


INDEXED_BYTES = 256 << 20
"""Bytes of the indexes of tars that a process holds."""


@dataclass(frozen=True)
class _Index:
    """Locations of a tar's pictures [N]: digests of their names, ascending, with offset and size of each. Those of
    one name are in the tar's order."""

    names: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]

    @staticmethod
    def read(file: str) -> _Index:
        places = list[tuple[int, int, int]]()
        with fsspec.open(file, "rb") as f:
            for member in members_of(f):
                if isinstance(member, Hole):
                    continue  # `read` has said so
                info = member.info
                is_whole = info.isfile() and not info.issparse() and info.size <= MAX_MEMBER
                if is_whole and is_picture(member.name, partial(_head, f, info)):
                    places.append((_digest(member.name), info.offset_data, info.size))
        names, offsets, sizes = zip(*places, strict=True) if places else ((), (), ())
        digests = np.array(names, np.uint64)
        order = np.argsort(digests, kind="stable")
        return _Index(digests[order], np.array(offsets, np.int64)[order], np.array(sizes, np.int32)[order])

    def locate(self, name: str, nth: int = 1) -> tuple[int, int] | None:
        """Offset and size of the nth picture of a name; None for a missing picture."""
        digest = np.uint64(_digest(name))
        at = int(np.searchsorted(self.names, digest)) + nth - 1
        is_present = 0 <= at < len(self.names) and self.names[at] == digest
        return (int(self.offsets[at]), int(self.sizes[at])) if is_present else None

    @property
    def bytes(self) -> int:
        return self.names.nbytes + self.offsets.nbytes + self.sizes.nbytes


def _head(file: Any, member: tarfile.TarInfo) -> bytes:
    """The first bytes of a member of an open tar, which goes on from its own place."""
    file.seek(member.offset_data)
    return bytes(file.read(min(HEAD, member.size)))


def _digest(name: str) -> int:
    """64 bits of a member's name: of the pictures of a tar no two meet by chance."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


class _Indexes:
    """Indexes of tars, the latest asked for within INDEXED_BYTES. A changed tar is another one, by its version."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[tuple[str, str], _Index] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, file: str, version: str) -> _Index:
        with self._lock:
            if (file, version) in self._indexes:
                self._indexes.move_to_end((file, version))
                return self._indexes[file, version]
        index = _Index.read(file)
        with self._lock:
            if (file, version) not in self._indexes:
                self._indexes[file, version] = index
                self._bytes += index.bytes
            while self._bytes > INDEXED_BYTES and len(self._indexes) > 1:
                self._bytes -= self._indexes.popitem(last=False)[1].bytes
        return index


_INDEXES = _Indexes()
