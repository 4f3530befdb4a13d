"""Processes as a test may see them: those below one of its own, never those of other tests on the same machine."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
"""What keeps tools that read a dataset from asking the internet, and from more threads than a test may have; and lets
Ray's workers come to their turn beside other tests."""


def descendants(root: int) -> dict[int, bytes]:
    """The title of every process that was started below a process, by its id. (Ray gives its workers titles.)"""
    titles, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it may end while it is read
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().partition(b"\0")[0]
            stat = (folder / "stat").read_text(encoding="utf-8")
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])  # its name may hold brackets

    def is_below(pid: int) -> bool:
        while pid not in (root, 0, 1):
            pid = parents.get(pid, 0)
        return pid == root

    return {pid: titles[pid] for pid in parents if pid != root and is_below(pid)}


def is_running(pid: int) -> bool:
    """Whether a process runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Wait until a condition holds, with time for a busy machine. Raises AssertionError that names the condition."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports that are free and not among those that the kernel hands out: nobody is given one before it is used."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


class Asked:
    """A process that answers: a script's `answer(*words)`, whose imports are done once and not for every question."""

    _LOOP = """
import json, sys
for line in sys.stdin:
    print(json.dumps(answer(*json.loads(line))), file=sys.__stdout__, flush=True)
"""

    def __init__(self, script: str, log: Path) -> None:
        words, pipe = [sys.executable, "-c", script + self._LOOP], subprocess.PIPE
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                words, env=os.environ | QUIET, stdin=pipe, stdout=pipe, stderr=stderr, text=True
            )
        self._log = log

    def __call__(self, *words: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([*map(str, words)]), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # what a library prints
                return json.loads(line)
        raise AssertionError(self._log.read_text(errors="replace")[-3000:])

    def close(self) -> None:
        """End the process, as its input does."""
        self._process.communicate(timeout=60)


class Forks:
    """Runs scripts in processes of their own that begin with the imports of `prelude` done, by forking.

    For a program whose imports cost seconds and whose process must be its own all the same: the process that forks has
    run nothing but its imports.
    """

    _LOOP = """
import json, os, sys
for line in sys.stdin:
    script, words, log = json.loads(line)
    child = os.fork()
    if not child:
        with open(log, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        sys.argv = ["-c", *words]
        code = 1
        try:
            exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1 if e.code else 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

    def __init__(self, prelude: str, folder: Path, environment: dict[str, str]) -> None:
        words, pipe = [sys.executable, "-c", prelude + self._LOOP], subprocess.PIPE
        self._folder, self._log = folder, folder / "forks.log"
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(
                words, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=stderr, text=True
            )

    def __call__(self, script: str, *words: object, code: int = 0) -> list[str]:
        """The lines that a script prints. Raises AssertionError with all that it said if it ends with another code."""
        log = self._folder / "said.log"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([script, [*map(str, words)], str(log)]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text(errors="replace")[-3000:]
        said = log.read_text(encoding="utf-8", errors="replace")
        assert int(answer) == code, said[-3000:]
        return said.splitlines()

    def close(self) -> None:
        """End the process, as its input does."""
        self._process.communicate(timeout=60)


def value_of(script: str, *args: object) -> Any:
    """The JSON value that a script prints as its last line, in a process of its own."""
    words = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(words, env=os.environ | QUIET, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
