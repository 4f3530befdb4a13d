"""Maps of pictures without texture: what copies forgive, and what tells two dialogs or charts apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.pictures import details
from pipeline.pictures.decode import decode
from pipeline.pictures.signatures import tones
from tests.drawn import encoded

THRESHOLD = 0.07


def dialog(*words: str, curve: int = 0, seed: int = 0) -> Image.Image:
    """A window of a program with a row for each word, and a chart."""
    image = Image.new("RGB", (500, 400), "#f0f0f0")
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 10, 490, 50), fill="#3060a0")
    font = ImageFont.load_default(22)
    for row, word in enumerate(words):
        draw.text((30, 70 + 40 * row), word, font=font, fill="black")
        draw.rectangle((180, 70 + 40 * row, 300, 96 + 40 * row), outline="#808080", fill="white")
    rng = np.random.default_rng(seed)
    draw.rectangle((320, 70, 480, 380), outline="black", fill="white")
    points = [(322 + 16 * x, 360 - curve - int(rng.integers(0, 250))) for x in range(10)]
    draw.line(points, fill="#c03030", width=4)
    return image


WORDS = ("Radius", "Contrast", "Opacity", "Seed", "Blend mode", "Clip", "Preview")


def parts_of(*images: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and maps, from files as `measure` decodes them."""
    made = [details.squares_of(decode(encoded(image, quality=85), reduce_to=64).pixels) for image in images]
    return details.hashes_of(np.stack([square for square, _ in made])), np.stack([cells for _, cells in made])


def alike(one: Image.Image, other: Image.Image, number: int = 0) -> bool:
    """Whether they are of one picture, from where the part `number` of the first is the whole of the second."""
    maps = parts_of(one, other)[1]
    boxes = details.BOXES_OF_PARTS
    starts = details.starts_of(boxes[[number]], boxes[[0]])
    back = details.starts_of(boxes[[0]], boxes[[number]])
    found = bool(details.judged(maps[:1], maps[1:], starts, THRESHOLD)[0][0])
    assert bool(details.judged(maps[1:], maps[:1], back, THRESHOLD)[0][0]) == found  # in either order
    return found


def bordered(image: Image.Image) -> Image.Image:
    framed = Image.new("RGB", (image.width * 104 // 100, image.height * 104 // 100), "white")
    framed.paste(image, (image.width // 50, image.height // 50))
    return framed


def cropped(image: Image.Image, share: float = 0.04) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def test_details_are_the_same_after_they_were_stored() -> None:
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 64, (3, details.SIDE, details.SIDE), dtype=np.uint8)
    hashes = rng.integers(0, 2**64, (3, len(details.PARTS)), dtype=np.uint64)
    stored = details.stored(hashes, maps)
    assert stored.shape == (3, details.SIZE)
    assert np.array_equal(details.maps_in(stored), maps)
    assert np.array_equal(details.hashes_in(stored), hashes)
    assert np.array_equal(details.tones_in(stored), tones(details.grids_of(maps)))
    for of in (details.maps_in, details.hashes_in, details.tones_in):
        assert len(of(stored[:0])) == 0


def test_copies_of_copies_agree_once_they_are_aligned() -> None:
    image = dialog(*WORDS)
    framed = bordered(image)
    assert alike(image, image)
    assert alike(framed, image.resize((250, 200), Image.Resampling.LANCZOS), 1)
    assert alike(framed, image.convert("L").convert("RGB"), 1)
    assert alike(framed, cropped(image), 7)
    assert alike(framed, image.crop((0, 0, 480, 384)), 8)


def test_hashes_of_what_two_changes_leave_are_near() -> None:
    image = dialog(*WORDS)
    hashes = parts_of(bordered(image), cropped(image), image.crop((20, 16, 500, 400)))[0]
    assert int(np.bitwise_count(hashes[0, 7] ^ hashes[1, 0])) <= 4
    assert int(np.bitwise_count(hashes[0, 11] ^ hashes[2, 0])) <= 4
    assert int(np.bitwise_count(hashes[0, 0] ^ hashes[1, 0])) > 4  # the wholes are not


@pytest.mark.parametrize("row", range(len(WORDS)))
def test_dialogs_with_other_words_in_a_row_are_two_pictures(row: int) -> None:
    others = list(WORDS)
    others[row] = "Illumination" if len(others[row]) < 10 else "Noise"  # words of one length may look alike
    assert not alike(dialog(*WORDS), dialog(*others))


def test_charts_with_another_curve_are_two_pictures() -> None:
    assert not alike(dialog(*WORDS), dialog(*WORDS, seed=1))
    assert not alike(dialog(*WORDS), dialog(*WORDS, curve=15))


def test_one_dense_block_is_a_stamp_and_two_of_them_are_not() -> None:
    image = dialog(*WORDS)
    stamped, twice = image.copy(), image.copy()
    for copy, places in ((stamped, [(40, 330)]), (twice, [(40, 330), (200, 100)])):
        for x, y in places:
            ImageDraw.Draw(copy).text(
                (x, y),
                "www.example.cn",
                font=ImageFont.load_default(36),
                fill="white",
                stroke_width=3,
                stroke_fill="black",
            )
    assert alike(image, stamped)
    assert alike(bordered(image), stamped, 1)
    assert not alike(image, twice)


def test_photographs_are_not_flat_and_drawings_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    assert not details.is_flat(noise)
    assert details.is_flat(np.asarray(dialog(*WORDS).resize((64, 64)).convert("RGBA")))
