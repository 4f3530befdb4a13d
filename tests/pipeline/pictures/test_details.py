"""Details of pictures without texture: what is stored, whose it is, and hashes that two changes leave near."""

from __future__ import annotations

import numpy as np
from PIL import Image

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


def test_photographs_are_not_flat_and_drawings_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    assert not details.is_flat(noise)
    assert details.is_flat(np.asarray(dialog(*WORDS).resize((64, 64)).convert("RGBA")))
