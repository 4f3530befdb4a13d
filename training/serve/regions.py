"""Boxes of pictures that come without, by the detector that the checkpoint was trained with.

It runs as a process beside the server (training/use/detector.py), one picture at a time; the boxes of the last pictures
are kept, since a page asks for a picture's results, then for those of its boxes. Without a detector the boxes are the
grid.

Limits: a detector that ends is not started again: pictures are refused from then on, and /health tells.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import RunError
from training.serve.refusals import overloaded
from training.use.detector import Detecting, choose
from training.weights.load import Boxes

_KEPT = 1_000


class Detected:
    """Boxes by a running detector. Any thread may ask."""

    def __init__(self, detecting: Detecting) -> None:
        self._detecting, self._alone = detecting, threading.Lock()
        self._kept: OrderedDict[bytes, Boxes] = OrderedDict()
        self._ended = ""

    def of(self, content: bytes) -> Boxes:
        """Boxes of a picture in its pixels, best first; none of what cannot be read. Raises Refused."""
        key = hashlib.sha256(content).digest()
        with self._alone:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            if not self._ended:
                try:
                    [boxes] = self._detecting.of([content])
                except RunError as e:
                    self._ended = str(e)
            if self._ended:
                raise overloaded("detector_down", f"{self._ended}; start the server again", 60)
            self._kept[key] = boxes
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return boxes


@contextmanager
def detector_of(trained: str, given: str) -> Iterator[tuple[Detected | None, str]]:
    """The detector of a checkpoint for as long as the block runs, None for the grid; and its name, for the log.

    trained: the checkpoint's detector id. given: --detector. Raises ConfigError for a given one that cannot be run.
    """
    detector, name = choose(trained, given, Path())
    if detector is None:
        yield None, name
        return
    detecting = Detecting(detector.name, detector.id, "")
    try:
        yield Detected(detecting), name
    finally:
        detecting.close()
