"""webdataset: existing tar shards of `KEY.jpg` with `KEY.txt` and `KEY.json`, read by the webdataset package.

This is how another project's dataset, or a released one of ours, becomes a source. Texts are those of KEY.json
(`pipeline.sources.folder.texts_of` says in which forms; our own shards fit), else KEY.txt as one text of `text_kind`.
Pictures are read from their tars. Their image_url is the one that KEY.json states (`pipeline.sources._provenance`),
else `webdataset:///NAME/SHARD/MEMBER`, by which they are read.

A sample with a member that cannot be read is one Decision, and so are a file that belongs to no sample, and all that
comes after the place where a tar breaks off. Tars that were joined into one file are read to its end.

Limits: `pipe:` addresses are refused, since they run commands. A tar is indexed in each process that reads pictures
from it, once as long as 256 MB hold the indexes of all tars: 20 bytes a picture, 12 million pictures. Members above
64 MiB and sparse ones are not read; a tar that is packed as a whole (.tar.gz) is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import fsspec
import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, field_validator

from data_specs.errors import WenlanError
from data_specs.shard import Text, TextKind
from pipeline.errors import SourceError
from pipeline.files.inputs import faults, no_damage, reason, version, writable
from pipeline.records import Candidate, Decision, DropReason, drop, encodable
from pipeline.sources import FileSource
from pipeline.sources._look import Budget, Reading
from pipeline.sources._provenance import Fields
from pipeline.sources._text_files import AUTO, Encoding, text_of
from pipeline.sources.folder import SUFFIXES, texts_of
from pipeline.texts.cleaning import clean

MAX_MEMBER = 64 << 20

MAX_ZEROS = 1 << 13
"""Blocks of zeros in a row, 4 MB: a sparse file of a terabyte is not a tar. tar itself ends one with up to 20."""

_META = re.compile(r"__[^/]*__($|/)")
"""Names that webdataset passes over."""

_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")

log = logging.getLogger("wenlan")


class WebDataset(FileSource):
    """Tar shards of pictures and texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "shards/*.tar"}]})

    VERSION: ClassVar[int] = 4

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

    def count(self, file: str, budget: Budget) -> Reading:
        """Samples of one tar: its files by their names up to the first dot, up to a budget."""
        samples, last, size = 0, "", int(version(file)[1] or 0)
        try:
            with fsspec.open(file, "rb") as f, _Tar.open(fileobj=f, mode="r|") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                    folder, _, name = member.name.removeprefix("./").rpartition("/")
                    key = f"{folder}/{name.partition('.')[0]}"
                    if member.isreg() and not _META.match(name):
                        samples, last = samples + (key != last), key
                    if budget.spent:
                        return Reading(samples, member.offset, size, False)
        except (tarfile.TarError, EOFError):
            pass  # it breaks off, or is not a tar: `read` says so
        except faults() as e:
            raise SourceError(file, f"cannot be read ({reason(e)})") from None
        return Reading(samples, size, size, True)

    def read(self, part: int) -> Iterator[Candidate | Decision]:
        """Candidates of one tar in its order; a Decision for each member, and for the rest, that cannot be read.

        Raises SourceError for a tar of which nothing can be read, and where its disk or server fails.
        """
        from webdataset.tariterators import group_by_keys

        file = self.files()[part]
        shard = file.rpartition("/")[2]
        row, refused = -1, list[Exception]()  # members that webdataset refuses: two of one name
        of_none = list[str]()

        def refuse(error: Exception) -> bool:
            refused.append(error)
            return True  # go on

        try:
            with fsspec.open(file, "rb") as f:
                for row, sample in enumerate(group_by_keys(_members(f, of_none), handler=refuse)):
                    where = f"{shard}, {encodable(str(sample['__key__']))}"
                    yield from self.entries(where, row, partial(self._candidates, sample, shard, row))
        except WenlanError:
            raise
        except Exception as e:
            if row < 0 or isinstance(e, no_damage()):
                hint = "; decompress it, since pictures are read by their offsets" if file.endswith(_PACKED) else ""
                raise SourceError(file, f"source {self.name}: not a readable tar ({reason(e)}){hint}") from None
            log.warning("%s: truncated or damaged after %d samples (%s); using those", file, row + 1, reason(e))
            yield self.unreadable(f"{shard}, after {row + 1} samples", row + 1, e)
        for number, error in enumerate(refused):
            error.args = error.args[:1]  # webdataset adds its own
            yield self.unreadable(f"{shard}, refused member {number}", -1, error)
        for name in map(encodable, of_none):
            what = Candidate(self.name, self.source_kind, f"{shard}/{name}", "", "", (), -1)
            why = f"{shard}: {name[:200]} does not belong to a sample (KEY.SUFFIX)"
            yield drop(what, "extract", DropReason.BAD_ROW, why)

    def read_image(self, image_url: str) -> bytes | None:
        """Bytes of a picture in one of the tars; None for any other address, and for one that no longer exists."""
        prefix = f"webdataset:///{self.name}/"
        if not image_url.startswith(prefix):
            return None
        names = image_url[len(prefix) :].split("/", 1)
        shard, member = (unquote(name, errors="surrogateescape") for name in (*names, "")[:2])
        tar = self._tar(shard)
        place = _INDEXES.of(*tar).place(member) if tar else None
        if tar is None or place is None:
            return None
        with fsspec.open(tar[0], "rb") as f:
            f.seek(place[0])
            return bytes(f.read(place[1]))

    def _tar(self, name: str) -> tuple[str, str] | None:
        """The tar of this name and its version; None if missing. Raises SourceError for one that cannot be read.

        Tars are listed once for all pictures, and again where one came or went since.
        """
        listed = _listed(self)
        if name in listed:
            with contextlib.suppress(SourceError):  # it went since; or its disk fails, which is said below
                return listed[name], json.dumps(version(listed[name]))
        _listed.cache_clear()
        listed = _listed(self)
        return (listed[name], json.dumps(version(listed[name]))) if name in listed else None

    def files(self) -> list[str]:
        """The tars that `path` names. Raises SourceError, also for two of one name: addresses hold the tar's name."""
        files = super().files()
        names = [file.rpartition("/")[2] for file in files]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice:
            raise SourceError(twice, f"source {self.name}: two tars have this name; put them into two sources")
        return files

    def _candidates(self, sample: dict[str, Any], shard: str, row: int) -> Iterator[Candidate | Decision]:
        """The candidate of one sample, or a Decision."""
        for data in sample.values():
            if isinstance(data, Exception):
                raise data
        yield self._candidate(sample, shard, row)

    def _candidate(self, sample: dict[str, Any], shard: str, row: int) -> Candidate | Decision:
        key = str(sample["__key__"])
        member = next((sample[s].decode("utf-8", "surrogateescape") for s in sample if f".{s}".endswith(SUFFIXES)), "")
        places = (quote(name, errors="surrogateescape") for name in (shard, member or key))
        url = "/".join((f"webdataset:///{self.name}", *places))
        page_url, provenance = "", None
        texts: list[Text] = []
        fault = ""
        try:
            if "json" in sample:
                value = json.loads(text_of(sample["json"], self.encoding))
                url, page_url, provenance = self.fields.read(value, url)
                texts = texts_of(value)
            if "txt" in sample and not texts:
                texts = [Text(self.text_kind, clean(text_of(sample["txt"], self.encoding)))]
        except (ValueError, RecursionError) as e:
            fault = f"{shard}, {key}: {e}"
        distinct = tuple({t.text: t for t in reversed(texts) if t.text}.values())[
            ::-1
        ]  # of equal texts the first stays
        candidate = Candidate(
            self.name, self.source_kind, writable(f"{shard}/{key}"), page_url, url, distinct, row, provenance=provenance
        )
        if not member:
            return drop(candidate, "extract", DropReason.BAD_ROW, fault or f"{shard}, {key}: no picture")
        if fault:
            return drop(candidate, "extract", DropReason.BAD_ROW, fault)
        return candidate if distinct else drop(candidate, "extract", DropReason.NO_TEXT, f"{shard}, {key}")


class _Tar(tarfile.TarFile):
    """A tar that ends where its file does: zeros may also stand where tars were joined, or where a header was lost."""

    ignore_zeros = True
    zeros = 0  # blocks of them in a row


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; to tarfile it is the end of the tar, if it is not the first one."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        assert isinstance(tarfile_, _Tar)
        try:
            member = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.zeros += 1
            if tarfile_.zeros > MAX_ZEROS:
                raise tarfile.ReadError(f"more than {MAX_ZEROS} blocks of zeros") from None
            raise
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as e:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(e)) from None
        tarfile_.zeros = 0
        return member


_Tar.tarinfo = _Member


def _members(file: Any, of_none: list[str]) -> Iterator[dict[str, Any]]:
    """Members for webdataset to group, with a picture's name in place of its bytes, which are not needed here.

    webdataset's own iterator reads every member whole: a sparse one of 2 kB may claim 6 GB. Like it, this one passes
    over other entries than files and over names such as `__meta__`. An unreadable member gives its error in place of
    bytes. Names of files that belong to no sample, such as a picture without suffix, go to `of_none`.
    """
    from webdataset.tariterators import base_plus_ext

    with _Tar.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
            if not member.isreg() or _META.match(member.name):
                continue
            name = member.name.removeprefix("./")
            if base_plus_ext(name)[0] is None:
                if not name.rpartition("/")[2].startswith("._"):  # what macOS keeps beside each file
                    of_none.append(name)
                continue
            yield {"fname": name, "data": _data(tar, member, name), "__url__": ""}


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes | Exception:
    """Returns the bytes of a member for `_members`. Raises where the tar ends before the member does."""
    if member.issparse():
        return ValueError(f"{name[:200]} is a sparse file")
    if member.size > MAX_MEMBER:
        return ValueError(f"{name[:200]} has {member.size} bytes; at most {MAX_MEMBER} are allowed")
    if name.lower().endswith(SUFFIXES):
        return name.encode("utf-8", "surrogateescape")
    opened = tar.extractfile(member)
    assert opened is not None  # a regular file
    return opened.read()


@lru_cache(maxsize=16)
def _listed(source: WebDataset) -> dict[str, str]:
    """The tars of a source by their names."""
    return {file.rpartition("/")[2]: file for file in source.files()}


INDEXED_BYTES = 256 << 20
"""Bytes of the indexes of tars that a process holds."""


@dataclass(frozen=True)
class _Index:
    """Locations of a tar's pictures [N], up to where it breaks off: digests of their names, ascending, with offset
    and size of each. Of two with one name the later one comes later."""

    names: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]

    @staticmethod
    def of(file: str) -> _Index:
        """Index a tar."""
        places = list[tuple[int, int, int]]()
        with (
            fsspec.open(file, "rb") as f,
            _Tar.open(fileobj=f, mode="r:") as tar,
            contextlib.suppress(tarfile.TarError, EOFError),  # where it breaks off: `read` has said so
        ):
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                name = member.name.removeprefix("./")
                is_whole = member.isfile() and not member.issparse() and member.size <= MAX_MEMBER
                if is_whole and name.lower().endswith(SUFFIXES):
                    places.append((_digest(name), member.offset_data, member.size))
        names, offsets, sizes = zip(*places, strict=True) if places else ((), (), ())
        digests = np.array(names, np.uint64)
        order = np.argsort(digests, kind="stable")
        return _Index(digests[order], np.array(offsets, np.int64)[order], np.array(sizes, np.int32)[order])

    def place(self, name: str) -> tuple[int, int] | None:
        """Offset and size of a picture; None for a missing picture."""
        digest = np.uint64(_digest(name))
        at = int(np.searchsorted(self.names, digest, side="right")) - 1
        return (int(self.offsets[at]), int(self.sizes[at])) if at >= 0 and self.names[at] == digest else None

    @property
    def bytes(self) -> int:
        return self.names.nbytes + self.offsets.nbytes + self.sizes.nbytes


def _digest(name: str) -> int:
    """64 bits of a member's name: of the pictures of a tar no two meet by chance."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


class _Indexes:
    """Indexes of tars, the latest asked for within INDEXED_BYTES. A changed tar is another one, by its version."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, str], _Index] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def of(self, file: str, version: str) -> _Index:
        """The index of a tar."""
        with self._lock:
            if (file, version) in self._held:
                self._held.move_to_end((file, version))
                return self._held[file, version]
        index = _Index.of(file)
        with self._lock:
            if (file, version) not in self._held:
                self._held[file, version] = index
                self._bytes += index.bytes
            while self._bytes > INDEXED_BYTES and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].bytes
        return index


_INDEXES = _Indexes()
