"""Pictures of an index: read from their storage and checked.

An index holds no picture, only where each lies: a range of a shard's tar, or a file. A takedown rewrites tars, and what
stays in them moves: then the sample is looked up by its key in the Parquet beside the tar. Bytes that are not those
that were embedded are never returned. Nor is a web address ever asked, whatever a stranger's index says.

Of a tar on an object store one request fetches a picture, and no byte more. That the store is busy, or refuses, is
another fault than that the picture is gone.
"""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.search.folder import IndexFault
from data_specs.search.rows import Row
from data_specs.storage import object_store

MOST_BYTES = 256 << 20
"""Largest size of a picture."""

_OUT_OF_RANGE = errno.EINVAL
"""s3fs's error for `InvalidRange`: a tar that has become shorter."""

_MEDIA = {b"\xff\xd8": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"BM": "image/bmp"}


class StoreFault(IndexFault):
    """An object store did not deliver a picture. denied: access was denied; otherwise a retry may succeed."""

    def __init__(self, message: str, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


def read_picture(row: Row) -> tuple[bytes, str]:
    """(bytes, media type) of the stored picture of a row.

    Raises IndexFault where the index does not know its place, the file is gone, or holds something else now;
    StoreFault where an object store does not tell.
    """
    if row.where is None or not row.has_image:
        raise IndexFault(f"{row.id}: the index does not list a picture for it")
    wanted = row.where.sha256 or row.sha256
    data = _read_range(row.where.path, row.where.offset, row.where.size)
    if hashlib.sha256(data).hexdigest() != wanted and (moved := _find_in_shard(row)) is not None:
        data = _read_range(row.where.path, *moved)
    if hashlib.sha256(data).hexdigest() != wanted:
        raise IndexFault(
            f"{row.id}: {row.where.path} no longer contains the picture that was embedded; embed the dataset again"
        )
    return data, media_type(data)


def media_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic"
    return next((kind for start, kind in _MEDIA.items() if data.startswith(start)), "application/octet-stream")


def _read_range(path: str, offset: int, size: int) -> bytes:
    if not (0 < size <= MOST_BYTES and offset >= 0):
        raise IndexFault(f"{path}: {size:,} bytes is not a valid size of a picture")
    if "://" in path and not object_store.is_object_store(path):
        raise IndexFault(f"{path}: pictures are read from disks and object stores, never from a web address")
    if "://" not in path and not Path(path).is_file():  # a pipe or a device would never end
        raise IndexFault(f"{path}: is not a file, but the index refers to a picture in it")
    try:
        if object_store.is_object_store(path):
            return _read_object(path, offset, size)
        with fsspec.open(path, "rb") as file:
            file.seek(offset)
            return bytes(file.read(size))
    except object_store.StorageError as e:
        raise StoreFault(f"{path}: {e.strerror}", denied=e.errno == errno.EACCES) from None
    except (OSError, ImportError, ValueError) as e:
        problem = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise IndexFault(f"{path}: cannot be read ({problem}), but the index refers to a picture in it") from None


def _read_object(url: str, offset: int, size: int) -> bytes:
    """A range of an object, by one request; what there is of it where the object ends before it."""
    with object_store.storage_errors(url):
        fs, path = fsspec.url_to_fs(url)
        try:
            return bytes(fs.cat_file(path, start=offset, end=offset + size))
        except OSError as e:
            if e.errno != _OUT_OF_RANGE:
                raise
            return b""


def _find_in_shard(row: Row) -> tuple[int, int] | None:
    """(offset, size) of a sample's picture in its shard as it is now; None if the shard does not have it."""
    assert row.where is not None
    beside = row.where.path.removesuffix(".tar") + ".parquet"
    if beside == f"{row.where.path}.parquet":
        return None
    try:
        with object_store.storage_errors(beside), fsspec.open(beside, "rb") as file:
            columns = ["key", "image_offset", "image_size"]
            found: list[dict[str, Any]] = pq.read_table(
                file, columns=columns, filters=[("key", "=", row.id)]
            ).to_pylist()
    except object_store.StorageError as e:
        raise StoreFault(f"{beside}: {e.strerror}", denied=e.errno == errno.EACCES) from None
    except (OSError, ImportError, ValueError, pa.ArrowInvalid):
        return None
    return (found[0]["image_offset"], found[0]["image_size"]) if found else None
