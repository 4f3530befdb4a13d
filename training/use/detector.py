"""Boxes of pictures that come without, by the detector that a checkpoint was trained with.

The halves import nothing of each other, so the detector runs as a process beside this one, `wenlan-data boxes`
(pipeline/commands/boxes.py): pictures go in, boxes come out, and it keeps them in a cache by the pictures' sha256. Each
process that reads pictures has one of its own, which ends with it.

A checkpoint names its detector by id: name and a digest over version, options and weights. By its name alone it is
run with its defaults; where those make another id, `--detector SPEC.yaml` names the spec that has its options.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.index_cache import GRID
from training.errors import ConfigError, RunError
from training.weights.load import Boxes

_ENDS_S = 60.0
"""Seconds that the end of the detectors' processes is waited for."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector that can be run: `name` as `wenlan-data boxes` takes it, its id, and the folder of its cache."""

    name: str
    id: str
    regions: str


class Detecting:
    """A running detector of one process; it ends with `close`, or when this process does."""

    def __init__(self, name: str, wanted: str, regions: str, lifeline: int | None = None) -> None:
        """`lifeline`: a descriptor that it holds open for as long as it runs."""
        words = [sys.executable, "-m", "pipeline", "boxes", "--detector", name]
        words += ["--id", wanted] if wanted else []
        words += ["--regions", regions] if regions else []
        self._name = name
        # A file: a pipe that nobody reads would fill up, and stop it.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            pass_fds=() if lifeline is None else (lifeline,),
        )
        line = self._line()
        if not line:
            raise ConfigError("--detector", self._problem())
        self.id = str(json.loads(line)["detector"])

    def of(self, contents: Sequence[bytes]) -> list[Boxes]:
        """Boxes of each picture by its file's content; none of one that cannot be read. Raises RunError."""
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"bytes": [len(content) for content in contents]}).encode() + b"\n")
            for content in contents:
                process.stdin.write(content)
            process.stdin.flush()
        except BrokenPipeError:
            raise RunError(f"detector {self._name}", self._problem()) from None
        line = self._line()
        if not line:
            raise RunError(f"detector {self._name}", self._problem())
        return [[] if isinstance(boxes, dict) else boxes for boxes in json.loads(line)["boxes"]]

    def close(self) -> None:
        """Let it write what it has into its cache, and wait until it has ended."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._said.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _problem(self) -> str:
        """The last line that it said before it ended."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        self._said.close()
        last = said[-1] if said else f"ended with {self._process.returncode}"
        return last.removeprefix("wenlan-data: ").removeprefix("--detector ")


class InEachProcess:
    """A detector for processes that are forked from this one: each starts its own at its first picture."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._running: tuple[int, Detecting] | None = None
        self._read, self._write = os.pipe()

    def of(self, contents: Sequence[bytes]) -> list[Boxes]:
        """`Detecting.of`."""
        if self._running is None or self._running[0] != os.getpid():
            detector = self._detector
            self._running = os.getpid(), Detecting(detector.name, detector.id, detector.regions, self._write)
        return self._running[1].of(contents)

    def close(self) -> None:
        """Wait until all of them have filled their cache and ended; the forked processes must have ended before."""
        if self._running is not None and self._running[0] == os.getpid():
            self._running[1].close()
        self._running = None
        os.close(self._write)
        select.select([self._read], [], [], _ENDS_S)  # readable once nobody holds the other end
        os.close(self._read)


def choose(trained: str, given: str, regions: Path) -> tuple[Detector | None, str]:
    """The detector that makes boxes of pictures without, None for the grid; and its name, for the log.

    trained: the checkpoint's detector id. given: "" for that one, `grid`, a detector's name or a spec's file. Where the
    checkpoint's own cannot be run it is the grid, with the reason. Raises ConfigError for a given one that cannot be.
    """
    if given == GRID or (not given and trained in ("", GRID)):
        return None, GRID
    name = given or trained.rpartition("-")[0] or trained
    try:
        running = Detecting(name, "" if given else trained, "")
    except ConfigError as e:
        if given:
            raise
        return None, f"{GRID} ({trained}, which the checkpoint was trained with, cannot be run: {e.problem})"
    running.close()
    return Detector(name, running.id, str(regions)), running.id
