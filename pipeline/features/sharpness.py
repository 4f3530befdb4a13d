"""Sharpness: the variance of the Laplacian of the grey picture, large where there are edges.

The focus measure of Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (2000), taken at the reduced
size, where the shorter side has 64 to 127 pixels: it tells a picture that shows something from one that is all haze,
whatever its size.

Limits: a blur that is gone at the reduced size is not seen, 2 or 3 pixels of a picture of 500.
"""

from __future__ import annotations

from pipeline.features import Feature, View


class Sharpness(Feature):
    """Float from 0 up: squared grey levels. OpenCV sums whole numbers: nothing is rounded before the root."""

    def of(self, view: View) -> float:
        import cv2

        _, deviation = cv2.meanStdDev(cv2.Laplacian(view.grey, cv2.CV_16S))
        return float(deviation[0, 0]) ** 2
