"""features: values of a picture do not depend on the batch that it is measured in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.features import _rows
from pipeline.features._rows import FeatureRows, measure_image
from pipeline.features.columns import FEATURES
from pipeline.pictures.decode import Header, Picture
from tests.drawn import blobs, picture, views


def test_values_do_not_depend_on_the_batch() -> None:
    """Pictures of all shapes, those that are narrowed and those of a pixel too."""
    sizes = [(128, 96), (96, 128), (65, 77), (1, 1), (40, 30), (64, 2_500), (128, 96)]
    pictures = [blobs(seed, size) for seed, size in enumerate(sizes)]
    for feature in FEATURES.values():
        together = feature.of(views(*pictures))
        assert together == [feature.of(views(pixels))[0] for pixels in pictures]


def test_blankness_entropy_and_sharpness_are_what_numpy_says() -> None:
    """Of a picture of the size of a thumb, which nothing is done to, against their definitions."""
    pixels = np.random.default_rng(7).integers(0, 256, (64, 64), dtype=np.uint8) // 5 * 5
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    row = measure_image(out.getvalue(), 10_000)
    shares = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    edges = np.pad(pixels.astype(float), 1, mode="reflect")
    laplacian = edges[:-2, 1:-1] + edges[2:, 1:-1] + edges[1:-1, :-2] + edges[1:-1, 2:] - 4 * edges[1:-1, 1:-1]
    assert row["blankness"] == pytest.approx(shares.reshape(64, 4).sum(axis=1).max())
    assert row["entropy"] == pytest.approx(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum(), abs=1e-3)
    assert row["sharpness"] == pytest.approx(laplacian.var(), rel=1e-6)


def test_flat_and_blurred_pictures_are_told_from_sharp_ones() -> None:
    def saved(image: Image.Image) -> dict[str, Any]:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        return measure_image(out.getvalue(), 10**7)

    flat = saved(Image.new("RGB", (640, 480), "teal"))
    assert (flat["entropy"], flat["sharpness"], flat["blankness"]) == (0.0, 0.0, 1.0)
    blocks = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    sharp = Image.fromarray(blocks).resize((640, 480), Image.Resampling.NEAREST)
    values = [saved(sharp.filter(ImageFilter.GaussianBlur(radius)))["sharpness"] for radius in (0, 4, 8, 16)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 10 * values[2]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2), (5000, 70), (63, 65)])
def test_any_shape_has_features(size: tuple[int, int]) -> None:
    row = measure_image(picture(8, size, "PNG"), 10**6)
    assert (row["width"], row["height"]) == size
    assert len(row["signature"]) == len(measure_image(picture(8), 10**6)["signature"])
    assert np.isfinite([row["blankness"], row["entropy"], row["sharpness"]]).all()


def test_a_picture_on_which_it_fails_leaves_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a frame, whose map takes more memory than there is; the next has no frame."""
    framed = np.pad(blobs(3, (102, 78)), ((6, 6), (9, 9), (0, 0)), constant_values=255)
    failing, plain = (Picture(Header("png", 120, 90, 1, 1, False), own) for own in (framed, blobs(4, (120, 90))))

    def fails(_: object) -> None:
        raise MemoryError

    rows, alone = FeatureRows(), FeatureRows()
    with monkeypatch.context() as patch:
        patch.setattr(_rows, "squares_of", fails)
        with pytest.raises(MemoryError):
            rows.add("failing", 1, failing)
    for own in (rows, alone):
        own.add("plain", 1, plain)
    assert rows.table().equals(alone.table())
