"""Boxes of pictures at hand: those of stage `detect`, in the frame of the file, and made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from data_specs.build import SpecError
from data_specs.pictures.boxes import cleaned
from pipeline.detectors import Boxes, Detector, Picture
from pipeline.detectors.grid import Grid
from pipeline.detectors.proposals import Proposals
from pipeline.files.folder import Folder
from pipeline.pictures.decode import decode
from pipeline.store.boxes import SAVE, BoxMaker
from pipeline.store.cache import Cache
from tests.drawn import encoded, picture


@pytest.mark.slow
def test_they_are_those_that_a_build_makes(tmp_path: Path) -> None:
    data = [picture(1), picture(2, (90, 200), "PNG")]
    detector = Proposals()
    shown = [decode(one).pixels for one in data]
    raw = detector.detect(detector.load(), shown)
    made = BoxMaker(detector, str(tmp_path)).of(data)
    for boxes, of_one, pixels in zip(made, raw, shown, strict=True):
        np.testing.assert_array_equal(boxes, cleaned(of_one, pixels.shape[1], pixels.shape[0], 1_000)[0])


class Corner(Detector):
    """One box at the top left of the picture as shown: a quarter of its width, half of its height."""

    seen: ClassVar[int] = 0

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        Corner.seen += len(pictures)
        one = np.ones(1, np.float32), np.zeros(1, np.int32)
        return [(np.array([[0, 0, p.shape[1] / 4, p.shape[0] / 2]], np.float32), *one) for p in pictures]


CORNERS = {
    1: (0, 0, 20, 20),
    2: (60, 0, 80, 20),
    3: (60, 20, 80, 40),
    4: (0, 20, 20, 40),
    5: (0, 0, 40, 10),
    6: (0, 30, 40, 40),
    7: (40, 30, 80, 40),
    8: (40, 0, 80, 10),
}
"""By EXIF orientation the corner's place in a stored picture of 80 x 40, by the table of Exif 2.32, tag 0x0112."""


@pytest.mark.parametrize("orientation", CORNERS)
def test_boxes_are_in_pixels_of_the_picture_as_stored(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.new("RGB", (80, 40), (9, 99, 199)), "JPEG", exif=exif)
    [boxes] = BoxMaker(Corner()).of([data])
    assert not isinstance(boxes, str)
    assert boxes.tolist() == [list(CORNERS[orientation])]


def test_no_picture_is_looked_at_twice_nor_by_another_maker_on_the_same_cache(tmp_path: Path) -> None:
    data = [picture(seed) for seed in range(5)]
    Corner.seen = 0
    maker = BoxMaker(Corner(), str(tmp_path))
    first = maker.of([*data, data[0]])
    assert (Corner.seen, maker.made) == (5, 5)
    maker.save()
    second = BoxMaker(Corner(), str(tmp_path))
    assert [b.tolist() for b in second.of([*data, data[0]]) if not isinstance(b, str)] == [
        b.tolist() for b in first if not isinstance(b, str)
    ]
    assert (Corner.seen, second.made) == (5, 0)
    assert len(Cache(Folder(str(tmp_path / Corner().detector_id)), "sha256").commits()) == 1


@pytest.mark.slow
def test_boxes_are_saved_as_they_come(tmp_path: Path) -> None:
    maker = BoxMaker(Corner(), str(tmp_path))
    for start in range(0, SAVE + 16, 16):
        maker.of([picture(seed, (8, 8), "PNG") for seed in range(start, start + 16)])
    assert len(Cache(Folder(str(tmp_path / Corner().detector_id)), "sha256").commits()) == 1


class Moody(Corner):
    """Fails on pictures wider than 100 pixels."""

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        if any(p.shape[1] > 100 for p in pictures):
            raise RuntimeError("too wide")
        return super().detect(state, pictures)


def test_what_cannot_be_read_is_told_and_what_a_detector_fails_on_has_no_boxes() -> None:
    wide, sound = picture(1, (120, 90)), picture(2, (60, 40))
    made = BoxMaker(Moody(), max_pixels=20_000).of([b"nonsense", wide, sound, picture(3, (200, 150)), sound[:-400]])
    assert [isinstance(one, str) for one in made] == [True, False, False, True, False]
    assert [len(one) for one in made if not isinstance(one, str)] == [0, 1, 0]


def test_a_detector_that_needs_no_pixels_gets_none() -> None:
    truncated = picture(2, (60, 40))[:-400]
    [boxes] = BoxMaker(Grid(n=2)).of([truncated])
    assert not isinstance(boxes, str)
    assert boxes.tolist() == [[0, 0, 30, 20], [30, 0, 60, 20], [0, 20, 30, 40], [30, 20, 60, 40]]


def test_a_cache_behind_a_url_with_a_key_is_refused() -> None:
    with pytest.raises(SpecError, match="contains credentials"):
        BoxMaker(Grid(), "s3://key:secret@bucket/regions")
