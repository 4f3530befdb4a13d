"""Two undisguised forms of a text, in which filters search: `even`, with all positions kept, and `bare`, letters only.

`even(text)` has exactly one character per character of the text: full width becomes half width, capitals small,
Traditional Simplified, circled digits and accented letters plain. So a position in it is a position in the text, which
can be masked. `bare(text)` is the same without anything but letters and digits: no space, mark, emoji or zero-width
character remains, so that 法*轮 功 reads 法轮功. `positions(text)` returns where in the text each character of the bare
form stood, for filters that must know what was between them.

Both are made with a table that fills itself: a character is looked up in Unicode (NFKC) and in OpenCC's dictionary of
characters once per process. A few emoji that are read aloud (➕ 加, ❤ 心) count as the character.

Limits: character by character, so a Traditional character with two Simplified ones (乾) gets OpenCC's first; what only
looks alike, as Cyrillic letters do, stays what it is.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from typing import Any

from pipeline.texts.characters import REMEMBERED, Table

_READ_ALOUD = {"➕": "加", "✚": "加", "❤": "心", "♥": "心", "💗": "心", "💚": "心", "💬": "信", "🐧": "企鹅"}


@lru_cache(maxsize=REMEMBERED)
def even(text: str) -> str:
    """The text with every character plain, and as many characters as before."""
    return text.translate(_EVEN)


@lru_cache(maxsize=REMEMBERED)
def bare(text: str) -> str:
    """The plain letters and digits of the text, nothing else."""
    return text.translate(_BARE)


def positions(text: str) -> list[int]:
    """For each character of `bare(text)` the index in `text` of the character that it comes from."""
    return [at for at, character in enumerate(text) for _ in _BARE[ord(character)]]


def _plain(character: str) -> str:
    """A character without width, case, accent, circle and variant: mostly one character, sometimes several."""
    plain, before = character, ""
    while plain != before:  # some take two steps, as \u01c4 does: d\u017e, then dz
        plain, before = "".join(_plainer(c) for c in plain), plain
    return plain


def _plainer(character: str) -> str:
    if character in _READ_ALOUD:
        return _READ_ALOUD[character]
    wide = unicodedata.normalize("NFKC", character).lower()
    letter = unicodedata.normalize("NFKD", wide)[:1]
    if letter.isascii() and letter.isalpha() and all(unicodedata.combining(c) for c in wide[1:]):
        wide = letter  # \u00e9, and \u0130 whose small letter is two characters
    return wide if wide.isascii() else str(_opencc().convert(wide))


def _plain_or_same(character: str) -> str:
    plain = _plain(character)
    return plain if len(plain) == 1 else character


def _letters(character: str) -> str:
    return "".join(c for c in _plain(character) if unicodedata.category(c)[0] in "LN")


@cache
def _opencc() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


_EVEN = Table(_plain_or_same)
_BARE = Table(_letters)
