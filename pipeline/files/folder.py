"""A folder on the local disk or behind a URL, with atomic writes: a file appears whole or not at all.

Every path of the pipeline goes through here, so that a build on a disk and one on an object store run the same code: on
a disk a finished file is renamed into place, elsewhere it is uploaded by one PUT, or in parts if it is large. What is
particular to object stores (credentials, patience, writes on a condition) is the business of
`data_specs.storage.object_store`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa

from data_specs.errors import SpecError
from data_specs.storage import object_store
from data_specs.storage.credentials import credentials_in
from data_specs.storage.object_store import StorageError, storage_errors
from data_specs.storage.store_lock import LockedError, check_locks, locked
from data_specs.storage.whole_files import exclusive, umask
from pipeline.errors import StoreError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or of a user's share of one, that is full."""

SMALL = 1 << 20
"""Bytes up to which a file of an object store is read whole: to look at a part of it takes five requests."""

MAKE_ROOM = "free some space and run the same command again: committed work is kept"
"""Advice for a full disk."""


class Folder:
    """A folder on the local disk or behind any URL that fsspec opens. Picklable; opens nothing until used.

    Raises SpecError for a URL with credentials in it: it would be written into records. Methods raise StoreError.
    """

    def __init__(self, url: str) -> None:
        if why := credentials_in(url):
            raise SpecError([why])
        url = url.removeprefix("file://")
        self.url = url.rstrip("/") if "://" in url else _absolute_path(url)

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
        with self._storage_errors(name):
            fs, path = fsspec.url_to_fs(self.at(name))
            return bool(fs.exists(path))

    def size(self, name: str) -> int:
        """Bytes of a file, -1 if missing. Nothing of it is read."""
        with self._storage_errors(name):
            fs, path = fsspec.url_to_fs(self.at(name))
            try:
                return int(fs.size(path))
            except (FileNotFoundError, NotADirectoryError):
                return -1

    def names(self) -> list[str]:
        """Returns names of the folder's entries, sorted; empty for a missing folder. Raises StoreError."""
        try:
            with self._storage_errors(""):
                return object_store.names(self.url)
        except OSError as e:
            raise StoreError(self.url, f"cannot be read ({e.strerror or type(e).__name__})") from e

    def read(self, name: str) -> bytes:
        """The whole content of a (small) file. Raises StoreError that names it."""
        try:
            return self._read_bytes(name)
        except OSError as e:
            raise StoreError(self.at(name), f"cannot be read ({e.strerror or type(e).__name__})") from e

    def find(self, name: str) -> bytes | None:
        """The whole content of a (small) file, None if missing: one request, where `exists` and `read` are two.

        Raises StoreError that names it.
        """
        try:
            with self._storage_errors(name):
                return self._read_bytes(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise StoreError(self.at(name), f"cannot be read ({e.strerror or type(e).__name__})") from e

    def _read_bytes(self, name: str) -> bytes:
        if self.is_local:  # a build has thousands of records
            return Path(self.at(name)).read_bytes()
        return object_store.content(self.at(name))

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """A file open for reading at any position, without a copy of the whole. Raises StoreError that names it.

        Arrow opens what lies on a disk: its threads then need nothing of Python, which may be ending meanwhile.
        """
        try:
            with storage_errors(self.at(name)):
                fs, path = fsspec.url_to_fs(self.at(name))
                with pa.OSFile(path) if self.is_local else fs.open(path, "rb", block_size=1 << 20) as f:
                    yield f
        except OSError as e:
            raise StoreError(self.at(name), f"cannot be read ({e.strerror or type(e).__name__})") from e

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on; fewer if it ends before that. Raises StoreError that names it."""
        try:
            with storage_errors(self.at(name)):
                fs, path = fsspec.url_to_fs(self.at(name))
                return bytes(fs.cat_file(path, start=offset, end=offset + size))
        except OSError as e:
            raise StoreError(self.at(name), f"cannot be read ({e.strerror or type(e).__name__})") from e

    def read_json(self, name: str) -> Any:
        return self._parse_json(name, self.read(name))

    def find_json(self, name: str, otherwise: Any) -> Any:
        """Returns the value of a JSON file, `otherwise` for a missing one. Raises StoreError that names it."""
        data = self.find(name)
        return otherwise if data is None else self._parse_json(name, data)

    def _parse_json(self, name: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as e:
            raise StoreError(self.at(name), f"invalid JSON ({e})") from None

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
            raise StoreError(self.at(name), f"cannot be written ({self._why_not_writable(e)}){hint}") from e
        finally:
            if scratch:
                Path(scratch).unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")

    def take(self, local: Path, name: str, private: bool = False) -> None:
        """Move a finished local file into the folder under its final name, with the mode that the umask asks for.

        private: for its owner's eyes only.
        """
        if self.is_local:
            target = Path(self.at(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            local.chmod(0o600 if private else 0o666 & ~umask())
            local.replace(target)
            return
        with self._while_locked(name):
            fs, path = fsspec.url_to_fs(self.at(name))
            if not object_store.is_object_store(self.url):  # which has no folders
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(local), path)
        local.unlink()

    def share(self, local: Path, name: str) -> None:
        """Put a local file that never changes into the folder: by a hard link on the same disk, else by a copy."""
        if self.is_local:
            link = Path(self.scratch()) / f".tmp-{uuid.uuid4().hex}"
            try:
                link.hardlink_to(local)
                with link.open("rb") as f:
                    os.fsync(f.fileno())
                self.take(link, name)
                return
            except OSError:  # another disk, or one without links
                pass
            finally:
                link.unlink(missing_ok=True)  # a rename to another link of the same file does nothing
        with self.making(name) as f, local.open("rb") as source:
            shutil.copyfileobj(source, f, 1 << 20)

    def move(self, name: str, to: str) -> None:
        """Rename a file of the folder, replacing a file of that name: atomic on a disk, copy and delete elsewhere."""
        if self.is_local:
            target = Path(self.at(to))
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(self.at(name)).replace(target)
            return
        with self._while_locked(name):
            fs, path = fsspec.url_to_fs(self.at(name))
            _, target = fsspec.url_to_fs(self.at(to))
            fs.cp_file(path, target)
            fs.rm_file(path)

    def delete(self, name: str) -> None:
        """Delete a file or a whole folder; nothing happens if there is none."""
        with self._while_locked(name):
            object_store.delete(self.at(name))

    def delete_files(self, names: Sequence[str]) -> None:
        """Delete files of the folder, by few requests; nothing happens for one that is not there."""
        with self._while_locked(""):
            object_store.delete_files(self.url, names)

    @contextlib.contextmanager
    def emptied_on_failure(self) -> Iterator[None]:
        """Fill a folder that holds nothing yet: if the block fails, what it wrote is deleted, as far as that works."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(StoreError, OSError):
                for name in self.names():
                    self.delete(name)
            raise

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local path of a file: its own on a disk, elsewhere that of a copy that is deleted afterwards."""
        if self.is_local:
            yield Path(self.at(name))
            return
        with tempfile.TemporaryDirectory(prefix="wenlan-") as scratch:
            copy = Path(scratch) / Path(name).name
            with self._storage_errors(name):
                fs, path = fsspec.url_to_fs(self.at(name))
                fs.get_file(path, str(copy))
            yield copy

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """(content, version) of a small file, for `replace`; None if missing."""
        if self._has_versions():
            with self._storage_errors(name):
                return object_store.read(self.at(name))
        data = self.find(name)
        return None if data is None else (data, "")

    def replace(self, name: str, data: bytes, version: str | None) -> None:
        """Write a file that is still of the version that was read; None: that was not there.

        Raises StoreError if another process wrote it since. Without versions (on a disk, where the caller
        holds a lock) it is written in any case.
        """
        if version == "" or not self._has_versions():
            self.write(name, data)
            return
        url = self.at(name)
        with self._while_locked(name):
            written = object_store.create(url, data) if version is None else object_store.replace(url, data, version)
        if not written:
            raise StoreError(url, "changed by another process in the meantime; run the same command again")

    def _has_versions(self) -> bool:
        with self._storage_errors(""):
            return object_store.is_object_store(self.url) and object_store.is_conditional(self.at("_lock"))

    @contextlib.contextmanager
    def _storage_errors(self, name: str) -> Iterator[None]:
        """Faults of an object store as a StoreError that names the file; those of a disk stay as they are."""
        try:
            with storage_errors(self.url):
                yield
        except StorageError as e:
            raise StoreError(self.at(name).rstrip("/"), f"cannot be reached: {e.strerror}") from e

    @contextlib.contextmanager
    def _while_locked(self, name: str) -> Iterator[None]:
        """The same around a change, before which no lock may be lost."""
        with self._storage_errors(name):
            check_locks()
            yield

    @contextlib.contextmanager
    def locked(self, wait_s: float, fault: Callable[[str], StoreError]) -> Iterator[None]:
        """Hold the folder's file `_lock`, as one process at a time; on an object store by `store_lock`.

        Raises what `fault` makes of the words "is held by ..." after wait_s seconds, StoreError for a folder that is
        not writable.
        """
        with contextlib.ExitStack() as held:  # what the block raises is none of these
            try:
                lock = exclusive(Path(self.at("_lock")), wait_s) if self.is_local else locked(self.at("_lock"), wait_s)
                held.enter_context(lock)
            except BlockingIOError:
                raise fault("is held by another process") from None
            except LockedError as e:
                raise fault(e.strerror or "") from None
            except StorageError:
                raise
            except OSError as e:
                raise StoreError(self.url, f"cannot be written ({self._why_not_writable(e)})") from e
            yield

    def _why_not_writable(self, error: OSError) -> str:
        """Why the folder is not writable, in words: mkdir says `File exists` of a link that leads nowhere."""
        place = Path(self.url)
        for folder in (place, *place.parents) if self.is_local else ():
            if folder.is_symlink() and not folder.exists():
                return (
                    f"{folder} is a link to {folder.readlink()}, which does not exist; create that or remove the link"
                )
        return error.strerror or str(error)

    def scratch(self) -> str:
        """A local folder for unfinished files, on the same disk as this folder if that is local: a rename suffices."""
        if not self.is_local:
            return tempfile.gettempdir()
        Path(self.url).mkdir(parents=True, exist_ok=True)
        return self.url


def _absolute_path(path: str) -> str:
    """A path as it is spelled, but without `..`, which notes of it would carry out of the folder they are relative to.

    The real path where `..` follows a link.
    """
    spelled = str(Path(path).absolute())
    if ".." not in spelled.split("/"):
        return spelled
    plain, real = os.path.normpath(spelled), os.path.realpath(spelled)
    return plain if os.path.realpath(plain) == real else real


_SAME = {"s3a": "s3", "gcs": "gs"}
"""Schemes under another name."""


def place_of(url: str) -> str:
    """The real place of a folder or file: the same for each path that leads there, through links and `..`.

    For comparing alone: a folder is opened and noted as it is spelled, since a link may lead elsewhere one day. A
    doubled slash in a store is another key.
    """
    url = Folder(url).url
    scheme, separator, rest = url.partition("://")
    if not separator:
        return os.path.realpath(url)
    return f"{_SAME.get(scheme.lower(), scheme.lower())}://{rest}"


def root_of(url: str) -> str:
    """The folder in which a folder lies: the one to which `..` leads from there, where links lead too."""
    folder = Folder(url)
    above, real = folder.url.rpartition("/")[0], os.path.realpath(folder.url).rpartition("/")[0]
    if folder.is_local:
        return (above if os.path.realpath(above or "/") == (real or "/") else real) or "/"
    return above if not above.endswith(":/") else folder.url


def noted_in(root: str, place: str) -> str:
    """A path or URL relative to a folder in which it lies, so that both can be moved together; else as it is."""
    spelled = Folder(place).url
    for own, above in ((spelled, root.rstrip("/")), (place_of(spelled), place_of(root).rstrip("/"))):
        if f"{own}/".startswith(f"{above}/"):
            return own[len(above) + 1 :] or "."
    return spelled


def place_in(root: str, noted: str) -> str:
    """The path or URL of which `noted_in` has returned `noted`."""
    if noted == ".":
        return root
    return noted if noted.startswith("/") or "://" in noted else f"{root.rstrip('/')}/{noted}"


def read_url(url: str) -> bytes:
    """The whole content of a (small) file. Raises FileNotFoundError, or StoreError that names the file."""
    folder, _, name = url.rpartition("/")
    data = Folder(folder).find(name)
    if data is None:
        raise FileNotFoundError(url)
    return data
