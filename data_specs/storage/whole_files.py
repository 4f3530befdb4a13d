"""Files that readers see whole or not at all, and locks of this machine's processes, on local disks.

A killed process leaves a temporary file, never half of what readers look for. Files have the mode that the umask asks
for. Object stores: `data_specs.storage.object_store` and `store_lock`.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_ASKING = threading.Lock()


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A temporary path that takes the name `out` when the block ends, flushed; deleted if it fails. Raises OSError.

    `.NAME.tmp`, the same each time: one process writes a file at a time, and the next does away with what a killed one
    left.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask())  # libraries write some files for their owner alone
        flush(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(place: Path, wait_s: float = math.inf) -> Iterator[None]:
    """Waits until no other process is in such a block of `place`: a folder, or a file, which is made and stays.

    Raises BlockingIOError where another one is for longer than `wait_s`.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + wait_s
        while wait_s < math.inf:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_locked(file: IO[Any]) -> bool:
    """True if another process holds the lock of an open file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system, or another disk, allows no link."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def flush(path: Path) -> None:
    """Writes a file's content, or a folder's names, through to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """The umask of the process; reading it sets it briefly, to the strictest one."""
    with _ASKING:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def sha256_of(path: Path) -> str:
    with path.open("rb", buffering=0) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
