"""Runs fuzz targets in a process of their own: bounds on time and memory, and a crash ends that process alone.

    parent                                              child (this file as a program)
    one JSON line: [target, length], then the example ->  runs the target
                                                      <-  one JSON line: {"fault": "" or a traceback, "peak": bytes}

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
"""Time of the child's start, and of a target's imports: a busy machine takes long."""

_ROOM = 6_000_000_000
"""Address space that the child may add after its start."""


class Watchdog:
    """A child that runs targets. Use as a context; `fault` starts it again after it was killed or died."""

    def __init__(self, scratch: Path) -> None:
        """`scratch`: a folder for the files that targets write."""
        self._scratch = scratch
        self._child: subprocess.Popen[bytes] | None = None
        self._begun: set[str] = set()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def fault(self, target: str, data: bytes) -> str:
        """What is wrong with how a target takes this example; "" for nothing."""
        child = self._child or self._start()
        try:
            if target not in self._begun:  # imports, and what is made once
                self._begun.add(target)
                self._send(target, b"")
                assert self._line(START_S, START_S), f"{target} did not begin"
            self._send(target, data)
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

    def _send(self, target: str, data: bytes) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([target, len(data)]).encode() + b"\n" + data)
        self._child.stdin.flush()

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
        command = [sys.executable, "-m", "tests.fuzz.watchdog"]
        root = Path(__file__).parents[2]
        environment = os.environ | {"TMPDIR": str(self._scratch)}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment
        )
        self._begun = set()
        assert self._line(START_S, START_S), "the child did not start"
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


def main(source: IO[bytes], sink: IO[bytes]) -> None:
    """The child: examples come from `source`, answers go to `sink`."""
    from tests.fuzz.targets import TARGETS

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    sink.write(b"ready\n")
    sink.flush()
    while header := source.readline():
        name, size = json.loads(header)
        data = source.read(size)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ROOM, hard))
        before, fault = _reset_peak(), ""
        try:
            TARGETS[name](data)
        except BaseException:
            fault = traceback.format_exc(limit=-4)
        sink.write(json.dumps({"fault": fault, "peak": _status("VmHWM") - before}).encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    logging.disable()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    main(sys.stdin.buffer, answers)
