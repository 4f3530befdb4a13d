"""features: values of a picture do not depend on the batch that it is measured in."""

from __future__ import annotations

from pipeline.features import features
from tests.drawn import blobs, views


def test_values_do_not_depend_on_the_batch() -> None:
    """Pictures of all shapes, those that are narrowed and those of a pixel too."""
    sizes = [(128, 96), (96, 128), (65, 77), (1, 1), (40, 30), (64, 2_500), (128, 96)]
    pictures = [blobs(seed, size) for seed, size in enumerate(sizes)]
    for feature in features().values():
        together = feature.of(views(*pictures))
        assert together == [feature.of(views(pixels))[0] for pixels in pictures]
