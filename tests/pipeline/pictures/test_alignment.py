"""alignment: what copies of pictures without texture forgive, and what tells two dialogs or charts apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.pictures import alignment
from pipeline.pictures.decode import decode
from pipeline.pictures.details import BOXES_OF_PARTS, SIDE, squares_of
from tests.drawn import encoded
from tests.windows import WORDS, bordered, cropped, dialog, stamped

THRESHOLD = 0.07


def map_of(image: Image.Image) -> np.ndarray:
    """From a file, as `measure` decodes it."""
    return squares_of(decode(encoded(image, quality=85), reduce_to=64).pixels)[1]


def alike(one: Image.Image, other: Image.Image, number: int = 0) -> bool:
    """Whether they are of one picture, from where the part `number` of the first is the whole of the second."""
    a, b = map_of(one)[None], map_of(other)[None]
    part, whole = BOXES_OF_PARTS[[number]], BOXES_OF_PARTS[[0]]
    found = bool(alignment.judged(a, b, alignment.starts_of(part, whole), THRESHOLD)[0][0])
    back = alignment.starts_of(whole, part)
    assert bool(alignment.judged(b, a, back, THRESHOLD)[0][0]) == found  # in either order
    return found


def test_copies_of_copies_agree_once_they_are_aligned() -> None:
    image = dialog(*WORDS)
    framed = bordered(image)
    assert alike(image, image)
    assert alike(framed, image.resize((250, 200), Image.Resampling.LANCZOS), 1)
    assert alike(framed, image.convert("L").convert("RGB"), 1)
    assert alike(framed, cropped(image), 7)
    assert alike(framed, image.crop((0, 0, 480, 384)), 8)


@pytest.mark.parametrize("curve", [12, 14])
def test_charts_of_one_frame_are_told_apart_by_less_than_cut_ones(curve: int) -> None:
    image, other = dialog(*WORDS), dialog(*WORDS, curve=curve)
    assert not alike(image, other)
    assert not alike(image.resize((250, 200), Image.Resampling.LANCZOS), other)
    assert alike(bordered(image), other, 1)  # what cells that lie elsewhere differ by may be more


@pytest.mark.parametrize("row", range(len(WORDS)))
def test_dialogs_with_other_words_in_a_row_are_two_pictures(row: int) -> None:
    others = list(WORDS)
    others[row] = "Illumination" if len(others[row]) < 10 else "Noise"  # words of one length may look alike
    assert not alike(dialog(*WORDS), dialog(*others))


def test_charts_with_another_curve_are_two_pictures() -> None:
    assert not alike(dialog(*WORDS), dialog(*WORDS, seed=1))
    assert not alike(dialog(*WORDS), dialog(*WORDS, curve=15))


@pytest.mark.slow
@given(st.floats(0.82, 1.2), st.integers(-15, 15), st.sampled_from([(90, 4), (40, 2), (0, 1)]))
def test_a_copy_of_another_exposure_is_one_picture_and_another_curve_is_not(
    gain: float, added: int, faint: tuple[int, int]
) -> None:
    """Of faint windows and of those with white ground, which a brighter copy cuts off."""
    least, share = faint

    def toned(image: Image.Image) -> Image.Image:
        return image.point(lambda level: least + level // share)

    def exposed(image: Image.Image) -> Image.Image:
        return toned(image).point(lambda level: max(0, min(255, round(level * gain + added))))

    image = dialog(*WORDS)
    assert alike(toned(image), exposed(image))
    if share > 1:
        return
    assert not alike(image, exposed(dialog(*WORDS, seed=1)))


def test_one_dense_block_is_a_stamp_and_two_of_them_are_not() -> None:
    image = dialog(*WORDS)
    once = stamped(image, (40, 330))
    assert alike(image, once)
    assert alike(bordered(image), once, 1)
    assert not alike(image, stamped(image, (40, 330), (200, 100)))


@pytest.mark.parametrize("place", [(10, 330), (100, 200)])
def test_a_stamp_on_a_faint_window_is_looked_at_although_many_cells_differ_at_first(place: tuple[int, int]) -> None:
    faint = dialog(*WORDS).point(lambda level: 90 + level // 4)  # beside which a white frame is bright
    assert alike(bordered(faint), stamped(faint, place, size=22), 1)


@pytest.mark.parametrize("size", [18, 20])
def test_a_line_of_small_letters_on_a_framed_copy_is_a_stamp(size: int) -> None:
    dark = ImageOps.invert(dialog(*WORDS))
    once = stamped(dark, (40, 330), size=size)
    assert alike(dark, once)
    assert alike(bordered(dark), once, 1)  # the white frame is mixed into the cells at its edges


@pytest.mark.parametrize(
    ("begin", "end", "missing"),
    [
        (0.0, 1.0, set()),  # one frame
        (0.005, 0.995, set()),  # less than half a cell off
        (-0.02, 1.02, {0, SIDE - 1}),  # the second picture goes on beyond the first
        (0.02, 0.98, {0, SIDE - 1}),  # and the other way round
        (-0.04, 0.96, {0, 1, 2, SIDE - 1}),  # the third cell reaches over the edge by a part
        (0.04, 1.04, {0, SIDE - 3, SIDE - 2, SIDE - 1}),
        (-0.06, 1.0, {0, 1, 2}),
    ],
)
def test_cells_that_reach_over_an_edge_are_not_compared(begin: float, end: float, missing: set[int]) -> None:
    """What lies beyond is black or white, everywhere else the pictures are one."""
    plane = np.full((SIDE, SIDE), 30, np.uint8)
    other = plane.copy()
    other[:, sorted(missing)] = 63
    starts = np.array([[end - begin, begin, 1, 0]])
    assert alignment.judged(plane[None], other[None], starts, THRESHOLD)[0][0]
    if SIDE - 1 not in missing:
        other[:, -1] = 63
        assert not alignment.judged(plane[None], other[None], starts, THRESHOLD)[0][0]
