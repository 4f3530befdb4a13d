"""looks: details of some images, and maps over grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.features._rows import measure_image
from pipeline.matching.image_comparison import Details, Rule, SignatureArrays, families, fine_of
from pipeline.matching.image_comparison import alike as looks_alike
from pipeline.matching.image_edges import first_alike
from pipeline.pictures import details
from pipeline.pictures.hashing import HASHES
from pipeline.rows.records import FEATURE_SCHEMA
from pipeline.store.takedowns import looks_of
from tests.dedup_oracle import alike
from tests.detailed import drawn_details
from tests.drawn import encoded
from tests.windows import WORDS, bordered, cropped, dialog, sealed, stamped

THRESHOLD = 0.07


def measured(*images: Image.Image) -> tuple[np.ndarray, np.ndarray, Details]:
    rows = [measure_image(encoded(image, quality=85), 10**8) for image in images]
    return looks_of(pa.Table.from_pylist(rows, schema=FEATURE_SCHEMA))


ONE, OTHER = dialog("Radius", "Contrast", "Opacity", "Seed"), dialog("Radius", "Contrast", "Illumination", "Noise")


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.floats(0, 1))
def test_details_of_some_images_are_those_of_a_list_with_gaps(seed: int, size: int, share: float) -> None:
    """In memory, taken by any numbers, in a column with nulls and in a file."""
    rng = np.random.default_rng(seed)
    own = drawn_details(rng, size, 2, 1, share)
    every = dict(zip(own.of.tolist(), (row.tobytes() for row in own.stored), strict=True))
    column = [every.get(image) for image in range(size)]
    images = rng.integers(0, max(1, size), 10 if size else 0)

    def listed(some: Details, count: int) -> list[bytes | None]:
        of = dict(zip(some.of.tolist(), (row.tobytes() for row in some.stored), strict=True))
        assert some.of.tolist() == sorted(of)
        return [of.get(image) for image in range(count)]

    assert listed(own.take(images), len(images)) == [column[image] for image in images.tolist()]
    assert own.take(np.arange(size)) is own, "a map stays on disk"
    assert listed(own.take(np.arange(size)[::-1]), size) == column[::-1]
    table = pa.table(
        {"details": pa.chunked_array([pa.array(column[:7], pa.binary()), pa.array(column[7:], pa.binary())])}
    )
    assert listed(Details.of_table(table), size) == column
    assert listed(own.shifted(3), size + 3) == [None] * 3 + column


def test_details_come_back_from_a_file_and_are_not_read_before_they_are_needed(tmp_path: Path) -> None:
    own = drawn_details(np.random.default_rng(0), 9, 2, 1)
    with (tmp_path / "details").open("wb") as file:
        own.take(np.arange(5)).write(file)
        own.take(np.arange(5, 9)).shifted(5).write(file)
    again = Details.read(tmp_path / "details")
    assert isinstance(again.stored, np.memmap)
    assert again.of.tolist() == own.of.tolist()
    assert np.array_equal(again.stored, own.stored)
    (tmp_path / "none").touch()
    assert not len(Details.read(tmp_path / "none"))


def test_only_pictures_without_texture_have_details() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    own = measured(ONE, noise, OTHER)[2]
    assert own.of.tolist() == [0, 2]
    assert fine_of(own).codes.all()
    assert fine_of(own).tones.all()


@pytest.mark.slow
def test_windows_that_grids_do_not_tell_apart_are_two_pictures_by_their_maps() -> None:
    phash, signature, own = measured(ONE, OTHER, ONE.resize((250, 200), Image.Resampling.LANCZOS))
    like = alike(4, THRESHOLD, phash, signature, own)
    assert [like[0, at] for at in (1, 2)] == [False, True]
    one = own.take(np.arange(1))  # only the grids of both are known where one has no details
    assert [alike(4, THRESHOLD, phash, signature, Details(one.of, one.stored))[0, at] for at in (1, 2)] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [(330, 80, 390, 120), (30, 372, 90, 386), (30, 20, 90, 34)],
    ids=["in the chart", "along the lower edge", "in the title"],
)
def test_screens_of_one_program_that_differ_in_a_place_are_two_pictures_and_files_of_one_screen_are_not(
    place: tuple[int, int, int, int],
) -> None:
    """A difference that grids do not see, wherever it lies; a screen that was saved again or scaled is found."""
    screen = dialog(*WORDS)
    other = screen.copy()
    level = other.getpixel(place[:2])
    assert isinstance(level, tuple)
    ImageDraw.Draw(other).rectangle(place, fill=tuple(one - 15 if one > 200 else one + 80 for one in level))
    files = [
        encoded(other, "PNG"),
        encoded(screen, quality=40),
        encoded(screen, "WEBP", quality=50),
        encoded(screen.resize((250, 200), Image.Resampling.LANCZOS), quality=85),
    ]
    asked, own = (
        looks_of(pa.Table.from_pylist([measure_image(data, 10**8) for data in of], schema=FEATURE_SCHEMA))
        for of in (files, [encoded(screen, "PNG")])
    )
    assert first_alike(Rule(4, THRESHOLD), asked, own).tolist() == [-1, 0, 0, 0]


def test_joins_find_copies_of_pictures_with_maps() -> None:
    once = stamped(ONE, (30, 300), size=30)
    images = [bordered(ONE), ONE, cropped(ONE), ONE.crop((0, 0, 480, 384)), once, OTHER]
    phash, signature, own = measured(*images)
    first = first_alike(Rule(4, THRESHOLD), (phash, signature, own), (phash[:1], signature[:1], own.take(np.arange(1))))
    assert first.tolist() == [0, 0, 0, 0, 0, -1]


def test_a_red_seal_on_a_picture_without_texture_makes_no_other_picture_and_other_squares_do() -> None:
    corners = ((30, 280), (190, 290))
    one = [sealed(ONE, corner) for corner in corners]
    other = [sealed(ONE, corners[0], colour="#1818c0"), sealed(ONE, *corners), dialog(*WORDS, seed=2)]
    phash, signature, own = measured(bordered(ONE), *one, *other)
    kept = phash[:1], signature[:1], own.take(np.arange(1))
    assert first_alike(Rule(4, THRESHOLD), (phash, signature, own), kept).tolist() == [0, 0, 0, -1, -1, -1]


def test_families_hold_every_hash_and_ask_by_the_first() -> None:
    for fine, count in ((False, HASHES), (True, len(details.PARTS))):
        of = [family for family in families(4) if family.fine == fine]
        assert {part for family in of for part in family.parts} == set(range(count))
        assert all(family.asks == family.parts[0] for family in of)
        assert [family.radius for family in of] == ([5, 4, 4, 4, 4] if fine else [4, 4, 2, 2])


def test_parts_that_are_both_upright_are_compared_by_other_families_alone() -> None:
    _, signature, own = measured(ONE, ONE)
    signed, zero, one = SignatureArrays(signature, own), np.array([0]), np.array([1])
    for family in families(4, turned=True):
        asks = np.array([family.asks])
        same = looks_alike(signed, zero, asks, signed, one, asks, (family, THRESHOLD))
        assert same.tolist() == [not family.in_other_forms], family
    assert families(4, turned=True)[: len(families(4))] == families(4)
