"""Words of a Chinese text, as rjieba segments it, which is jieba in Rust with its dictionary.

`weight` is the length of a text in Han characters where Latin words stand among them, and needs no dictionary.

Limits: `words_of` guesses words that the dictionary lacks (names) by jieba's hidden Markov model; `count_words` does
not.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

LATIN = re.compile("[0-9A-Za-z\u00c0-\u024f]+")
"""A word in Latin letters, or a number."""

LATIN_WEIGHT = 4 / 3
"""Han characters that say what a Latin word does: four stand for three English words."""


def weight(text: str) -> float:
    """Length of a text in Han characters: a Latin word or a number counts LATIN_WEIGHT, another character 1.

    White space counts nothing. At most the number of characters.
    """
    runs = LATIN.findall(text)
    return sum(map(len, text.split())) - sum(len(run) - min(len(run), LATIN_WEIGHT) for run in runs)


def words_of(text: str) -> list[str]:
    """Words of a text, without punctuation and white space."""
    import rjieba

    return [word for word in rjieba.cut(text, True) if any(map(str.isalnum, word))]


@functools.lru_cache(maxsize=1 << 14)  # short captions recur
def count_words(text: str) -> int:
    """Number of words in a text, by the dictionary alone; what it lacks counts by character. Equals jieba's."""
    import rjieba

    return sum(word.isalnum() or any(map(str.isalnum, word)) for word in rjieba.cut(text, False))


@functools.cache
def stop_words() -> frozenset[str]:
    """Words that say nothing about what a picture shows. Readers leave out words of one character as well."""
    return frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())
