"""features: what many pictures have together is what each has alone."""

from __future__ import annotations

from pipeline.features import features
from tests.drawn import blobs, views


def test_what_is_looked_at_together_gives_what_each_gives_alone() -> None:
    """Pictures of all shapes, those that are narrowed and those of a pixel too."""
    sizes = [(128, 96), (96, 128), (65, 77), (1, 1), (40, 30), (64, 2_500), (128, 96)]
    pictures = [blobs(seed, size) for seed, size in enumerate(sizes)]
    for feature in features().values():
        together = feature.of(views(*pictures))
        assert together == [feature.of(views(pixels))[0] for pixels in pictures]
