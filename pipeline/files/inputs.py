"""Input files that a source names by path, URL or glob: expansion of names, and a token that changes with a file.

Everything goes through fsspec, so that a disk and an object store are read alike. Limits: a plain http URL cannot be
listed, so globs need a disk, s3, gs or the like; `pipe:` and other addresses that run a command are not files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import fsspec
import fsspec.compression

from data_specs.build import resolve_path
from data_specs.storage import object_store
from data_specs.storage.object_store import storage_errors
from pipeline.errors import SourceError

_MAGIC, _WEB = "*?[", ("http://", "https://")


def _open_zstd(file: Any, mode: str = "rb", **options: Any) -> Any:
    """A zstd file as its content, all its frames in a row."""
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


# fsspec knows zstd only where zstandard is installed, takes the bytes for the text elsewhere, and ends at a first frame
fsspec.compression.register_compression("zstd", _open_zstd, "zst", force=True)


def no_damage(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns errors of disks and servers, not of a file's content, and `more`, for an `except` clause.

    Only loaded clients are asked, since no other can have raised: importing aiohttp takes 0.2 s.
    """
    aiohttp, botocore = sys.modules.get("aiohttp"), sys.modules.get("botocore.exceptions")
    of_clients = [aiohttp.ClientError] if aiohttp is not None else []
    of_clients += [botocore.BotoCoreError] if botocore is not None else []
    return (OSError, *of_clients, asyncio.TimeoutError, *more)


def faults(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Exceptions of fsspec whose cause is the file or its server, and not our code, and `more`."""
    return no_damage(EOFError, zlib.error, lzma.LZMAError, *more)


MAX_LINE = 1 << 20
"""Characters of a line that are read; a table's row, in JSON or CSV, has a thousandth of it."""


class LongLine(ValueError):
    """A line of more than MAX_LINE characters. The next line can be read. size: of the line, in bytes."""

    size = 0


def size_of_line(line: str | LongLine, encoding: str) -> int:
    """Bytes of a line in a codec, without a byte order mark."""
    codec = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(encoding, encoding)
    return line.size if isinstance(line, LongLine) else len(line.encode(codec, "replace"))


class Lines(Iterator[str]):
    """Lines of a text file, of which none is held in memory whole that is longer than MAX_LINE.

    `next` raises LongLine for such a line and goes on behind it when it is called again.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) <= MAX_LINE:
            return line
        fault, encoding = LongLine(f"a line of more than {MAX_LINE:,} characters"), self._file.encoding or "utf-8"
        fault.size = size_of_line(line, encoding)
        while line and not line.endswith(("\n", "\r")):
            line = self._file.readline(MAX_LINE)
            fault.size += size_of_line(line, encoding)
        raise fault

    def numbered(self) -> Iterator[tuple[int, str | LongLine]]:
        """(number from 1, line, or what it raised) of each line."""
        number = 0
        while True:
            number += 1
            try:
                yield number, next(self)
            except StopIteration:
                return
            except LongLine as e:
                yield number, e


def expand(paths: tuple[str, ...], source: str, base: str = "") -> list[str]:
    """The files that paths and globs name, each once; sorted within each glob. `source` is named in the message.

    base: folder that relative ones start from. A path that names a file is not a glob, whatever is in it: 表[1].csv, or
    the name of a folder above. Raises SourceError for a path that is missing, is a folder or cannot be looked at, and
    for a glob without a match.
    """
    return list(dict.fromkeys(file for path in paths for file in _expand(path, source, base)))


def has_globs(paths: Iterable[str]) -> bool:
    """True if one of the paths is a glob, which may match other files tomorrow."""
    return any(_is_glob(path) for path in paths)


def _is_glob(written: str) -> bool:
    return any(c in written for c in _MAGIC) and not written.startswith(_WEB)


def _file_exists(fs: Any, path: str) -> bool:
    """True if a file system has a file of this name; False for a store that denies access to a name that it lacks.

    S3 does so for keys that may list some prefixes only: a glob below those works.
    """
    try:
        return bool(fs.exists(path))
    except PermissionError:
        return False


def _expand(written: str, source: str, base: str) -> list[str]:
    path = resolve_path(base, written)
    try:
        object_store.prepare_client(path.partition("://")[0])
        fs, inner = fsspec.url_to_fs(path)
        if not _is_glob(written) or path.startswith(_WEB) or _file_exists(fs, inner):
            if fs.info(inner)["type"] == "directory":
                raise SourceError(path, f"source {source}: is a folder; expected a file or a glob")
            return [path]
        _, pattern = fsspec.url_to_fs(resolve_path(glob.escape(base), written))
        names = sorted(
            {str(name) for name in fs.glob(pattern) if not fs.isdir(name)}.union(_glob_with_links(fs, pattern))
        )
    except object_store.client_errors(*faults(), ValueError, ImportError) as e:
        raise SourceError(path, f"source {source}: {_why_absent(e)}") from None
    if not names:
        raise SourceError(path, f"source {source}: no file matches")
    return [str(fs.unstrip_protocol(name)) if "://" in path else name for name in names]


def _glob_with_links(fs: Any, pattern: str) -> list[str]:
    """Returns a glob's matches on a disk, below linked folders too, which fsspec skips.

    With `**` it may match the same files without end, by a link that leads up.
    """
    if not getattr(fs, "local_file", False) or "**" in pattern:
        return []
    return [name for name in glob.glob(pattern) if not Path(name).is_dir()]  # noqa: PTH207  (a pattern, and no folder)


def listed(path: str, source: str) -> list[str]:
    """The lines of a file that names others, one per line, plain or gzipped. Raises SourceError."""
    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as f:
            lines = [line.strip() for line in f]
    except faults(ValueError) as e:
        raise SourceError(path, f"source {source}: cannot be read ({reason(e)})") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise SourceError(path, f"source {source}: lists no files")
    return lines


def writable(name: str) -> str:
    """A file's name with escapes for bytes that are not UTF-8: of a zip that a Chinese Windows packed each is GBK."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def version(file: str) -> list[Any]:
    """A value that changes with a file: its name, size, and time or ETag; of a link that leads nowhere size 0.

    Raises SourceError.
    """
    try:
        fs, inner = fsspec.url_to_fs(file)
        if getattr(fs, "local_file", False) and Path(inner).is_symlink() and not Path(inner).exists():
            return [writable(file.rpartition("/")[2]), 0, DANGLING]
        info = fs.info(inner)
    except object_store.client_errors(*faults(), ValueError) as e:
        raise SourceError(file, _why_absent(e)) from None
    mark = next((info[k] for k in ("ETag", "etag", "mtime", "LastModified", "updated") if info.get(k)), "")
    return [writable(file.rpartition("/")[2]), info.get("size"), str(mark)]


DANGLING = "a link to a file that does not exist"


def emptiness(file: str) -> str:
    """Why a file has no content, as a noun phrase; "" for one that has some. Raises SourceError."""
    _, size, mark = version(file)
    return "" if size != 0 else DANGLING if mark == DANGLING else "an empty file"


Listing = dict[str, tuple[int, str]]
"""Path of a file relative to a folder -> (size, time or ETag)."""


def files_below(folder: str) -> Listing:
    """All files below a folder, by its path or URL. Raises SourceError if the folder is missing, or one in it cannot
    be looked into."""
    try:
        with storage_errors(folder):
            fs, root = fsspec.url_to_fs(folder)
            if not fs.isdir(root):
                raise SourceError(folder, "no such folder")
            if getattr(fs, "local_file", False):
                return _files_on_disk(str(root))
            files = fs.find(root, detail=True)
    except object_store.StorageError as e:
        raise SourceError(folder, f"cannot be listed: {e.strerror}") from None
    except (OSError, ValueError, ImportError) as e:
        raise SourceError(folder, f"cannot be listed ({e or type(e).__name__})") from None
    start = len(str(root).rstrip("/"))
    return {
        str(name)[start:].lstrip("/"): (
            int(info.get("size") or 0),
            str(next((info[k] for k in ("ETag", "etag", "mtime", "LastModified") if info.get(k)), "")),
        )
        for name, info in files.items()
    }


def _files_on_disk(root: str) -> Listing:
    """All files below a folder of a disk. fsspec would pass over folders that it cannot read, and those behind links.

    Each folder is looked into once, by its own path if it has one below `root`. Raises OSError.
    """
    listing: Listing = {}
    seen: set[tuple[int, int]] = set()
    waiting, linked = [""], list[str]()  # folders by their path in `root`
    while waiting or linked:
        if not waiting:
            linked.sort(reverse=True)
        prefix = (waiting or linked).pop()
        try:
            about = os.stat(f"{root}/{prefix}")  # noqa: PTH116  (of a million folders)
            if (about.st_dev, about.st_ino) in seen:
                continue
            entries = os.scandir(f"{root}/{prefix}")
        except FileNotFoundError:
            if not prefix:
                raise
            continue  # it went meanwhile
        seen.add((about.st_dev, about.st_ino))
        with entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif entry.is_symlink() and _is_folder(entry):
                    linked.append(f"{name}/")
                else:
                    with contextlib.suppress(FileNotFoundError):
                        listing[name] = _size_and_time(entry)
    return listing


def _is_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # it leads to itself
        return False


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, str]:
    """Returns size and time of a file; of a link its target's size, 0 without a target, and its own time."""
    own = entry.stat(follow_symlinks=False)
    size = own.st_size
    if entry.is_symlink():
        try:
            size = entry.stat().st_size
        except OSError:
            size = 0
    return size, str(own.st_mtime or "")


MAX_FILE = 1 << 30
"""Bytes of a file that is read whole: far more than a picture has, and less than a worker's memory."""


def content(folder: str, name: str, most: int = MAX_FILE) -> bytes:
    """The whole content of a file below a folder, by the path or URL of that and the file's name.

    The name is not part of a URL, in which `::` has a meaning. Raises StorageError for a store or a disk that fails,
    OSError for a file that is not there, and ValueError for one that may not be read, has more than `most` bytes, or
    never ends: a pipe, a device.
    """
    with storage_errors(folder):
        fs, root = fsspec.url_to_fs(folder)
        path = f"{str(root).rstrip('/')}/{name}"
        if getattr(fs, "local_file", False):
            return _content_on_disk(fs, path, most)
        with fs.open(path, "rb") as f:
            data = bytes(f.read(most + 1))
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data


def first_bytes(folder: str, name: str, size: int) -> bytes:
    """The first bytes of a file below a folder, as `content` finds it; b"" for one that is gone or may not be read.

    size: at most that of the file, since a store refuses a range of an empty one. Raises StorageError for a store or a
    disk that fails.
    """
    if not size:
        return b""
    with storage_errors(folder):
        fs, root = fsspec.url_to_fs(folder)
        path = f"{str(root).rstrip('/')}/{name}"
        try:
            if not getattr(fs, "local_file", False):
                return bytes(fs.cat_file(path, 0, size))
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.read(number, size)
            finally:
                os.close(number)
        except OSError as e:
            if e.errno in (*_ABSENT, errno.EACCES, errno.EPERM, errno.ENXIO) or isinstance(e, FileNotFoundError):
                return b""
            raise object_store.StorageError(path, e.strerror or str(e), e.errno or errno.EIO) from e


def _content_on_disk(fs: Any, path: str, most: int) -> bytes:
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("not a regular file")
        if about.st_size > most:
            raise ValueError(f"more than {most:,} bytes")
        with fs.open(path, "rb") as f:
            return bytes(f.read())
    except OSError as e:
        if e.errno in _ABSENT:
            raise
        if e.errno in (errno.EACCES, errno.EPERM):
            raise ValueError(e.strerror) from None
        raise object_store.StorageError(path, e.strerror or str(e), e.errno or errno.EIO) from e


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors that say that a disk lacks the file; others are ambiguous."""


def reason(e: BaseException) -> str:
    """An exception as one short line; the status if it is an HTTP response."""
    if isinstance(e, object_store.client_errors()) or (isinstance(e, PermissionError) and not e.filename):
        return object_store.reason(e)  # of a store
    status = getattr(e, "status", 0)
    line = f"status {status}" if status else getattr(e, "strerror", "") or str(e)
    return " ".join(line.split())[:200] or type(e).__name__


def _why_absent(e: BaseException) -> str:
    """Why a file cannot be looked at. fsspec reports every failure of a web server as a missing file with a cause."""
    if isinstance(e, FileNotFoundError) and e.__cause__ is None:
        return "no such file"
    return f"cannot be accessed ({reason(e.__cause__ or e)})"
