"""Words of a Chinese text, as jieba segments it; rjieba, which is jieba in Rust, where both are known to agree.

Segmentation costs 30 to 50 microseconds per caption, as much as all other text filters together. So `has_words`, which
only asks whether there are at least so many words, first computes a lower bound: no segmentation has fewer words than
the shortest chain of dictionary words that covers the text, and that chain takes a few dictionary look-ups.

`weight` is the length of a text in Han characters where Latin words stand among them, and needs no dictionary.

Limits: `words_of` guesses words that the dictionary lacks (names) by jieba's hidden Markov model; `count_words` does
not. jieba's dictionary is loaded (0.8 s) where a text asks for jieba itself.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from data_specs.segmenter import rust_segmenter, segmenter

_BLOCK = re.compile(r"[\u4e00-\u9fd5a-zA-Z0-9+#&._%\-]+")
"""A block: Han characters, Latin letters, digits and a few marks in a row. For jieba no word spans two blocks."""

_NOT_IN_RUST = re.compile(
    r"[\u3400-\u4dff\u9fd6-\u9fff\uf900-\ufaff\U00020000-\U000323af]|c#|c\+\+|at&t", re.IGNORECASE
)
"""Where rjieba cuts differently: Han characters that jieba does not know as such, and the dictionary's words with marks
in them."""

_LATIN_PIECE = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
"""What jieba leaves together of a run of Latin letters, digits and marks (`re_skip` of jieba.finalseg)."""

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
    """Number of words in a text, by the dictionary alone; what it lacks counts by character."""
    return sum(any(c.isalnum() for c in word) for word in segmenter().cut(text, HMM=False))


def has_words(text: str, at_least: int) -> bool:
    """Whether `count_words(text) >= at_least`, mostly without segmenting the text."""
    if len(text) < at_least:
        return False
    return _fewest(text, at_least) >= at_least or count_words(text) >= at_least


def _fewest(text: str, enough: int) -> int:
    """Lower bound of the number of words; counting stops at `enough`."""
    words: dict[str, int] = segmenter().dt.FREQ  # word -> frequency; prefixes of words are keys too, with frequency 0
    count = 0
    for block in _BLOCK.findall(text):
        if not block.isalnum():
            count += any(c.isalnum() for c in block)
        elif block.isascii():
            count += 1
        else:
            count += _chain(block, words, enough - count)
        if count >= enough:
            break
    return count


def _chain(block: str, words: dict[str, int], enough: int) -> int:
    """Fewest words that cover a block, where each may begin anywhere in the part covered before it (greedy, so exact).

    Counting stops at `enough`.
    """
    if enough <= 2:  # one look-up, as often as a spec asks for two words: a block is one word, or takes two at least
        return min(enough, 1 if len(block) == 1 or words.get(block) else 2)
    count, end, far = 0, 0, 0
    for start in range(len(block)):
        far = max(far, _reach(block, start, words))
        if start == end:  # block[:end] is covered by `count` words; the next one is that which reaches farthest
            count, end = count + 1, far
            if count == enough:
                break
    return count


def _reach(block: str, start: int, words: dict[str, int]) -> int:
    """End of the longest word that begins at `start`; for a Latin letter or digit, at least the end of its run."""
    end = far = start + 1
    while (frequency := words.get(block[start:end])) is not None and end <= len(block):
        far = end if frequency else far
        end += 1
    if block[start].isascii():
        while far < len(block) and block[far].isascii():
            far += 1
    return far


@functools.cache
def stop_words() -> frozenset[str]:
    """Words that say nothing about what a picture shows. Readers leave out words of one character as well."""
    return frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())
