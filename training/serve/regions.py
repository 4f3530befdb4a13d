"""Boxes of pictures that come without, by the detector that the checkpoint was trained with.

It runs in the server (training/use/detector.py), one picture at a time, and keeps the boxes of the last pictures: a
page asks for a picture's results, then for those of its boxes. Without a detector the boxes are the grid.
"""

from __future__ import annotations

import threading

from training.errors import RunError
from training.serve.refusals import overloaded
from training.use.detector import InEachProcess, choose
from training.weights.load import Boxes


class Detected:
    """Boxes by a detector. Any thread may ask."""

    def __init__(self, detector: InEachProcess) -> None:
        self._detector, self._lock = detector, threading.Lock()

    def of(self, content: bytes) -> Boxes:
        """Boxes of a picture in its pixels, best first; none of what cannot be read. Raises Refused."""
        with self._lock:
            try:
                [boxes] = self._detector.of([content])
            except RunError as e:
                raise overloaded("detector_down", str(e), 60) from None
        return boxes


def detector_of(trained: str, given: str) -> tuple[Detected | None, str]:
    """The detector of a checkpoint, None for the grid; and its name, for the log.

    trained: the checkpoint's detector id. given: --detector. Raises ConfigError for a given one that cannot be run.
    """
    detector, name = choose(trained, given, None)
    return None if detector is None else Detected(InEachProcess(detector)), name
