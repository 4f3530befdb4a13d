"""Tables by character, for `str.translate`: a property of a character is computed when a text first has it.

What is looked up in Unicode or in OpenCC's dictionary costs microseconds, and of a text in Chinese the next ten
thousand characters are the same two thousand.
"""

from __future__ import annotations

from collections.abc import Callable
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

CHUNK = 512
"""Texts that filters look at together: each filter is asked about all of them before the next filter is."""

<<<<<<< HEAD
REMEMBERED = 2 * CHUNK
"""Answers that a function of a text remembers, for the filters that ask the same of it."""
=======
from data_specs.text.folding import Points, code_points

HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
"""A Han character."""

Bounds = npt.NDArray[np.int64]
"""[N + 1] where N texts in a row begin and end: text i is characters bounds[i] to bounds[i + 1]."""

NOTHING, SEVERAL = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)
"""In place of the code point that a character becomes: none, and more than one."""
>>>>>>> store


class Table(dict[int, str]):
    """A table for str.translate that computes an entry when it is first asked for."""

    def __init__(self, form: Callable[[str], str]) -> None:
        super().__init__()
        self._form = form

    def __missing__(self, code: int) -> str:
        self[code] = form = self._form(chr(code))
        return form
