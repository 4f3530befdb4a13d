"""Drops pictures with a large QR code: posters, advertisements, contact cards.

The detector is OpenCV's, which needs no weights. The score is the share of the picture that its codes cover, each
measured between the outer corners of its three marks.

Not among the default filters, since it is not free: on 120 pictures of web pages, 512 pixels long in the median, the
detector takes 15 ms of one core (mean 18), and all of `measure` 2.4 ms (mean 9.5). Beside another filter of pixels it
shares the decode: data_specs/danqing.yaml names it with `image_nsfw`.

No cheaper test runs first: in the 64 to 127 pixels that `measure` decodes, a module of such a code has about one pixel.
Of 700 pictures of blogs and documentation, none had a code.

Thresholds: NeMo Curator's (a code of more than 5% of the picture).

Limits: of codes pasted into photos that were then saved as JPEG of quality 60, those of 140 pixels and more were
detected in 93 to 94 of 100, those of 100 pixels and fewer in at most 4; none was seen in 346 photos of dishes. Codes
that are curved or cut off are mostly missed, and bar codes are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from pipeline.filters import Drop, PixelFilter
from pipeline.pictures.decode import Pixels
from pipeline.rows.decisions import DropReason

LONGEST = 1024
"""Pixels of the longer side that the detector sees at most: it takes time by their number."""


class ImageQr(PixelFilter):
    """Share of the picture that QR codes cover."""

    NEEDS_SIDE: ClassVar[int] = LONGEST

    max_share: float = Field(0.05, ge=0, le=1, description="maximum share of the picture covered by QR codes")

    def model_identity(self) -> list[Any]:
        """OpenCV's release: the detector is code, not weights."""
        import cv2

        return [cv2.__version__.split(".")[:2]]

    def load(self) -> Any:
        import cv2

        return cv2.QRCodeDetector()

    def score(self, detector: Any, pictures: Sequence[Pixels]) -> list[float]:
        return [_share(detector, picture) for picture in pictures]

    def judge(self, score: float) -> Drop | None:
        if score > self.max_share:
            return Drop(DropReason.QR_CODE, f"QR codes cover {score:.1%}; at most {self.max_share:.1%}")
        return None


def _share(detector: Any, picture: Pixels) -> float:
    """Share, 0 to 1, of a picture [H, W, 3] under its codes."""
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = LONGEST / max(height, width)
    if scale < 1:
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, sides, interpolation=cv2.INTER_AREA)
    any_code, corners_C42 = detector.detectMulti(grey)
    if not any_code:
        return 0.0
    covered = sum(float(cv2.contourArea(corners_42)) for corners_42 in corners_C42)
    return min(1.0, covered / grey.size)
