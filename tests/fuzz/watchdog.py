"""Runs a fuzz target in a process of its own: bounds on time and memory, and a crash ends that process alone.

    parent                                        child (this file as a program)
    length in 8 bytes, example          ->        runs the target
                                        <-        one JSON line: {"fault": "" or a traceback, "peak": bytes}

An example that computes for longer than SECONDS, or takes WALL times as long in all, is a hang, and the child is
killed. (Other tests may have the processor meanwhile, and a virtual machine's kernel may need seconds for new pages of
memory: neither counts as computing.) One that raises the child's peak of resident memory by more than MEMORY is a
fault; RLIMIT_AS keeps a larger one from taking the machine's.

Limits: Linux, whose /proc tells the peak since it was last reset.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO

SECONDS = 4.0
"""Time of one example on a slow machine."""

WALL = 60

MEMORY = 500_000_000
"""Bytes of resident memory that one example may add."""

START_S = 120.0
"""Time of the child's start, with its imports: a busy machine takes long."""

_ROOM = 6_000_000_000
"""Address space that the child may add after its start."""


class Watchdog:
    """A child that runs one target. Use as a context; `fault` starts it again after it was killed or died."""

    def __init__(self, target: str, scratch: Path) -> None:
        """`scratch`: a folder for the files that the target writes."""
        self._target, self._scratch = target, scratch
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def fault(self, data: bytes) -> str:
        """What is wrong with how the target takes this example; "" for nothing."""
        child = self._child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(len(data).to_bytes(8, "little") + data)
            child.stdin.flush()
            line = self._line(SECONDS, WALL * SECONDS)
        except BrokenPipeError:
            line = b""
        if line is None:
            self._end()
            return f"a hang: more than {SECONDS:g} s of computing"
        if not line:
            code = child.wait()
            self._end()
            return f"the process died: {code}"
        answer = json.loads(line)
        if not answer["fault"] and answer["peak"] > MEMORY:
            return f"{answer['peak'] / 1e6:.0f} MB of memory"
        return str(answer["fault"])

    def _line(self, computing: float, wall: float) -> bytes | None:
        """One line of the child, b"" if it has ended, None if there is none within either time."""
        child = self._child
        assert child is not None
        assert child.stdout is not None
        until, spent = time.monotonic() + wall, _computed_s(child.pid)
        while time.monotonic() < until and _computed_s(child.pid) - spent <= computing:
            if select.select([child.stdout], [], [], 0.2)[0]:
                return child.stdout.readline()
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fuzz.watchdog", self._target]
        root = Path(__file__).parents[2]
        environment = os.environ | {"TMPDIR": str(self._scratch)}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment
        )
        assert self._line(START_S, START_S), f"the child of {self._target} did not start"
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _computed_s(pid: int) -> float:
    """Returns the seconds that a process has computed, without those of the kernel: field 14 of its stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _reset_peak() -> int:
    """Let VmHWM begin at what is resident now, where the kernel lets us; returns what it is."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmHWM")


def main(name: str, source: IO[bytes], sink: IO[bytes]) -> None:
    """The child: examples come from `source`, answers go to `sink`."""
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    target(b"")  # imports, and what is made once
    room = _status("VmSize") + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    sink.write(b"ready\n")
    sink.flush()
    while header := source.read(8):
        data = source.read(int.from_bytes(header, "little"))
        before, fault = _reset_peak(), ""
        try:
            target(data)
        except BaseException:
            fault = traceback.format_exc(limit=-4)
        sink.write(json.dumps({"fault": fault, "peak": _status("VmHWM") - before}).encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    logging.disable()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    main(sys.argv[1], sys.stdin.buffer, answers)
