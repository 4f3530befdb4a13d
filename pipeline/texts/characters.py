"""Tables by character, for one text (`str.translate`) and for many texts in a row (NumPy).

A property of a character costs a look-up in Unicode or in OpenCC's dictionary. It is computed when the character is
first met, and kept in an array over all code points: of a text in Chinese the next ten thousand characters are the same
two thousand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from data_specs.text.folding import Points, code_points

HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
"""A Han character."""

Bounds = npt.NDArray[np.int64]
"""[N + 1] where N texts in a row begin and end: text i is characters bounds[i] to bounds[i + 1]."""

NOTHING, SEVERAL = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)
"""In place of the code point that a character becomes: none, and more than one."""


class Table(dict[int, str]):
    """A table for str.translate that computes an entry when it is first asked for."""

    def __init__(self, form: Callable[[str], str]) -> None:
        super().__init__()
        self._form = form
        self._points = np.zeros(sys.maxunicode + 1, np.uint32)  # 0: not asked for yet, or U+0000

    def __missing__(self, code: int) -> str:
        self[code] = form = self._form(chr(code))
        return form

    def of_points(self, points: Points) -> Points:
        """[N] what each of N code points becomes: a code point, NOTHING, or SEVERAL."""
        become: Points = self._points[points]
        if not become.all():
            for code in np.unique(points[become == 0]).tolist():
                form = self[code]
                self._points[code] = ord(form) if len(form) == 1 else SEVERAL if form else NOTHING
            become = self._points[points]
        return become


def concat(texts: Sequence[str]) -> tuple[Points, Bounds]:
    """Code points of texts in a row, and where each of them lies."""
    bounds = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(list(map(len, texts)), out=bounds[1:])
    return code_points("".join(texts)), bounds


def split_texts(points: Points, bounds: Bounds) -> list[str]:
    """Texts from their code points in a row."""
    text = points.tobytes().decode("utf-32-le", "surrogatepass")
    return [text[start:end] for start, end in pairwise(bounds.tolist())]


def count_flags(flags: npt.NDArray[np.bool_], bounds: Bounds) -> list[int]:
    """Returns the number of flagged characters of each text."""
    sums = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=sums[1:])
    numbers: list[int] = np.diff(sums[bounds]).tolist()
    return numbers
