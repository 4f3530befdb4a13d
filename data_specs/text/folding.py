"""Normal form of a text for comparison: width, case, punctuation, spaces and variant characters do not count.

First NFKC and case folding. Then each Chinese character is replaced by one that stands for all its variants, so that
紅燒肉 and 红烧肉, 裡 and 裏 and 里, are one text. Variants are the characters that OpenCC's conversions join, taken one
by one and without OpenCC's phrases: phrases choose between readings (乾 in 乾淨 and in 乾隆), while here both sides of
a comparison only have to come out alike. They are read from a file (`data_specs.text.variants`), and the table is made
once per process.

Limits: different regional words for one thing (软件, 軟體) stay different. Ids of texts follow from the table, whose
digest `folding_digest` returns.
"""

from __future__ import annotations

import hashlib
import operator
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_specs.text.variants import variants

Points = npt.NDArray[np.uint32]

USED = ((0, 0x40000), (0xE0000, 0xE0080))
"""Half-open ranges that hold all assigned characters except those of GLYPHS."""

GLYPHS = ((0xFE00, 0xFE10), (0xE0100, 0xE01F0), (0xF0000, 0x110000))
"""Half-open ranges of variation selectors, which choose a glyph and not a character, and of the private planes."""

BATCH = 8_192
"""Texts normalised together: NumPy's cost per call is shared by all of them."""

DELETED = frozenset({"Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Zs", "Zl", "Zp", "Cc", "Cf", "Co"})
"""Unicode categories that do not count. Cn is not one: a character unknown to this Python, a new emoji say, counts."""

_SEPARATOR = "\uffff"  # a noncharacter: no text of any language holds it
_DELETED = np.uint32(0xFFFFFFFF)
_POINT = np.uint32(ord("."))
_NO_NUMERALS = "什参"  # ten and three to Unicode, but nearly always part of 什么, 参观, 海参


class _Tables(NamedTuple):
    """Arrays indexed by code point: its replacement; whether it is a decimal digit, any numeral, a letter with case."""

    stands_for: Points
    decimal: npt.NDArray[np.bool_]
    numeric: npt.NDArray[np.bool_]
    letter: npt.NDArray[np.bool_]


def normal(text: str) -> str:
    """The normal form of a text: NFKC, case and variants folded, without punctuation, spaces and controls.

    A text that is nothing but punctuation keeps it, so that only the empty text has an empty form. Idempotent.
    """
    return normals([text])[0]


def normals(texts: Sequence[str]) -> list[str]:
    """`normal` of each text; in batches 2 microseconds per caption."""
    forms: list[str] = []
    for start in range(0, len(texts), BATCH):
        forms += _batch(texts[start : start + BATCH])
    return forms


def fold_characters(text: str) -> str:
    """Fold width, case and variants of a text, but keep its marks and spaces, for splitting into words.

    OpenCC's variants are folded to simplified characters where there are any, which are those of jieba's dictionary.
    """
    wide = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    points = code_points(wide)
    folded = _tables().stands_for[points]
    return _text(np.where(folded == _DELETED, points, folded))


def text_id(normal_text: str) -> str:
    """Id of a text: sha256, in hex, of its normal form. `text_leader` holds such ids."""
    return hashlib.sha256(normal_text.encode("utf-8", "surrogatepass")).hexdigest()


def numerals_of(normal_texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """[N] digest of the numerals of each text, Chinese ones too, and of its single letters, in order; 0 for none.

    Texts that differ in one of these are different, as 步骤1 and 步骤2, 第一步 and 第二步, 维生素A and 维生素C. A
    digest, because it is kept in STORE, and a caption's digits may be a telephone number.
    """
    if not normal_texts:
        return np.empty(0, np.uint64)
    points, tables = code_points(_SEPARATOR.join(normal_texts)), _tables()
    letter = tables.letter[points]
    kept = tables.numeric[points] | (points == ord(_SEPARATOR)) | letter
    # A letter beside another one is part of a word, not a mark such as the A of 维生素A: both are left out.
    kept[1:] &= ~(letter[1:] & letter[:-1])
    kept[:-1] &= ~(letter[1:] & letter[:-1])
    numerals = _text(points[kept]).split(_SEPARATOR)
    return np.array([int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) if n else 0 for n in numerals], np.uint64)


def code_points(text: str) -> Points:
    """[characters] code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def letters_and_digits(points: Points) -> npt.NDArray[np.bool_]:
    """Returns flags: decimal digits, and letters of scripts with capitals (Latin, Greek, Cyrillic ...)."""
    flags: npt.NDArray[np.bool_] = _tables().letter[points] | _tables().decimal[points]
    return flags


@cache
def folding_digest() -> str:
    """Short digest of the folding table. Another Python may have another table, and then other text ids."""
    return hashlib.sha256(_tables().stands_for.tobytes()).hexdigest()[:16]


def _batch(texts: Sequence[str]) -> list[str]:
    """`normals` of one batch, which is folded as one string with a separator between two texts."""
    joined = _SEPARATOR.join(texts)
    if joined.count(_SEPARATOR) != max(0, len(texts) - 1):
        joined = _SEPARATOR.join(text.replace(_SEPARATOR, "") for text in texts)
    while True:
        wide = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", joined).casefold())
        kept = _fold(wide).split(_SEPARATOR)
        if not all(kept):
            kept = [short or whole for short, whole in zip(kept, wide.split(_SEPARATOR), strict=True)]
        joined, before = _SEPARATOR.join(kept), joined
        # What was deleted may have stood between a letter and its accent: seldom, but then once more.
        if joined == before or (unicodedata.is_normalized("NFKC", joined) and joined.casefold() == joined):
            return kept if texts else []


def _fold(wide: str) -> str:
    """Replace variants in a string and delete its marks, except a point between two digits: 1.5 is not 15."""
    points, tables = code_points(wide), _tables()
    folded = tables.stands_for[points]
    at = np.flatnonzero(points[1:-1] == _POINT) + 1  # the first and the last character lack a digit on one side
    at = at[tables.decimal[points[at - 1]] & tables.decimal[points[at + 1]]]
    folded[at] = _POINT
    return _text(folded[folded != _DELETED])


def _text(points: Points) -> str:
    return points.tobytes().decode("utf-32-le", "surrogatepass")


@cache
def _tables() -> _Tables:
    size = sys.maxunicode + 1
    stands_for = np.arange(size, dtype=np.uint32)
    decimal, numeric, letter = (np.zeros(size, np.bool_) for _ in range(3))
    for low, high in USED:
        characters = list(map(chr, range(low, high)))
        decimal[low:high] = list(map(str.isdecimal, characters))
        numeric[low:high] = list(map(str.isnumeric, characters))
        letter[low:high] = list(map(operator.ne, map(str.upper, characters), characters))
        stands_for[low:high][list(map(DELETED.__contains__, map(unicodedata.category, characters)))] = _DELETED
    numeric[code_points(_NO_NUMERALS)] = False
    for low, high in GLYPHS:
        stands_for[low:high] = _DELETED
    for group in variants().groups:
        stands_for[code_points(group)] = ord(group[0])
    return _Tables(stands_for, decimal, numeric, letter)
