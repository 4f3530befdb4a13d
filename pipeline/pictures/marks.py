"""The watermark of many equal-sized pictures: what is the same in all of them survives the median of their gradients.

The idea is that of Dekel, Rubinstein, Liu and Freeman, "On the Effectiveness of Visible Watermarks" (CVPR 2017): a logo
that is laid on every picture of a collection adds the same edges at the same place, while the edges of what they show
point anywhere, and have a median near nothing. No weights, and nothing is learnt beyond these pictures.

A picture is looked at in grey, scaled down to SIDE pixels (`plane`). The median of the gradients is the mark where it
is strong (`estimate`). Two things that are the same in many pictures are not watermarks: lines over most of a row or a
column, which frames, bars and collages have, are taken out; and where more than MOST of the picture is the same, it is
a template (screenshots of one program, products in one pose). Both stay.

How much of the mark a picture shows is the normalised correlation of its gradients with it, where the mark is
(`correlation`). A gradient counts with at most LONGEST times the mark's length there: texture under a faint mark would
otherwise hide it.

Everything is integer arithmetic until the last division, so that every machine computes the same values.

Limits: a mark has to lie at one place in pictures of one size, on about half of a hundred of them, or on nearly all of
twenty. What else is the
same there is a mark too: the logo of a channel, a clock in a corner, the dial of one watch. Marks of less than LEAST of
the picture, or with weaker edges than WEAKEST, are not seen; nor are those that are tiled or moved at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.pictures.decode import Pixels

SIDE = 320
"""Longer side in pixels of what is looked at: the strokes of a logo of a tenth of the width remain."""

WEAKEST, ABOVE_NOISE = 5, 6
"""Grey levels that the edges of a mark have at least, and times d / sqrt(N), the median absolute deviation of the N
gradients there: of Gaussian ones the median is that long by chance in 3 of 100,000 places, of steeper ones in fewer."""

FEW = 10
"""Pictures with which that is doubled: of few, the deviation itself is uncertain."""

STRIP = 2_000_000
"""Gradients whose median is taken at once."""

LEAST, MOST = 0.0008, 0.2
"""Share of the picture that the edges of a mark cover at least, and at most."""

LINE = 0.5
"""Share of a row or column that is one line: of a frame or a bar, not of a mark."""

LONGEST = 2
"""Times the length of the mark's gradient that a picture's gradient counts with at most."""

Ints = npt.NDArray[np.int64]
Plane = npt.NDArray[np.uint8]
Steps = npt.NDArray[np.int16]
Verdict = Literal["mark", "none", "template"]


@dataclass(frozen=True)
class Mark:
    """The mark of pictures of one size: the places of its edges, row by row in a plane, and its gradients there.

    verdict: `mark`, `none` for nothing that is the same, `template` for too much. share: of the plane's pixels that are
    the same. at, across, down: [M], empty without a mark; gradients are in halves of a grey level.
    """

    verdict: Verdict
    share: float
    sides: tuple[int, int]  # width and height of the plane
    at: Ints
    across: Ints
    down: Ints


def sides_of(width: int, height: int) -> tuple[int, int]:
    """Width and height of the plane of a picture of this size; never larger than the picture."""
    longer = max(width, height)
    if longer <= SIDE:
        return width, height
    return max(1, (2 * width * SIDE + longer) // (2 * longer)), max(1, (2 * height * SIDE + longer) // (2 * longer))


def reduced(width: int, height: int) -> int:
    """Shorter side in pixels that a decode of a picture has to keep for its plane."""
    return min(sides_of(width, height))


def plane(pixels: Pixels, sides: tuple[int, int]) -> Plane:
    """[height, width] grey levels of a picture, scaled down."""
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L")
    if grey.size != sides:
        grey = grey.resize(sides, Image.Resampling.BOX)
    return np.array(grey)


def gradients(planes: Plane) -> tuple[Steps, Steps]:
    """Differences between both neighbours, across and down, at each pixel of planes [.., H, W]; 0 at their edges."""
    grey = planes.astype(np.int16)
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[..., 1:-1] = grey[..., 2:] - grey[..., :-2]
    down[..., 1:-1, :] = grey[..., 2:, :] - grey[..., :-2, :]
    return across, down


def estimate(planes: Plane) -> Mark:
    """The mark of pictures of one size. planes [N, H, W], N at least 1."""
    count, height, width = planes.shape
    medians, noise = np.empty((2, height, width), np.int64), np.empty((2, height, width), np.int64)
    rows = max(1, STRIP // (count * width))
    for top in range(0, height, rows):
        low = max(0, top - 1)  # with the rows above and below, which a gradient needs
        strip = gradients(planes[:, low : top + rows + 1])
        for axis, values in enumerate(strip):
            here = values[:, top - low :][:, :rows]
            medians[axis, top : top + rows] = own = _doubled_median(here)
            noise[axis, top : top + rows] = _doubled_median(np.abs(2 * here - own)) // 2
    lengths, spreads = (np.sqrt((own * own).sum(axis=0)) for own in (medians, noise))
    above = ABOVE_NOISE * (1 + FEW / count) / math.sqrt(count)
    strong = (lengths >= 2 * WEAKEST) & (lengths >= above * spreads)
    share = float(strong.mean())
    mask = _edge_flags(strong & ~_line_flags(strong))
    verdict: Verdict = "template" if share > MOST else "mark" if mask.mean() >= LEAST else "none"
    at = np.flatnonzero(mask) if verdict == "mark" else np.zeros(0, np.int64)
    across, down = (own.ravel()[at] for own in medians)
    return Mark(verdict, round(share, 4), (width, height), at, across, down)


def _doubled_median(values: Steps) -> Steps:
    """Twice the median over the first axis: whole, where the number of values is even too."""
    high = len(values) // 2
    low = (len(values) - 1) // 2
    ordered = np.partition(values, (low, high), axis=0)
    doubled: Steps = ordered[low] + ordered[high]
    return doubled


def _line_flags(strong: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The rows and columns, each with its neighbours, that are a line over LINE of their length."""
    lines = np.zeros_like(strong)
    for axis in (0, 1):
        whole = np.flatnonzero(strong.mean(axis=axis) >= LINE)
        for beside in (-2, -1, 0, 1, 2):
            near = whole + beside
            near = near[(near >= 0) & (near < strong.shape[1 - axis])]
            if axis == 0:
                lines[:, near] = True
            else:
                lines[near] = True
    return lines


def _edge_flags(strong: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Returns the flags with at least two flagged neighbours, as on an edge; single ones are chance."""
    height, width = strong.shape
    around = np.pad(strong.astype(np.int8), 1)
    beside = np.zeros((height, width), np.int8)  # with itself
    for y in range(3):
        for x in range(3):
            beside += around[y : y + height, x : x + width]
    edges: npt.NDArray[np.bool_] = strong & (beside >= 3)
    return edges


def correlation(grey: Plane, mark: Mark) -> float:
    """Returns the correlation of a plane [H, W] with a mark: -1 to 1, 0 on average without it. Four decimals."""
    across, down = (own.ravel()[mark.at].astype(np.int64) * 2 for own in gradients(grey))
    own, of_mark = across * across + down * down, mark.across**2 + mark.down**2
    longest = LONGEST * LONGEST * of_mark
    scale = np.where(own > longest, np.sqrt(longest / np.maximum(own, 1)), 1.0)
    product = float(((across * mark.across + down * mark.down) * scale).sum())
    norm = float(np.sqrt((own * scale * scale).sum()) * np.sqrt(float(of_mark.sum())))
    return round(product / norm, 4) if norm else 0.0


def drawn(mark: Mark) -> Plane:
    """[H, W]: the lengths of the mark's gradients, the strongest white."""
    width, height = mark.sides
    picture = np.zeros(width * height, np.uint8)
    if len(mark.at):
        lengths = np.hypot(mark.across.astype(np.float64), mark.down.astype(np.float64))
        picture[mark.at] = np.clip(np.rint(255 * lengths / np.quantile(lengths, 0.95)), 40, 255).astype(np.uint8)
    return picture.reshape(height, width)
