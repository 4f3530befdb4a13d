"""An image tower whose session sleeps for as long as a GPU would compute, and notes when: it takes no CPU meanwhile."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.build import PairScore
from data_specs.search.folder import Towers as Identity
from data_specs.search.picture_tower import PictureInputs, PictureTower
from pipeline.curate._towers import SPARE, ImageFeatures, Towers

SIDE, WIDTH = 224, 512
OPTIONS = PairScore.model_validate({"image": "image.onnx", "text": "text.onnx", "vocabulary": "vocab.txt"})


def sleeping_tower(pace: float, folder: Path) -> SleepingTower:
    """A tower of so many pictures a second, on a whole GPU. folder: of its notes."""
    folder.mkdir()
    files = Path(OPTIONS.image), Path(OPTIONS.text), Path(OPTIONS.vocabulary)
    return SleepingTower(folder.name, Towers(OPTIONS, *files, folder.name, ""), pace, str(folder), gpus=1.0)


@dataclass(frozen=True)
class SleepingTower(ImageFeatures):
    """The model of a spec's image tower, but for its session."""

    pace: float
    folder: str

    @property
    def reduce_to(self) -> int:
        return SPARE * SIDE

    def load(self) -> PictureTower:
        inputs = PictureInputs("image", SIDE, OPTIONS.mean, OPTIONS.std, OPTIONS.resize, frozenset(["image"]))
        session = _Session(self.pace, self.folder)
        tower = PictureTower(session, inputs, Identity(recipe="", sha256=self.id), "sleeping tower")
        session.note("loaded", time.monotonic(), 0)
        session.notes = True
        return tower


class _Session:
    notes = False  # not of the picture that a tower is tried on

    def __init__(self, pace: float, folder: str) -> None:
        self._pace, self._folder = pace, folder

    def run(self, outputs: Any, given: dict[str, Any]) -> list[Any]:
        began, count = time.monotonic(), len(given["image"])
        time.sleep(count / self._pace)
        if self.notes:
            self.note("ran", began, count)
        return [np.ones((count, WIDTH), np.float32)]

    def note(self, what: str, began: float, count: int) -> None:
        ended, cpu = time.monotonic(), time.process_time()
        told = {"what": what, "began": began, "ended": ended, "count": count, "cpu": cpu}
        (Path(self._folder) / uuid.uuid4().hex).write_text(json.dumps(told))
