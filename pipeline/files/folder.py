"""A folder on the local disk or behind a URL, in which a file appears whole or not at all.

Every path of the pipeline goes through here, so that a build on a disk and one on an object store run the same code: on
a disk a finished file is renamed into place, elsewhere it is uploaded by one PUT. Credentials are fsspec's business
(environment, profiles).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import fsspec

from pipeline.errors import StoreError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or of a user's share of one, that is full."""

MAKE_ROOM = "make room and run the same command again: what is committed stays"
"""What to do about a full disk."""


class Folder:
    """A folder on the local disk or behind any URL that fsspec opens. Picklable; opens nothing until used."""

    def __init__(self, url: str) -> None:
        url = url.removeprefix("file://")
        self.url = url.rstrip("/") if "://" in url else str(Path(url).absolute())

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    def at(self, name: str) -> str:
        """Path or URL of a file in the folder."""
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        fs, path = fsspec.url_to_fs(self.at(name))
        return bool(fs.exists(path))

    def names(self) -> list[str]:
        """Names of the entries of the folder, sorted; empty if there is no such folder."""
        fs, path = fsspec.url_to_fs(self.url)
        fs.invalidate_cache(path)
        try:
            entries = fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in entries)

    def read(self, name: str) -> bytes:
        """The whole content of a (small) file. Raises StoreError that names it."""
        try:
            with fsspec.open(self.at(name), "rb") as f:
                return bytes(f.read())
        except OSError as e:
            raise StoreError(self.at(name), f"cannot be read ({e.strerror or type(e).__name__})") from e

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """A file open for reading at any position, without a copy of the whole. Raises StoreError that names it."""
        fs, path = fsspec.url_to_fs(self.at(name))
        try:
            with fs.open(path, "rb", block_size=1 << 20) as f:
                yield f
        except OSError as e:
            raise StoreError(self.at(name), f"cannot be read ({e.strerror or type(e).__name__})") from e

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on; fewer if it ends before that. Raises StoreError that names it."""
        fs, path = fsspec.url_to_fs(self.at(name))
        try:
            return bytes(fs.cat_file(path, start=offset, end=offset + size))
        except OSError as e:
            raise StoreError(self.at(name), f"cannot be read ({e.strerror or type(e).__name__})") from e

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as e:
            raise StoreError(self.at(name), f"is not JSON ({e})") from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file that readers see whole or not at all."""
        with self.making(name) as f:
            f.write(data)

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to. It appears under its name when the block ends, and not at all if the block fails.

        Raises StoreError that names it where the disk is full or the folder is not writable.
        """
        scratch = ""
        try:
            with tempfile.NamedTemporaryFile(dir=self.scratch(), prefix=".tmp-", delete=False) as f:
                scratch = f.name
                yield cast(BinaryIO, f)
                f.flush()
                os.fsync(f.fileno())
            self.take(Path(scratch), name)
        except OSError as e:
            hint = f"; {MAKE_ROOM}" if e.errno in DISK_FULL else ""
            raise StoreError(self.at(name), f"cannot be written ({e.strerror or e}){hint}") from e
        finally:
            if scratch:
                Path(scratch).unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")

    def take(self, local: Path, name: str, private: bool = False) -> None:
        """Move a finished local file into the folder under its final name. private: for its owner's eyes only."""
        if self.is_local:
            target = Path(self.at(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            local.chmod(0o600 if private else 0o644)
            local.replace(target)
            return
        fs, path = fsspec.url_to_fs(self.at(name))
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(local), path)
        local.unlink()

    def move(self, name: str, to: str) -> None:
        """Rename a file of the folder, replacing a file of that name: atomic on a disk, copy and delete elsewhere."""
        if self.is_local:
            target = Path(self.at(to))
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(self.at(name)).replace(target)
            return
        fs, path = fsspec.url_to_fs(self.at(name))
        _, target = fsspec.url_to_fs(self.at(to))
        fs.copy(path, target)
        fs.rm(path)

    def delete(self, name: str) -> None:
        """Delete a file or a whole folder; nothing happens if there is none."""
        fs, path = fsspec.url_to_fs(self.at(name))
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local path of a file: its own on a disk, elsewhere that of a copy that is deleted afterwards."""
        if self.is_local:
            yield Path(self.at(name))
            return
        with tempfile.TemporaryDirectory(prefix="wenlan-") as scratch:
            fs, path = fsspec.url_to_fs(self.at(name))
            copy = Path(scratch) / Path(name).name
            fs.get_file(path, str(copy))
            yield copy

    def lock_file(self) -> IO[str]:
        """The file `_lock` of a local folder, open, for flock; both are made where they are missing.

        Raises StoreError that names the folder where it is not writable.
        """
        try:
            Path(self.url).mkdir(parents=True, exist_ok=True)
            return Path(self.at("_lock")).open("a")
        except OSError as e:
            raise StoreError(self.url, f"cannot be written ({e.strerror or e})") from e

    def scratch(self) -> str:
        """A local folder for unfinished files, on the same disk as this folder if that is local: a rename suffices."""
        if not self.is_local:
            return tempfile.gettempdir()
        Path(self.url).mkdir(parents=True, exist_ok=True)
        return self.url


def read_url(url: str) -> bytes:
    """The whole content of a (small) file. Raises FileNotFoundError, or StoreError that names the file."""
    folder, _, name = url.rpartition("/")
    try:
        return Folder(folder).read(name)
    except StoreError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            raise FileNotFoundError(url) from None
        raise


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex, read in blocks of 1 MiB."""
    with path.open("rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
