"""Details of pictures without texture: what is stored, whose it is, and hashes that two changes leave near."""

from __future__ import annotations

import tracemalloc

import numpy as np
from PIL import Image

from pipeline.features._rows import measure_image
from pipeline.pictures import details
from pipeline.pictures.decode import decode
from pipeline.pictures.signatures import tones
from tests.drawn import encoded
from tests.windows import WORDS, bordered, cropped, dialog


def hashes_of(*images: Image.Image) -> np.ndarray:
    """Hashes, from files as `measure` decodes them."""
    made = [details.squares_of(decode(encoded(image, quality=85), reduce_to=64).pixels) for image in images]
    return details.hashes_of(np.stack([square for square, _ in made]))


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


def test_hashes_of_what_two_changes_leave_are_near() -> None:
    image = dialog(*WORDS)
    hashes = hashes_of(bordered(image), cropped(image), image.crop((20, 16, 500, 400)))
    assert int(np.bitwise_count(hashes[0, 7] ^ hashes[1, 0])) <= 4
    assert int(np.bitwise_count(hashes[0, 11] ^ hashes[2, 0])) <= 4
    assert int(np.bitwise_count(hashes[0, 0] ^ hashes[1, 0])) > 4  # the wholes are not


def test_drawings_may_have_a_map_and_photographs_and_lines_have_none() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    drawing = np.asarray(dialog(*WORDS).resize((64, 64)))
    assert not details.may_have_map(noise, noise)
    assert details.may_have_map(drawing, drawing)
    for height, width, possible in ((1_000, 1, True), (1_001, 1, False), (1, 65_500, False), (60_000, 60, True)):
        pixels = np.broadcast_to(np.uint8(255), (height, width, 3))
        assert details.may_have_map(pixels, drawing) == possible


def test_the_longest_picture_costs_what_its_square_costs() -> None:
    """A line of 65,500 pixels in a file of some hundred bytes; a map of it would take 268 MB."""
    data = encoded(Image.new("RGB", (65_500, 1), "white"), "PNG")
    tracemalloc.start()
    row = measure_image(data, 10**8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (row["width"], row["height"], row["details"]) == (65_500, 1, None)
    assert peak < 50_000_000
    assert measure_image(encoded(Image.new("RGB", (900, 1), "white"), "PNG"), 10**8)["details"] is not None
