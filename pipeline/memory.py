"""The most memory that a step of this process held, as the kernel counts it (VmHWM of /proc/self/status).

Limits: Linux alone; elsewhere it is not known, and 0. Where the kernel does not reset the count it is that of
the process so far. Steps that run in one process at the same time are counted together.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


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
