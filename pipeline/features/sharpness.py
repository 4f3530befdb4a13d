"""Sharpness: the variance of the Laplacian of the grey picture, large where there are edges.

The focus measure of Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (2000), taken of the 64 x 64
thumbnail: it tells a picture that shows something from one that is all haze, whatever its size.

Limits: a blur that disappears at that size is not seen, some 4 pixels of a picture of 500.
"""

from __future__ import annotations

from pipeline.features import Feature
from pipeline.pictures.decode import Pixels
from pipeline.pictures.thumbs import Views


class Sharpness(Feature):
    """Floats from 0 up: squared grey levels. OpenCV sums whole numbers: nothing is rounded before the root."""

    def of(self, views: Views) -> list[float]:
        return [_variance(thumb) for thumb in views.thumbs]


def _variance(grey: Pixels) -> float:
    import cv2

    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return float(deviation[0, 0]) ** 2
