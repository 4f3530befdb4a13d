"""Frames and margins around a picture, which a copy may have and its original may not.

Hashes and signatures are made of what is inside the frame. A framed copy is often the largest one of its picture, so it
is the first that dedup keeps, and all other copies are compared with it: a crop of the original lies further inside it
than any of `parts.BOXES`, and a stamped copy differs from it by two things at once.

A frame is as narrow as a tenth of a side, has one grey level at all four sides, and ends at once: along most of its
inner edge the picture begins within two lines. What the line between frame and picture holds of both tells where the
picture begins, to a quarter of a pixel.

A drawing on white is without a frame, its ground goes on here and there. It may have margins, and a copy more (with
a border) or less (cropped): so its content has a hash and a grid of its own, beside those of the whole. Instead of them
would lose copies with a text in the margin.

Whole numbers throughout: every machine finds the same frame.

Limits: of a frame in two colours nothing is seen; a frame around a picture of the frame's own colour along most of a
side is none.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from pipeline.pictures.decode import Grey, Pixels

QUARTERS = 4
"""Parts of a pixel in which frames are measured."""

NARROWEST, WIDEST = 8, 100
"""Thousandths of a side that a frame is wide."""

ONE_LEVEL = 12
"""Grey levels by which corners of a frame may differ; JPEG leaves them a little apart."""

OFF, OFF_SHARE = 10, 3
"""A line with more than 3% of its pixels more than 10 levels off the frame's is the first inside the frame."""

QUIET = 3
"""Levels by which the lines of a frame may be off on average: a fading shadow is not a frame."""

CLEAR = 20
"""Levels off the frame's at which a pixel shows the picture for sure."""

BEGUN_EACH, BEGUN = 300, 700
"""Thousandths of the inner edge at which the picture must begin: at each side, and on average."""

DRAWN, DRAWN_SHARE = 24, 2
"""A line with more than 2% of its pixels more than 24 levels off the ground belongs to the content."""

LEAST = 300
"""Thousandths of a side that content must fill."""

Lines = npt.NDArray[np.int16]


class Frame(NamedTuple):
    """Widths of a frame in quarters of a pixel."""

    left: int
    top: int
    right: int
    bottom: int


def frame_of(pixels: Pixels) -> Frame | None:
    """The frame of a picture [H, W, 3]; None if it has none, as most have."""
    if not _has_one_level(pixels):
        return None
    import cv2

    grey = cast("Grey", cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    level = int(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    widths, begun = list[int](), 0
    for lines in (grey.T, grey, grey.T[::-1], grey[::-1]):  # left, top, right, bottom, each from its edge inwards
        side = _frame_side(lines, level)
        if side is None:
            return None
        widths.append(side[0])
        begun += side[1]
    return Frame(*widths) if begun >= 4 * BEGUN else None


def content_of(pixels: Pixels) -> Pixels | None:
    """Returns the content between the margins of a picture [H, W, 3]; None without margins, or with little else."""
    if not _has_one_level(pixels):
        return None
    import cv2

    grey = cast("Grey", cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    ground = sorted(int(grey[y, x]) for y in (0, -1) for x in (0, -1))[1]
    drawn = np.maximum(grey, ground) - np.minimum(grey, ground) > DRAWN
    height, width = grey.shape
    rows = np.flatnonzero(np.count_nonzero(drawn, axis=1) * 100 > DRAWN_SHARE * width)
    columns = np.flatnonzero(np.count_nonzero(drawn, axis=0) * 100 > DRAWN_SHARE * height)
    if not len(rows) or not len(columns):
        return None
    content: Pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    little = content.shape[0] * 1_000 < LEAST * height or content.shape[1] * 1_000 < LEAST * width
    return None if little or content.shape == pixels.shape else content


def _has_one_level(pixels: Pixels) -> bool:
    """True if the corners are alike, as frames and margins have them: this spares most pictures all else."""
    corners = [int(pixels[y, x, 1]) for y in (0, -1) for x in (0, -1)]
    return max(corners) - min(corners) <= ONE_LEVEL


def _frame_side(lines: Grey, level: int) -> tuple[int, int] | None:
    """(width in quarters, thousandths of the inner edge at which the picture begins) of one side of a frame, or None.

    lines [n, pixels]: from the edge inwards.
    """
    count, length = lines.shape
    most = count * WIDEST // 1_000 + 2
    off: Lines = np.abs(lines[: most + 2].astype(np.int16) - np.int16(level))
    others = np.count_nonzero(off > OFF, axis=1) * 100 > OFF_SHARE * length
    first = int(others.argmax())  # the first line inside the frame, which may be half of one
    if not 0 < first <= most or not others[first] or first + 1 >= len(off):
        return None
    if int(off[:first].sum(dtype=np.int64)) > QUIET * first * length:
        return None
    mixed, inside = off[first], off[first + 1]
    clear = inside > CLEAR
    begun = 1_000 * max(np.count_nonzero(mixed > CLEAR), np.count_nonzero(clear)) // length
    if begun < BEGUN_EACH:
        return None
    whole = int(inside[clear].sum(dtype=np.int64))
    part = int(np.minimum(mixed, inside)[clear].sum(dtype=np.int64))
    covered = (QUARTERS * part + whole // 2) // whole if whole else QUARTERS  # of the mixed line, by the picture
    width = QUARTERS * (first + 1) - covered
    return (width, begun) if 1_000 * width >= NARROWEST * QUARTERS * count else None
