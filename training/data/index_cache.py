"""The index of a shard: its rows and its boxes in uncompressed Arrow IPC, kept in a cache folder and memory-mapped.

Made once from the shard's Parquet, or by one pass over a plain tar. Mapped, it takes no memory of a process that grows
with the number of samples, and processes of a machine share its pages. Regions of one detector are joined by row when
their file is made, after `key` and `sha256` of every row were compared with the shard's.

    CACHE/<sha256 of the Parquet>.v1.arrow                        rows of a shard of the contract
    CACHE/<sha256 of the Parquet>-<sha256 of regions>.v1.arrow    boxes of one detector, row by row (32 digits of each)
    CACHE/tar-<sha256 of path, size, time of change>.arrow        rows of a plain tar

An index may also be made when its shard is first needed (`Shard.with_index`): a release of 650 million samples lists
65,000 shards, and to look at each of their files before the first step would take hours.

A sha256 that matches the manifest's proves that a file is the one that was published, not that its rows make sense: the
publisher may be wrong or hostile. What a worker process would stumble over in the middle of a run is refused before
rows become an index, in one line that names the file, the row and the column. Only what training reads is judged, and
kinds of texts that are not known here are let in, since a newer wenlan may have more of them.

Limits: a tar's size is compared with the manifest's, its sha256 is not (`wenlan-data verify` does that).
"""

from __future__ import annotations

import errno
import hashlib
import posixpath
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.search.rows import read_mapped, write_mapped
from data_specs.shard import REGION_SCHEMA, SHARD_SCHEMA, SOURCE_KINDS, ContractError, FileDigest, ShardFiles
from data_specs.storage.object_store import StorageError, storage_errors
from training.data.plain_tars import index_tar
from training.data.released_rows import is_text
from training.errors import first_line

GRID = "grid"
"""The detector that needs no file: boxes follow from the image's size and `data.max_boxes` alone."""

COLUMNS = ["key", "candidate_id", "source_kind", "sha256", "width", "height", "texts", "image_leader"]
COLUMNS += ["image_offset", "image_size"]
"""Columns of the contract's Parquet that an index holds."""

_CACHE_VERSION = 1
_CHANGED = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created")
"""Keys under which file systems give a file's version or time of change, the surest first."""

_TAR_VERSION = 2
"""Version of the indexes of plain tars: raised when a tar is read otherwise."""

_OF_A_TAR = "tar-"
"""Beginning of the name of a plain tar's index."""

_ROWS = pa.schema([SHARD_SCHEMA.field(name) for name in COLUMNS])
_BOXES = pa.schema([REGION_SCHEMA.field(name) for name in ("key", "sha256", "boxes")])


@dataclass(frozen=True, slots=True)
class _IndexSource:
    """Sources of a shard's index: its files, where its Parquet and the boxes lie (None for the grid)."""

    files: ShardFiles
    parquet: str
    boxes: tuple[str, FileDigest] | None


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of `size` bytes, with its index and the boxes of one detector (None for the grid).

    source: of an index that is still to be made; None once it is known to be there.
    """

    tar: str
    rows: int
    index: Path
    regions: Path | None
    size: int
    source: _IndexSource | None = None

    def with_index(self) -> Shard:
        """Returns the shard with its index in the cache: made if missing, always compared with the manifest.

        Raises ContractError: a missing or short tar, a Parquet or regions that do not match.
        """
        if self.source is None:
            return self
        files = self.source.files
        _check_size(self.tar, self.size)
        if not self.index.exists():
            _write_arrow(_read_index(self.source.parquet, files, self.tar), self.index)
        _check_count(self.source.parquet, read_index(self.index), self.rows)  # the manifest may have changed since
        if self.source.boxes is not None and self.regions is not None:
            name, digest = self.source.boxes
            if not self.regions.exists():
                _write_arrow(_read_regions(name, digest, self.index), self.regions)
            _check_count(name, read_index(self.regions), self.rows)
        return replace(self, source=None)


def without_grid_id(detector: str) -> str:
    """Returns a detector's id, but GRID for a build's grid, whose first `max_boxes` cells would be its top rows."""
    return GRID if re.fullmatch(f"{GRID}-[0-9a-f]{{12}}", detector) else detector


def shard_of(base: str, manifest: str, files: ShardFiles, detector: str, cache: Path) -> Shard:
    """A shard that `manifest` names below the folder `base`. Its files are not read before `Shard.with_index`.

    Raises ContractError for invalid names and digests, and for a shard without boxes of the detector.
    """
    tar, parquet = locate(base, manifest, files.tar), locate(base, manifest, files.parquet)
    index = cache / f"{_sha256(manifest, files.parquet)}.v{_CACHE_VERSION}.arrow"
    if detector == GRID and GRID not in files.regions:
        return Shard(tar, files.samples, index, None, files.tar.bytes, _IndexSource(files, parquet, None))
    if detector not in files.regions:
        raise ContractError(f"{manifest}: shard {files.tar.path} lacks regions of detector {detector!r}")
    digest = files.regions[detector]
    regions = cache / f"{files.parquet.sha256[:32]}-{_sha256(manifest, digest)[:32]}.v{_CACHE_VERSION}.arrow"
    boxes = locate(base, manifest, digest), digest
    return Shard(tar, files.samples, index, regions, files.tar.bytes, _IndexSource(files, parquet, boxes))


def index_plain_tar(tar: str, cache: Path) -> Shard:
    """Index of a plain tar: made by one pass over it, cached by path, size and time of change.

    Raises ContractError if the tar is missing or contains no pair.
    """
    check_regular(tar)
    name, size = _identity(tar)
    index = cache / name
    if not index.exists():
        _write_arrow(index_tar(tar, COLUMNS), index)
    return Shard(tar, read_index(index).num_rows, index, None, size)


def _identity(tar: str) -> tuple[str, int]:
    """Name of a plain tar's index, which changes when the tar does, and the tar's size in bytes."""
    fs, path = fsspec.core.url_to_fs(tar)
    with _file_errors(tar, "no such file"):
        info = fs.info(path)
    if info.get("size") is None:
        raise ContractError(f"{tar}: its server does not report the size; copy it to a disk or an object store")
    changed = next((str(info[name]) for name in _CHANGED if name in info), "")
    identity = f"{_TAR_VERSION}\n{path}\n{info['size']}\n{changed}"
    return f"{_OF_A_TAR}{hashlib.sha256(identity.encode()).hexdigest()}.arrow", int(info["size"])


def is_as_indexed(shard: Shard, size: int) -> bool:
    """True if a local tar, of `size` bytes now, is the one that its index was made of; a plain one by its time too."""
    return size == shard.size and not (
        shard.index.name.startswith(_OF_A_TAR) and _identity(shard.tar)[0] != shard.index.name
    )


def locate(base: str, manifest: str, file: FileDigest) -> str:
    """Location of a manifest's file, below the folder `base`. Raises ContractError for a path that leaves it."""
    parts = file.path.split("/")
    # "::" chains file systems for fsspec
    if ".." in parts or file.path.startswith("/") or "::" in file.path or "://" in file.path:
        raise ContractError(f"{manifest}: path {file.path!r} is outside the shard folder")
    if not file.path or "\0" in file.path or not is_text(file.path):
        raise ContractError(f"{manifest}: path {file.path!r} is not a file path")
    return posixpath.join(base, file.path)


def _sha256(manifest: str, file: FileDigest) -> str:
    """The sha256 that a manifest names for a file: it becomes the name of one in the cache, so it must be one."""
    if not re.fullmatch("[0-9a-f]{64}", file.sha256):
        raise ContractError(f"{manifest}: the sha256 of {file.path} is invalid: {file.sha256[:80]!r}")
    return file.sha256


def check_regular(name: str) -> None:
    """Raise ContractError for a local pipe, device or folder in the place of a file: reading a pipe would hang."""
    fs, path = fsspec.core.url_to_fs(name)
    if "file" not in fs.protocol:
        return
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return  # reading it says what is wrong
    if not stat.S_ISREG(mode):
        raise ContractError(f"{name}: not a regular file")


@contextmanager
def _file_errors(name: str, missing: str) -> Iterator[None]:
    """Turn errors of the file system that holds a file into a ContractError that names it: `missing` if it is gone."""
    try:
        with storage_errors(name):
            yield
    except StorageError as e:
        raise ContractError(f"{name}: {e.strerror}") from None
    except OSError:
        raise ContractError(f"{name}: {missing}") from None


_NAMED = "missing, but listed in the manifest"


def _check_size(name: str, expected: int) -> None:
    check_regular(name)
    fs, path = fsspec.core.url_to_fs(name)
    with _file_errors(name, _NAMED):
        size = fs.size(path)
    if size != expected:
        raise ContractError(f"{name}: {size} bytes, the manifest says {expected}; the tar is truncated or was replaced")


def _check_count(name: str, table: Any, samples: int) -> None:
    if table.num_rows != samples:
        raise ContractError(f"{name}: {table.num_rows} rows, the manifest says {samples}")


def read_parquet(name: str, digest: str, schema: Any) -> Any:
    """Table with the columns of `schema` from a Parquet file whose sha256 is `digest`. Raises ContractError."""
    check_regular(name)
    with _file_errors(name, _NAMED), fsspec.open(name, "rb") as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ContractError(f"{name}: its sha256 differs from the manifest; the file is damaged or was replaced")
    try:
        table = pq.read_table(pa.BufferReader(data), columns=schema.names)
    except Exception as e:  # Arrow raises many types on a damaged file, OSError and MemoryError among them
        reason = first_line(e)
        raise ContractError(f"{name}: not a Parquet file of this contract ({reason})") from None
    return cast_table(table, name, schema)


def _read_index(name: str, files: ShardFiles, tar: str) -> Any:
    table = read_parquet(name, files.parquet.sha256, _ROWS)
    _check_count(name, table, files.samples)
    check_rows(table, name)
    check_places(table, tar, files.tar.bytes)
    return table


def _read_regions(name: str, digest: FileDigest, index: Path) -> Any:
    """Boxes of one shard, after every row's key and sha256 were compared with the shard's index."""
    table = read_parquet(name, digest.sha256, _BOXES)
    shard = read_index(index)
    if table.num_rows != shard.num_rows:
        raise ContractError(f"{name}: {table.num_rows} rows for a shard of {shard.num_rows} samples")
    check_boxes(table, name)
    for column in ("key", "sha256"):
        differs = pc.not_equal(table[column], shard[column]).to_numpy(zero_copy_only=False)
        if differs.any():
            row = int(differs.argmax())
            joined, expected = table[column][row].as_py(), shard[column][row].as_py()
            raise ContractError(
                f"{name}: row {row} has {column} {joined}, the shard has {expected}; regions of another build?"
            )
    return table.select(["boxes"])


def _write_arrow(table: Any, path: Path) -> None:
    """Write one record batch, uncompressed, under a temporary name, then rename: ranks may race, all write the same.

    Raises OSError that names the file, of which nothing is left.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # a pid is not enough: hosts may share the cache
    try:
        write_mapped(temporary, table.combine_chunks())
        temporary.replace(path)
    except OSError as e:  # Arrow's names no file
        raise OSError(e.errno or errno.EIO, e.strerror or first_line(e), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_index(path: Path) -> Any:
    """Table of a file of the cache, mapped. Raises ContractError when it is damaged."""
    try:
        table = read_mapped(path)
        if not (set(COLUMNS) <= set(table.column_names) or "boxes" in table.column_names):
            raise pa.ArrowInvalid(f"columns {', '.join(table.column_names)}"[:200])
        return table
    except (pa.ArrowException, OSError) as e:
        reason = first_line(e)
        raise ContractError(f"{path}: damaged index in the cache ({reason}); delete it and it is rebuilt") from None


_SHA256 = "^[0-9a-f]{64}$"


def cast_table(table: Any, name: str, schema: Any) -> Any:
    """The table with the types of `schema`, every text of it UTF-8. Raises ContractError."""
    try:
        table.validate(full=True)
        return table if table.schema.equals(schema, check_metadata=False) else _cast(table.select(schema.names), schema)
    except (pa.ArrowException, ValueError) as e:
        raise ContractError(f"{name}: not a Parquet file of this contract ({first_line(e)[:200]})") from None


def _cast(table: Any, schema: Any) -> Any:
    for number, field in enumerate(schema):
        try:
            table = table.set_column(number, field, table[field.name].cast(field.type))
        except pa.ArrowException as e:
            raise ValueError(f"column {field.name}: {e}") from None
    return table


def check_rows(table: Any, name: str) -> None:
    """Raise ContractError that names the first row whose columns training cannot use."""
    for column in table.column_names:
        _refuse(name, column, pc.is_null(table[column]), "is missing")
    for column in ("candidate_id", "image_leader"):
        _refuse(name, column, pc.invert(pc.match_substring_regex(table[column], _SHA256)), "is not a sha256 in hex")
    known = pc.is_in(table["source_kind"], pa.array(SOURCE_KINDS, pa.string()))
    _refuse(name, "source_kind", pc.invert(known), f"is not one of {', '.join(SOURCE_KINDS)}")
    for column in ("width", "height", "image_offset", "image_size"):
        negative = pc.less(table[column], 0)
        _refuse(name, column, negative, f"is {pc.min(table[column]).as_py()}")
    _refuse(name, "texts", pc.equal(pc.list_value_length(table["texts"]), 0), "is empty")
    _check_texts(name, pc.list_flatten(table["texts"]))


def _check_texts(name: str, texts: Any) -> None:
    """Raise ContractError unless each text of any row has a kind, a text and the sha256 of its leader."""
    if texts.null_count:
        raise ContractError(f"{name}: texts contain a missing entry")
    for field in ("kind", "text", "text_leader"):
        if pc.struct_field(texts, field).null_count:
            raise ContractError(f"{name}: texts contain an entry without {field}")
    if pc.any(
        pc.invert(pc.match_substring_regex(pc.struct_field(texts, "text_leader"), _SHA256))
    ).as_py():  # None: no row
        raise ContractError(f"{name}: texts contain an entry whose text_leader is not a sha256 in hex")


def check_boxes(table: Any, name: str) -> None:
    """Raise ContractError unless the boxes of each row are groups of four numbers."""
    for column in table.column_names:
        _refuse(name, column, pc.is_null(table[column]), "is missing")
    if pc.list_flatten(table["boxes"]).null_count:
        raise ContractError(f"{name}: boxes contain a missing number")
    odd = pc.list_value_length(table["boxes"]).to_numpy() % 4 != 0
    if odd.any():
        raise ContractError(f"{name}: row {int(odd.argmax())} has boxes that are not groups of four numbers")


def check_places(table: Any, tar: str, size: int) -> None:
    """Raise ContractError if an image would end beyond the `size` bytes of its tar. No number is below 0."""
    columns: Sequence[Any] = [table[column].to_numpy().astype(np.uint64) for column in ("image_offset", "image_size")]
    end = int((columns[0] + columns[1]).max(initial=0))  # two of 63 bits: their sum fits into 64
    if end > size:
        raise ContractError(f"{tar}: {size} bytes, but its index names an image that ends at {end}")


def _refuse(name: str, column: str, wrong: Any, problem: str) -> None:
    """Raise ContractError that names the first row for which `wrong` is true."""
    rows = wrong.to_numpy()
    if rows.any():
        raise ContractError(f"{name}: row {int(rows.argmax())}: {column} {problem}")
