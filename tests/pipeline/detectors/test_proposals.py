"""proposals: boxes follow the picture as it is shown, at any size and in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_specs.pictures.boxes import cleaned
from pipeline.detectors.proposals import WEIGHTS, Proposals
from pipeline.pictures.decode import decode
from tests.drawn import encoded


@pytest.fixture(scope="module")
def find() -> Any:
    """find(bytes of a picture): its boxes as a build stores them."""
    detector = Proposals()
    state = detector.load()

    def boxes(data: bytes) -> np.ndarray[Any, Any]:
        shown = decode(data).pixels
        return cleaned(detector.detect(state, [shown])[0], shown.shape[1], shown.shape[0], 36)[0]

    return boxes


def best_overlap(boxes: Any, box: Any) -> float:
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2] - box[0]) * (box[3] - box[1])
    return float((shared / (area - shared)).max())


def test_the_weights_are_small_and_there() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.15, 1, 12])
def test_a_thing_is_found_in_small_and_large_pictures(find: Any, scale: float) -> None:
    boxes = find(encoded(scene(scale), "PNG"))
    assert best_overlap(boxes, np.array(BOX) * scale) > 0.7


def test_boxes_are_turned_with_the_picture(find: Any) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise: x becomes height - y
    boxes = find(encoded(scene(), "JPEG", quality=95, exif=exif))
    assert best_overlap(boxes, np.array((160 - BOX[3], BOX[0], 160 - BOX[1], BOX[2]))) > 0.7


def test_alpha_is_on_white_and_the_first_frame_counts(find: Any) -> None:
    hole = Image.new("L", (240, 160), 0)
    ImageDraw.Draw(hole).ellipse(BOX, 255)
    image = scene()
    image.putalpha(hole)
    assert best_overlap(find(encoded(image, "PNG")), np.array(BOX)) > 0.7
    mirrored = scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    moving = encoded(scene(), "GIF", save_all=True, append_images=[mirrored], duration=100)
    assert best_overlap(find(moving)[:3], np.array(BOX)) > 0.7
    assert best_overlap(find(moving)[:3], np.array((240 - BOX[2], BOX[1], 240 - BOX[0], BOX[3]))) < 0.5


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (2000, 2)])
def test_a_picture_with_nothing_on_it_is_no_fault(find: Any, size: tuple[int, int]) -> None:
    boxes = find(encoded(Image.new("RGB", size, (128, 128, 128)), "PNG"))
    assert len(boxes) <= 36
    assert (boxes[:, 2:] <= np.array(size)).all()


@pytest.mark.slow
def test_boxes_do_not_depend_on_their_neighbours_in_a_batch() -> None:
    detector = Proposals()
    state = detector.load()
    shown = [np.asarray(scene(scale)) for scale in (0.3, 1, 2, 0.7, 1.3)]
    together = detector.detect(state, shown)
    for picture, (boxes, scores, _) in zip(shown, together, strict=True):
        alone = detector.detect(state, [picture])[0]
        assert alone[0] == pytest.approx(boxes, abs=1e-3)
        assert alone[1] == pytest.approx(scores, abs=1e-5)


BOX = (120, 30, 210, 120)


def scene(scale: float = 1.0) -> Image.Image:
    """An orange on a table cloth, as far as a drawing can be one; BOX is around it."""
    image = Image.new("RGB", (240, 160), (70, 90, 120))
    draw = ImageDraw.Draw(image)
    draw.ellipse(BOX, (230, 130, 20))
    draw.ellipse((140, 48, 160, 66), (250, 200, 120))
    return image.resize((round(240 * scale), round(160 * scale)), Image.Resampling.BICUBIC)
