"""Claims: concurrent builds over the same images compute each image only once.

    FOLDER/_claims/<id>      the first 64 bits of the keys that a worker is computing, while it holds a lock on the file
    FOLDER/_claims/_lock     is locked while a claim is made

A worker claims the keys that it is about to compute and is granted those that no other worker has claimed. When its own
are in the cache, it waits for the others to appear there, or for their worker to die: the operating system releases the
lock of a process that ends, so that `kill -9` leaves nothing that has to be cleaned up by hand.

Limits: file locks work on one machine, or on a shared disk that honours flock. On an object store nothing is claimed,
and concurrent builds may compute the same image twice; the cache is correct all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from pathlib import Path

from data_specs.storage.whole_files import is_locked
from pipeline.files.folder import Folder

HEAD = 16
"""Hex digits of a key that a claim holds. Of two keys that begin alike one waits needlessly, and is computed after."""


@contextlib.contextmanager
def claim(folder: Folder, keys: set[str]) -> Iterator[set[str]]:
    """Claim those of the keys (hex) that no live worker has claimed, as long as the block runs; yields those keys.

    The caller computes them and puts them into the cache before it leaves the block.
    """
    if not folder.is_local or not keys:
        yield set(keys)
        return
    place = Path(folder.at("_claims"))
    place.mkdir(parents=True, exist_ok=True)
    mine = place / uuid.uuid4().hex
    with contextlib.ExitStack() as held:
        with (place / "_lock").open("wb") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            claimed = _claimed(place)
            free = {key for key in keys if key[:HEAD] not in claimed}
            # not before the gate is locked: who holds that takes a claim without a lock for a dead worker's
            own_claim = held.enter_context(mine.open("wb"))
            held.callback(mine.unlink, missing_ok=True)
            fcntl.flock(own_claim, fcntl.LOCK_EX)
            own_claim.write("".join(key[:HEAD] for key in free).encode())
            own_claim.flush()
        yield free


def _claimed(place: Path) -> set[str]:
    """Heads of all keys that live workers have claimed; removes files of dead ones. Call while the gate is locked."""
    claimed = set[str]()
    for path in place.iterdir():
        if path.name == "_lock":
            continue
        with contextlib.suppress(FileNotFoundError), path.open("rb") as f:
            if is_locked(f):
                heads = f.read().decode()
                claimed.update(heads[i : i + HEAD] for i in range(0, len(heads), HEAD))
            else:
                path.unlink(missing_ok=True)
    return claimed
