"""Tables by character, for `str.translate`: a property of a character is computed when a text first has it.

What is looked up in Unicode or in OpenCC's dictionary costs microseconds, and of a text in Chinese the next ten
thousand characters are the same two thousand.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CHUNK = 512
"""Texts that filters look at together: each filter is asked about all of them before the next filter is."""

REMEMBERED = 2 * CHUNK
"""Answers that a function of a text remembers, for the filters that ask the same of it."""

HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
"""A Han character."""


class Table(dict[int, str]):
    """A table for str.translate that computes an entry when it is first asked for."""

    def __init__(self, form: Callable[[str], str]) -> None:
        super().__init__()
        self._form = form

    def __missing__(self, code: int) -> str:
        self[code] = form = self._form(chr(code))
        return form
