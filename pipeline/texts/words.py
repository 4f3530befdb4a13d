"""Words of a Chinese text, as jieba cuts it.

Cutting costs 30 to 50 microseconds a caption, as much as everything else that is asked of one. So `has_words`, which
only wants to know whether there are so many, first counts how few they can be: no segmentation has fewer words than the
shortest chain of dictionary words that covers the text, and that chain takes a few dictionary look-ups.

jieba's dictionary is read once a process (0.8 s). Limits: `words_of` guesses words that the dictionary lacks (names)
by jieba's hidden Markov model; `count_words` does not.
"""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"[\u4e00-\u9fd5a-zA-Z0-9+#&._%\-]+")
"""What jieba never cuts across: runs of Han, Latin letters, digits and a few marks."""


def words_of(text: str) -> list[str]:
    """Words of a text, without punctuation and white space."""
    return [word for word in _jieba().lcut(text) if any(c.isalnum() for c in word)]


@functools.lru_cache(maxsize=1 << 14)  # the shortest captions, which must be cut, are also those that come again
def count_words(text: str) -> int:
    """Number of words of the dictionary in a text; what the dictionary lacks counts by character."""
    return sum(any(c.isalnum() for c in word) for word in _jieba().cut(text, HMM=False))


def has_words(text: str, at_least: int) -> bool:
    """Whether `count_words(text) >= at_least`, most often without cutting."""
    if len(text) < at_least:
        return False
    return _fewest(text, at_least) >= at_least or count_words(text) >= at_least


def _fewest(text: str, enough: int) -> int:
    """A bound that the number of words is not below; not counted beyond `enough`."""
    words: dict[str, int] = _jieba().dt.FREQ  # a prefix of a word is there too, with 0
    found = 0
    for block in _BLOCK.findall(text):
        if not block.isalnum():
            found += any(c.isalnum() for c in block)
        elif block.isascii():
            found += 1
        else:
            found += _chain(block, words, enough - found)
        if found >= enough:
            break
    return found


def _chain(block: str, words: dict[str, int], enough: int) -> int:
    """Fewest words that cover a block if each may begin anywhere that is covered; not counted beyond `enough`."""
    found, end, far = 0, 0, 0
    for start in range(len(block)):
        far = max(far, _reach(block, start, words))
        if start == end:  # covered up to here: the word that reaches farthest comes next
            found, end = found + 1, far
            if found == enough:
                break
    return found


def _reach(block: str, start: int, words: dict[str, int]) -> int:
    """End of the longest word that begins at `start`; of a Latin letter or digit, of its run."""
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
    """Words that say nothing about what a picture shows. Words of one character are left out as well."""
    return frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())


@functools.cache
def _jieba() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources in jieba's own source
        import jieba

        jieba.setLogLevel(logging.ERROR)
        jieba.initialize()
    return jieba
