"""Cleaning of a text as it enters the pipeline: one Unicode form, single spaces, nothing invisible.

Every text is cleaned once, whether it comes from a page, a table or a file beside a picture, so that later steps, which
compare, count or mask it, can rely on its form. Its meaning stays: case, width and punctuation are not changed here but
in `folding` and `forms`.

Of combining marks in a row that are not in order, the first MAX_MARKS stay: normalisation sorts them in quadratic time
(400,000 took 269 s).
"""

from __future__ import annotations

import re
import sys
from functools import cache
from unicodedata import combining, is_normalized, normalize

MAX_MARKS = 30
"""Combining marks in a row that stay of a text: what Unicode's Stream-Safe Text Format allows (UAX #15, D4). The most
that a language uses is below ten; the demo's pages have two."""

_INVISIBLE = re.compile(r"[\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
"""Zero-width characters, marks of writing direction, the byte order mark, controls that are not white space, and lone
surrogates, which JSON may hold and UTF-8 cannot."""


def clean(text: str) -> str:
    """The text in NFC, each run of white space as one space, without invisible characters. Idempotent."""
    if not text.isprintable():  # nothing that is removed is printable, so most texts skip the search
        text = _INVISIBLE.sub("", text)
    text = " ".join(text.split())
    if text.isascii() or is_normalized("NFC", text):  # sees marks out of order before it would sort them
        return text
    return normalize("NFC", _runs_of_marks().sub(lambda run: run.group()[:MAX_MARKS], text))


@cache
def _runs_of_marks() -> re.Pattern[str]:
    """More than MAX_MARKS characters in a row that normalisation sorts."""
    marks = "".join(filter(combining, map(chr, range(sys.maxunicode + 1))))
    return re.compile(f"[{re.escape(marks)}]{{{MAX_MARKS + 1},}}")
