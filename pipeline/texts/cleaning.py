"""Cleaning of a text as it enters the pipeline: one Unicode form, single spaces, nothing invisible.

Every text is cleaned once, whether it comes from a page, a table or a file beside a picture, so that later steps, which
compare, count or mask it, can rely on its form. Its meaning stays: case, width and punctuation are not changed here but
in `folding` and `forms`.
"""

from __future__ import annotations

import re
from unicodedata import normalize

_INVISIBLE = re.compile(r"[\u200b-\u200f\u2028-\u202e\u2060\ufeff\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
"""Zero-width characters, marks of writing direction, the byte order mark, controls that are no white space, and lone
surrogates, which JSON may hold and UTF-8 cannot."""


def clean(text: str) -> str:
    """The text in NFC, each run of white space as one space, without invisible characters. Idempotent."""
    if not text.isprintable():  # nothing that is removed is printable, so most texts skip the search
        text = _INVISIBLE.sub("", text)
    return normalize("NFC", " ".join(text.split()))
