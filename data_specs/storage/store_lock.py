"""A lock on an object store, by conditional writes; the counterpart of a file lock on a disk.

    URL     {"holder": "host:...", "beat": 7}     its holder rewrites it every BEAT_S seconds, if it is as it left it

Who waits takes the lock over when it has stayed the same for LEASE_S seconds by the clock of who waits: no clocks of
two machines are compared, and a killed holder blocks others no longer. On its own machine its end is seen at
once. A holder whose lock was taken over (it was stopped for a while, or cut off) fails in `check_locks`, which
`pipeline.files.folder` calls before it changes anything on an object store.

Limits: on a store without conditional writes nothing is held (`data_specs.storage.object_store`). A change that is
under way for longer than LEASE_S - FENCE_S while its lock is taken over may still come about; only a conditional one
cannot.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_specs.storage.object_store import StorageError, create, is_conditional, read, replace

LEASE_S, BEAT_S, FENCE_S = 45.0, 10.0, 20.0
"""Seconds after which a lock that stays the same is taken over; between two beats of its holder; and since the last
beat, after which the holder must write another one before it changes anything."""

LOG = logging.getLogger("wenlan.store_lock")


class LockedError(StorageError):
    """A live process holds the lock."""


class LockLostError(StorageError):
    """A lock was taken over by another holder; the work under it must not go on."""


@dataclass
class _OwnLock:
    """A lock held by this process. version: of the file as we left it; beaten: when, by the monotonic clock."""

    url: str
    holder: str
    version: str
    beaten: float
    beats: int = 0
    lost: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    writing: threading.Lock = field(default_factory=threading.Lock)

    def beat(self) -> None:
        """Rewrites the file. Raises LockLostError if another holder has, StorageError if the store does not answer."""
        with self.writing:
            began = time.monotonic()
            version = "" if self.lost else replace(self.url, _content(self.holder, self.beats + 1), self.version)
            if not version:
                self.lost = True
                raise LockLostError(self.url, "this lock was taken over by another process; run the same command again")
            self.version, self.beats, self.beaten = version, self.beats + 1, began

    def keep_beating(self) -> None:
        while not self.ended.wait(BEAT_S):
            try:
                self.beat()
            except LockLostError:
                return
            except StorageError as e:
                LOG.warning("%s: this lock cannot be written: %s", self.url, e.strerror)

    def check(self) -> None:
        """Raise LockLostError if the lock is no longer ours."""
        if self.lost or time.monotonic() - self.beaten > FENCE_S:
            self.beat()

    def release(self) -> None:
        """Leaves the file behind without a holder."""
        with self.writing, contextlib.suppress(StorageError):  # then it is taken over when it has stayed the same
            if not self.lost:
                replace(self.url, _content("", 0), self.version)


_held: contextvars.ContextVar[tuple[_OwnLock, ...]] = contextvars.ContextVar("held", default=())


def check_locks() -> None:
    """Raises LockLostError if a lock around this call was taken over."""
    for lock in _held.get():
        lock.check()


@contextlib.contextmanager
def locked(url: str, wait_s: float) -> Iterator[None]:
    """Hold the lock of the file at `url`; does nothing on a store without conditional writes.

    wait_s: seconds to wait for a holder that lives, before LockedError names it. One that may be dead is waited for
    until that is known, LEASE_S seconds. Raises StorageError if the store does not answer.
    """
    if not is_conditional(url):
        yield
        return
    lock = _acquire(url, wait_s)
    token = _held.set((*_held.get(), lock))
    threading.Thread(target=lock.keep_beating, name="wenlan-lock", daemon=True).start()
    try:
        yield
    finally:
        _held.reset(token)
        lock.ended.set()
        lock.release()


def _acquire(url: str, wait_s: float) -> _OwnLock:
    ours = f"{_process()}#{uuid.uuid4().hex}"
    began = since = time.monotonic()
    seen, changed = "", False
    while True:
        now = time.monotonic()
        there = read(url)
        if there is None:
            version, theirs = create(url, _content(ours, 0)), ""
        else:
            theirs = _holder_in(there[0])
            if there[1] != seen:
                changed, seen, since = bool(seen), there[1], now
            is_free = not theirs or _has_ended(theirs) or now - since > LEASE_S
            version = replace(url, _content(ours, 0), there[1]) if is_free else ""
        if version:
            return _OwnLock(url, ours, version, now)
        if theirs and now - began > wait_s and (changed or _runs_here(theirs)):
            machine, pid, _ = _parse_holder(theirs)
            raise LockedError(url, f"is held by process {pid} of {machine.partition(':')[0]}", errno.EAGAIN)
        time.sleep(random.uniform(0.1, 0.3) if now - began < 5 else random.uniform(1.0, 2.0))


def is_held(url: str) -> bool | None:
    """True if a live process holds a lock; None if unknown, because the process is on another machine."""
    if not url.startswith(("s3://", "s3a://")):
        return None
    there = read(url)
    holder = _holder_in(there[0]) if there is not None else ""
    if not holder or _has_ended(holder):
        return False
    return True if _runs_here(holder) else None


def _content(holder: str, beats: int) -> bytes:
    return json.dumps({"holder": holder, "beat": beats}).encode() + b"\n"


def _holder_in(content: bytes) -> str:
    """Returns the holder of a lock by its file; "" without a holder or a file."""
    try:
        return str(json.loads(content)["holder"])
    except (ValueError, KeyError, TypeError):
        return ""


def _process() -> str:
    """This process, so that another one on its machine can say whether it runs: `host:boot.pids:pid:start`.

    boot: the first digits of the kernel's boot id; pids: the namespace in which process ids count; start: when the
    process began, in ticks since boot, since ids are used again.
    """
    return f"{_machine()}:{os.getpid()}:{_start_of(os.getpid())}"


def _machine() -> str:
    boot = pids = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        pids = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    return f"{socket.gethostname()}:{boot}.{pids}"


def _start_of(pid: int) -> str:
    """Start of a process (field 22 of /proc/PID/stat, proc(5)); "" if no process of that id runs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces; the first of these is field 3
    return "" if fields[0] == "Z" else fields[19]


def _runs_here(holder: str) -> bool:
    """True if a holder is a process of this machine that runs."""
    machine, pid, start = _parse_holder(holder)
    return machine == _machine() and bool(start) and _start_of(pid) == start


def _has_ended(holder: str) -> bool:
    """True if a holder was a process of this machine that has ended."""
    machine, pid, start = _parse_holder(holder)
    return machine == _machine() and bool(start) and _start_of(pid) != start


def _parse_holder(holder: str) -> tuple[str, int, str]:
    """Returns (machine, process id, its start) of a holder; empty ones for an unreadable name."""
    parts = holder.partition("#")[0].rsplit(":", 2)
    return (parts[0], int(parts[1]), parts[2]) if len(parts) == 3 and parts[1].isdigit() else ("", 0, "")
