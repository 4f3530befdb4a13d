"""The most memory that a step of this process held, as the kernel counts it (VmHWM of /proc/self/status); and what a
later build asks for it.

Limits: Linux alone; elsewhere it is not known, and 0. Where the kernel does not reset the count it is that of
the process so far. Steps that run in one process at the same time are counted together. Pages that workers share, such
as libraries, count for each.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

MARGIN = 1.25
"""Memory that is asked for, over the most that an earlier build needed."""

UNKNOWN = 1 << 29
"""Bytes that are asked for where no build has noted what it needed."""


def begin_peak() -> None:
    """Let the count begin at what is in memory now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The most bytes in memory at once since the count began; 0 where unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def memory_for(peak: int) -> int:
    """Bytes to ask for, for a step whose peak in an earlier build is known; 0: unknown."""
    return int(MARGIN * peak) or UNKNOWN
