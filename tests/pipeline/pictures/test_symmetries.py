"""symmetries: what is stored of a picture, put into another order, is what would be stored of the picture turned."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.features._rows import measure_image
from pipeline.pictures import details, symmetries
from pipeline.pictures.signatures import GRIDS, SIZE, distance
from pipeline.pictures.symmetries import FORMS, UPRIGHT, forms_and_boxes, grids_in, maps_in, of_grids, of_maps
from tests.drawn import blobs, encoded
from tests.windows import WORDS, dialog

TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def turned(image: Image.Image, form: int) -> Image.Image:
    """A picture in one of FORMS."""
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if form >= 4 else image
    turn = TURNS[form % 4]
    return image if turn is None else image.transpose(turn)


@pytest.mark.slow
@pytest.mark.parametrize("form", range(0, FORMS, 3))
def test_grids_and_maps_in_a_form_are_those_of_the_picture_turned(form: int) -> None:
    forms = np.arange(FORMS)
    for image in (Image.fromarray(blobs(3)), dialog(*WORDS[:4])):
        own, other = (measure_image(encoded(of, "PNG"), 10**8) for of in (image, turned(image, form)))
        one, two = (np.frombuffer(of["signature"], np.uint8).reshape(GRIDS, SIZE)[:1] for of in (own, other))
        near = distance(grids_in(one.repeat(FORMS, axis=0), forms), two.repeat(FORMS, axis=0)) < 0.07
        assert near.tolist() == (forms == form).tolist()
    stored = (np.frombuffer(of["details"], np.uint8).reshape(1, details.SIZE) for of in (own, other))
    first, second = map(details.maps_in, stored)
    apart = np.abs(maps_in(first.repeat(FORMS, axis=0), forms).astype(int) - second).mean(axis=(1, 2))
    assert (apart < 2).tolist() == (forms == form).tolist()


@pytest.mark.slow
def test_hashes_of_a_form_are_those_of_the_turned_cells_as_they_are() -> None:
    rng = np.random.default_rng(1)
    grids = rng.integers(0, 256, (5, GRIDS, SIZE), dtype=np.uint8)
    maps = rng.integers(0, 64, (5, details.SIDE, details.SIDE), dtype=np.uint8)
    for number in range(UPRIGHT, symmetries.HASHES):
        form = np.full(5, forms_and_boxes(np.array([number]))[0][0])
        whole = grids.copy()
        whole[:, 0] = grids_in(grids[:, 0], form)
        for of, cells, other in ((of_grids, grids, whole), (of_maps, maps, maps_in(maps, form))):
            for own, theirs in zip(of(cells), of(other), strict=True):
                assert own[:, number].tolist() == theirs[:, 0].tolist()
                assert own[:, number].all()


def test_of_cropped_parts_the_box_and_of_forms_the_whole_is_compared() -> None:
    forms, boxes = forms_and_boxes(np.arange(symmetries.HASHES))
    assert forms.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert boxes.tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]
