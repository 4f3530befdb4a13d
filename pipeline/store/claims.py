"""Who is computing what: several builds at once over the same images do each image's work once.

    FOLDER/_claims/<id>      the first 64 bits of the keys that a worker is at; the worker holds a lock on the file

A worker claims the keys that it is about to compute and gets those that nobody else is at. When its own are in the
cache, it waits for the others to come in, or for their worker to die: a lock goes with its process, so that `kill -9`
leaves nothing that has to be cleaned up by hand.

Limits: file locks, good for one machine or a shared disk that honours flock. On an object store nothing is claimed, and
builds at once may compute the same image; the cache is right all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.files.folder import Folder

HEAD = 16
"""Hex digits of a key that are written down: should two keys begin alike, one waits for nothing and is done after."""


@contextlib.contextmanager
def claim(folder: Folder, keys: set[str]) -> Iterator[set[str]]:
    """Hold a claim on those of the keys (hex) that no live worker has claimed, and give them. Take what is given,
    compute it, put it into the cache, and only then leave."""
    if not folder.is_local or not keys:
        yield set(keys)
        return
    place = Path(folder.at("_claims"))
    place.mkdir(parents=True, exist_ok=True)
    mine = place / uuid.uuid4().hex
    with mine.open("wb") as held:
        try:
            with (place / "_lock").open("wb") as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                taken = _taken(place, but=mine.name)
                free = {key for key in keys if key[:HEAD] not in taken}
                fcntl.flock(held, fcntl.LOCK_EX)
                held.write("".join(key[:HEAD] for key in free).encode())
                held.flush()
            yield free
        finally:
            mine.unlink(missing_ok=True)


def _taken(place: Path, but: str) -> set[str]:
    """Heads of all keys that live workers have claimed; what a dead one left is removed. Call with the gate held."""
    found = set[str]()
    for path in place.iterdir():
        if path.name in ("_lock", but):
            continue
        with contextlib.suppress(FileNotFoundError), path.open("rb") as f:
            if _is_held(f):
                heads = f.read().decode()
                found.update(heads[i : i + HEAD] for i in range(0, len(heads), HEAD))
            else:
                path.unlink(missing_ok=True)
    return found


def _is_held(f: BinaryIO) -> bool:
    try:
        fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
