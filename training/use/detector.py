"""Boxes for pictures without any, by the detector that a checkpoint was trained with.

The one place where this half imports the other: detectors and the cache of their boxes belong to `pipeline`
(pipeline/store/boxes.py). The import is lazy, and one line says what to install where it fails.

A checkpoint names its detector by id: name and a digest over version, options and weights. By its name alone it runs
with its defaults; where those make another id, `--detector SPEC.yaml` names the spec that has its options.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from data_specs.build import SpecError
from data_specs.command.extras import install
from training.data.index_cache import GRID, without_grid_id
from training.errors import ConfigError, RunError, first_line
from training.weights.load import Boxes

if TYPE_CHECKING:
    from pipeline.store.boxes import BoxMaker


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector that can be run: its name, or the spec's file that has it; its id; the folder of its cache, or ""."""

    name: str
    id: str
    regions: str


class ProcessLocalDetector:
    """A detector that each process loads at its first picture: sessions of onnxruntime do not survive a fork."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._makers: dict[int, BoxMaker] = {}

    def detect(self, contents: Sequence[bytes]) -> list[Boxes]:
        """Boxes of each picture from its file's content, empty for an unreadable one. Raises RunError."""
        maker = self._makers.get(os.getpid())
        if maker is None:
            maker = self._makers[os.getpid()] = _open_maker(self._detector)
            # A worker process of multiprocessing ends without `atexit`; this runs at the end of either kind.
            Finalize(None, maker.save, exitpriority=0)
        from data_specs.errors import WenlanError

        try:
            return [[] if isinstance(boxes, str) else boxes.tolist() for boxes in maker.of(contents)]
        except (WenlanError, OSError) as e:
            raise RunError(f"detector {self._detector.name}", first_line(e)) from None

    def close(self) -> None:
        """Write the new boxes of this process into the cache."""
        maker = self._makers.pop(os.getpid(), None)
        if maker is not None:
            maker.save()


def choose_detector(trained: str, given: str, regions: Path | None) -> tuple[Detector | None, str]:
    """The detector that makes boxes of pictures without any, None for the grid; and its name, for the log.

    trained: the checkpoint's detector id. given: "" for that one, `grid`, a detector's name or a spec's file. regions:
    folder of its cache. Where the checkpoint's own cannot run it is the grid, with the reason. Raises ConfigError for a
    given one that cannot run.
    """
    if without_grid_id(given or trained) in ("", GRID):
        return None, GRID
    name = given or trained.rpartition("-")[0] or trained
    try:
        id = _open_maker(Detector(name, "" if given else trained, "")).detector_id
    except ConfigError as e:
        if given:
            raise
        return None, f"{GRID} ({trained}, which the checkpoint was trained with, cannot be run: {e.problem})"
    return Detector(name, id, str(regions or "")), id


def _open_maker(detector: Detector) -> BoxMaker:
    """Opens a detector's maker of boxes. Raises ConfigError for a missing extra or an unknown detector."""
    try:
        from data_specs.errors import WenlanError
        from pipeline.store.boxes import open_maker
    except ImportError as e:
        problem = f"{detector.name} needs {e.name or first_line(e)}: {install('pipeline')}"
        raise ConfigError("--detector", problem) from None
    try:
        return open_maker(detector.name, detector.id, detector.regions)
    except SpecError as e:
        raise ConfigError("--detector", e.problems[0]) from None
    except (WenlanError, OSError) as e:
        raise ConfigError("--detector", first_line(e)) from None
