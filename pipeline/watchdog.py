"""Ends the remaining processes of an embedded Ray whose driver was killed.

Ray's own processes end when their driver does, but for the two agents of its raylet (dashboard and runtime
environments): after a SIGKILL of the driver they live on for a minute (measured: 61.5 and 61.8 s). So a small process
of our own watches the driver. When the driver ends without closing its cluster, the watchdog waits GRACE_S seconds,
then kills what remains.

It knows them by MARK, a variable with a random value that only processes started for this driver have in their
environment, and by their parents: what other users or other builds run on the machine is never touched. The parents are
needed since the agents set process titles, which may overwrite what /proc shows of their environment; they are
noted while the driver lives, since orphans have lost theirs.

Limits: needs /proc (Linux); elsewhere nothing is killed. A watchdog that is killed with its driver ends nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "WENLAN_DRIVER"
"""Environment variable of the processes that end with their driver."""

GRACE_S = 3.0
"""Seconds that Ray has to end by itself: its workers take two."""

_GOODBYE = b"."
_LIVING_S = 2.0
"""Pause between two looks at the processes while the driver lives: each reads all of /proc. Its end ends the pause."""

_TICK_S = 0.5
_TRIES = 20
"""Rounds of killing, _TICK_S apart: a raylet that is dying may still start an agent."""


class Watchdog:
    """A process that outlives a killed driver long enough to end what the driver started."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        command = [sys.executable, "-S", "-E", __file__, str(os.getpid()), self._mark]
        # a session of its own: an interrupt from the keyboard, or a closed terminal, does not end it first
        starter = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        starter.wait()  # the watchdog itself is its child: see `main`
        assert starter.stdin is not None
        self._line = starter.stdin

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Processes that are started within the block, and theirs, end with this process."""
        os.environ[MARK] = self._mark
        try:
            yield
        finally:
            del os.environ[MARK]

    def close(self) -> None:
        """End the watch: what was started has been ended properly."""
        with contextlib.suppress(OSError):  # it was killed
            self._line.write(_GOODBYE)
            self._line.flush()
        self._line.close()


def marked(mark: str) -> list[int]:
    """Ids of the processes that have MARK with this value in their environment."""
    entry, ids = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                ids.append(int(folder.name))
    return ids


def family(mark: str) -> dict[int, int]:
    """Processes that bear a mark, and all below them: id -> time of its start, which tells it from a later namesake."""
    parents, starts = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := _process_fields(int(folder.name)):
            parents[int(folder.name)], starts[int(folder.name)] = int(fields[1]), int(fields[19])
    bearers = set(marked(mark))

    def belongs(pid: int) -> bool:
        while pid in parents and pid not in bearers:
            pid = parents[pid]
        return pid in bearers

    return {pid: start for pid, start in starts.items() if belongs(pid)}


def _process_fields(pid: int) -> list[str]:
    """Returns the fields of /proc for a running process, from its state (field 3 of proc(5)) on; empty if it ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    fields = stat.rpartition(")")[2].split()  # field 2, its name, may hold brackets and spaces
    return [] if fields[0] == "Z" else fields


def watch(driver: int, mark: str) -> None:
    """Wait for the end of the driver; then, unless it has closed the watch, end its processes.

    Standard input is the pipe from the driver. It ends with the driver, unless a process that the driver forked holds
    it open: so the driver is looked for as well.
    """
    readable: list[int] = []
    known: dict[int, int] = {}
    while not readable and _process_fields(driver):
        known = _still_running(known, mark)
        readable, _, _ = select.select([0], [], [], _LIVING_S)
    if readable and os.read(0, 1) == _GOODBYE:
        return
    until = time.monotonic() + GRACE_S
    while (known := _still_running(known, mark)) and time.monotonic() < until:
        time.sleep(_TICK_S)
    for _ in range(_TRIES):
        for pid in known:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not (known := _still_running(known, mark)):
            return
        time.sleep(_TICK_S)


def _still_running(known: dict[int, int], mark: str) -> dict[int, int]:
    """Returns the known processes that still run, and their present descendants."""
    running = {
        pid: start for pid, start in known.items() if (fields := _process_fields(pid)) and int(fields[19]) == start
    }
    return {**running, **family(mark)}


def main() -> None:
    """Watch from a process that is not a child of the driver: Ray's raylet may kill a dead driver's children."""
    if os.fork() == 0:
        watch(int(sys.argv[1]), sys.argv[2])
    os._exit(0)


if __name__ == "__main__":
    main()
