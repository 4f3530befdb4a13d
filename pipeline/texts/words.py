"""Words of a Chinese text, as jieba segments it; rjieba, which is jieba in Rust, where both are known to agree.

Segmentation costs 5 microseconds per caption, as much as several text filters together. So `has_words` first looks
whether a text must have two words, as nearly all have: it is in two blocks, or is not a word of the dictionary.

`weight` is the length of a text in Han characters where Latin words stand among them, and needs no dictionary.

Limits: `words_of` guesses words that the dictionary lacks (names) by jieba's hidden Markov model; `count_words` does
not. jieba's dictionary is loaded (0.8 s) where a text asks for jieba itself, or for one or two words.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from data_specs.text.segmenter import rust_segmenter, segmenter

_BLOCK = re.compile(r"[\u4e00-\u9fd5a-zA-Z0-9+#&._%\-]+")
"""A block: Han characters, Latin letters, digits and a few marks in a row. For jieba no word spans two blocks."""

_NOT_IN_RUST = re.compile(
    r"[\u3400-\u4dff\u9fd6-\u9fff\uf900-\ufaff\U00020000-\U000323af]|c#|c\+\+|at&t", re.IGNORECASE
)
"""Text that rjieba cuts differently: Han characters that jieba does not know as such, and the dictionary's words with
marks in them."""

_LATIN_PIECE = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
"""Parts that jieba leaves together of a run of Latin letters, digits and marks (`re_skip` of jieba.finalseg)."""

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
    """Words of a text, without punctuation and white space: those of jieba, in a tenth of its time."""
    if _NOT_IN_RUST.search(text):
        return [word for word in segmenter().lcut(text) if any(c.isalnum() for c in word)]
    words: list[str] = []
    for word in rust_segmenter().cut(text, True):
        if word.isascii() and not word.isalnum():  # falcot.com is one word to rjieba, and two to jieba
            words += [piece for piece in _LATIN_PIECE.split(word) if any(c.isalnum() for c in piece)]
        elif any(c.isalnum() for c in word):
            words.append(word)
    return words


@functools.lru_cache(maxsize=1 << 14)  # the shortest captions, which must be segmented, are also those that recur
def count_words(text: str) -> int:
    """Number of words in a text, by the dictionary alone; what it lacks counts by character.

    Without the guessing of names rjieba is jieba on any text, also where `words_of` asks jieba itself.
    """
    return sum(word.isalnum() or any(map(str.isalnum, word)) for word in rust_segmenter().cut(text, False))


def has_words(text: str, at_least: int) -> bool:
    """True if `count_words(text) >= at_least`, mostly without segmenting the text where that is no more than two."""
    if len(text) < at_least:
        return False
    return (at_least <= 2 and _one_or_two(text) >= at_least) or count_words(text) >= at_least


def _one_or_two(text: str) -> int:
    """Lower bound of the number of words; counting stops at two."""
    words, count, at = _dictionary(), 0, 0
    while count < 2 and (match := _BLOCK.search(text, at)):
        block, at = match.group(), match.end()
        if not block.isalnum():
            count += any(map(str.isalnum, block))
        else:  # is one word, or takes two at least; a run of Latin letters and digits is one
            count += 1 if len(block) == 1 or block.isascii() or words.get(block) else 2
    return count


@functools.cache
def _dictionary() -> dict[str, int]:
    """Word -> frequency in jieba's dictionary; beginnings of words are keys too, with frequency 0."""
    words: dict[str, int] = segmenter().dt.FREQ
    return words


@functools.cache
def stop_words() -> frozenset[str]:
    """Words that say nothing about what a picture shows. Readers leave out words of one character as well."""
    return frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())
