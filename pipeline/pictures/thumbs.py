"""Thumbnails that features are computed from: every picture as one small square, in grey and in colour.

A feature describes coarse structure, so 64 x 64 pixels are enough for it. With all pictures of one size, a feature
looks at a whole batch [B, 64, 64] in a few calls, where a call per picture would cost more than its work.

Everything is integer arithmetic, or floats in which nothing is rounded: every machine computes the same values.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from pipeline.pictures.decode import Grey, Picture, Pixels
from pipeline.pictures.frames import QUARTERS, content_of, frame_of

REDUCE_TO = 64
"""Shorter side, in pixels, that a decode for features keeps at least: every feature is of coarse structure."""

THUMB = 64
"""Side of the square that a picture becomes; hashes and signatures start from it."""

COLOUR_THUMB = THUMB // 2
"""Side of the squares of its colours."""


def fill(square: Pixels, picture: Picture) -> None:
    """Scale a picture into `square` [64, 64, 4]: RGB and a fourth channel that means nothing.

    Resized once, by OpenCV's bit-exact bilinear filter: since a picture comes with 64 to 127 pixels to its shorter
    side, that is close to the mean of what a pixel of the square covers. The fourth channel is for speed alone: OpenCV
    has vector code for one, two and four channels, and takes half as long again over three.

    Limits: the longer side of a picture beyond 2 : 1 is sampled, not averaged.
    """
    import cv2

    pixels = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2RGBA)
    cv2.resize(pixels, (THUMB, THUMB), square, interpolation=cv2.INTER_LINEAR_EXACT)


def unframed(picture: Picture) -> Pixels | None:
    """The square [64, 64, 4] of what lies inside a picture's frame; None of a picture without one."""
    import cv2

    frame = frame_of(picture.pixels)
    if frame is None:
        return None
    height, width = (QUARTERS * side for side in picture.pixels.shape[:2])

    def inside(plane: Grey) -> Grey:
        larger = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        cut = larger[frame.top : height - frame.bottom, frame.left : width - frame.right]
        return cast("Grey", cv2.resize(cut, (THUMB, THUMB), interpolation=cv2.INTER_LINEAR_EXACT))

    # Each colour by itself: of 127 x 65,500 pixels, which fit into 25 kB of a file, all of them took 1.2 GB.
    colours = [inside(np.ascontiguousarray(picture.pixels[..., number])) for number in range(3)]
    return np.stack([*colours, np.full_like(colours[0], 255)], axis=2)


def content(picture: Picture) -> Pixels | None:
    """The square [64, 64, 4] of what lies between a picture's margins; None of a picture without margins."""
    found = content_of(picture.pixels)
    if found is None:
        return None
    square = np.empty((THUMB, THUMB, 4), np.uint8)
    fill(square, Picture(picture.header, np.ascontiguousarray(found)))
    return square


class Views:
    """Thumbnails of a batch of pictures, made from their squares [B, 64, 64, 4].

    inside: the squares of what lies inside their frames, by number, of those that have a frame; contents: the same of
    what lies between their margins; flat: what details are made of, of pictures that may be without texture.
    """

    def __init__(
        self,
        squares: Pixels,
        inside: Mapping[int, Pixels] | None = None,
        contents: Mapping[int, Pixels] | None = None,
        flat: Mapping[int, tuple[Pixels, Pixels]] | None = None,
    ) -> None:
        self.flat = dict(flat or {})
        """By number, of pictures that may be without texture: `details.squares_of`."""
        self.thumbs, self.colour_thumbs = _ycc_planes(squares)
        """[B, 64, 64]: Y (JFIF). [B, 2, 32, 32]: Cr and Cb."""
        self.unframed_thumbs, self.unframed_colour_thumbs = self.thumbs, self.colour_thumbs
        """The same without frames: of the whole picture where it has none."""
        if inside:
            rows = list(inside)
            thumbs, colours = _ycc_planes(np.stack([inside[row] for row in rows]))
            self.unframed_thumbs, self.unframed_colour_thumbs = self.thumbs.copy(), self.colour_thumbs.copy()
            self.unframed_thumbs[rows], self.unframed_colour_thumbs[rows] = thumbs, colours
        self.with_content = list(contents or ())
        """Numbers of the pictures whose content lies between margins; [C] below."""
        self.content_thumbs, self.content_colour_thumbs = (
            _ycc_planes(np.stack(list(contents.values()))) if contents else (self.thumbs[:0], self.colour_thumbs[:0])
        )

    @functools.cached_property
    def levels(self) -> npt.NDArray[np.float64]:
        """[B, 256]: the share of each grey level."""
        import cv2

        counts = [cv2.calcHist([thumb], [0], None, [256], [0, 256]) for thumb in self.thumbs]
        return np.array(counts, np.float64).reshape(-1, 256) / THUMB**2


def _ycc_planes(squares: Pixels) -> tuple[Pixels, Pixels]:
    """Y [B, 64, 64], and Cr and Cb [B, 2, 32, 32], of squares [B, 64, 64, 4]."""
    import cv2

    count = len(squares)
    # The batch is one tall picture [B * 64, 64, 4] to OpenCV, so that a conversion is one call and not B.
    planes = cast("Pixels", cv2.cvtColor(squares.reshape(-1, THUMB, 4), cv2.COLOR_RGB2YCrCb))
    size = (COLOUR_THUMB, count * COLOUR_THUMB)
    # 64 is even, so each 2 x 2 block that is averaged lies within one square.
    halves = cast("Pixels", cv2.resize(planes, size, interpolation=cv2.INTER_AREA))
    colours = halves.reshape(count, COLOUR_THUMB, COLOUR_THUMB, 3)[..., 1:]
    thumbs = np.ascontiguousarray(planes[..., 0]).reshape(count, THUMB, THUMB)
    return thumbs, np.ascontiguousarray(colours.transpose(0, 3, 1, 2))
