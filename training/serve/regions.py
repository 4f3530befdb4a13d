"""Boxes of pictures that come without, by the detector that the checkpoint was trained with.

It runs in the server (training/use/detector.py), one picture at a time. The boxes of the last pictures are kept: a page
asks for a picture's results, then for those of its boxes. Without a detector the boxes are the grid.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from training.errors import RunError
from training.serve.refusals import overloaded
from training.use.detector import InEachProcess, choose
from training.weights.load import Boxes

_KEPT = 1_000


class Detected:
    """Boxes by a detector. Any thread may ask."""

    def __init__(self, detector: InEachProcess) -> None:
        self._detector, self._alone = detector, threading.Lock()
        self._kept: OrderedDict[bytes, Boxes] = OrderedDict()

    def of(self, content: bytes) -> Boxes:
        """Boxes of a picture in its pixels, best first; none of what cannot be read. Raises Refused."""
        key = hashlib.sha256(content).digest()
        with self._alone:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            try:
                [boxes] = self._detector.of([content])
            except RunError as e:
                raise overloaded("detector_down", str(e), 60) from None
            self._kept[key] = boxes
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return boxes


def detector_of(trained: str, given: str) -> tuple[Detected | None, str]:
    """The detector of a checkpoint, None for the grid; and its name, for the log.

    trained: the checkpoint's detector id. given: --detector. Raises ConfigError for a given one that cannot be run.
    """
    detector, name = choose(trained, given, None)
    return None if detector is None else Detected(InEachProcess(detector)), name
