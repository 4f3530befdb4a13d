"""Content of a text: its nouns and other content words, its stop words, and how common its words are.

Words are those of jieba's dictionary, which also states each word's part of speech and how often it occurred in the
corpus that the dictionary was counted on (60 million words). They are cut by rjieba, which is jieba in Rust: the same
words in a tenth of the time (tests compare both, and the tags with jieba.posseg). Texts are read in their even form
(`pipeline.texts.forms`), so that Traditional words are known as well.

A word of two or more Latin letters lacks an entry and counts as a noun, since it mostly names something (iPhone), and
so does a Han character that the dictionary lacks: the rest of a name (红隼, 大鵟).

Limits: a tag is that of the word alone: 做法 is a verb to the dictionary, wherever it stands, and so is 警察. A word
that it lacks is cut into characters, each with its own tag.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib import resources

from pipeline.texts.forms import even
from pipeline.texts.words import LATIN, stop_words

CONTENT = ("n", "v", "a", "i", "l", "j", "z", "t", "s")
"""First letters of tags of content words: nouns, verbs, adjectives, idioms and set phrases, abbreviations, states,
times, places."""

NAMING = ("n", "vn", "an", "g", "zg", "j", "i", "l", "t", "s", "b")
"""First letters of tags of nouns, and of words that stand as nouns in captions: verbs and adjectives used so, roots of
words, abbreviations, set phrases, times, places, and what only qualifies one. 塔, 隼, 十字路口 and 薰衣草 are none of
the dictionary's n."""

FUNCTION = ("u", "p", "c", "r", "y", "e", "o", "k", "h")
"""First letters of tags of words that only hold others together: particles, prepositions, conjunctions, pronouns."""


@dataclass(frozen=True, slots=True)
class Density:
    """Counts of the words of a text, and how common they are.

    words: all with a letter or digit. nouns, content, stop: those that are nouns, content words, stop words.
    entropy: sum over the distinct words of -p ln p, where p is a word's share of the dictionary's corpus.
    """

    words: int
    nouns: int
    content: int
    stop: int
    entropy: float

    @property
    def content_share(self) -> float:
        """Share of content words; 0 for a text without words."""
        return self.content / self.words if self.words else 0.0

    @property
    def stop_share(self) -> float:
        """Share of stop words; 0 for a text without words."""
        return self.stop / self.words if self.words else 0.0


def density(text: str) -> Density:
    entries, distinct = _entries(), dict[str, float]()
    words = nouns = content = stop = 0
    for word in cut(text):
        entry = entries[word]
        if entry is None:
            continue
        words += 1
        nouns += entry.noun
        content += entry.content
        stop += entry.stop
        distinct[word] = entry.part
    return Density(words, nouns, content, stop, math.fsum(distinct.values()))


def cut(text: str) -> list[str]:
    """Words of a text in its even form, with what stands between them."""
    import rjieba

    words: list[str] = rjieba.cut(even(text), False)
    return words


def outside_gbk(text: str) -> int:
    """Returns the number of characters outside GBK: emoji, rare characters, letters of most other scripts."""
    try:
        text.encode("gbk")  # as nearly all can be, in a tenth of the time
    except UnicodeEncodeError:
        return sum(not character.encode("gbk", "ignore") for character in text if not character.isspace())
    return 0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A word: which kinds it counts for, and its part -p ln p of a text's entropy."""

    noun: bool
    content: bool
    stop: bool
    part: float


class _Entries(dict[str, "_Entry | None"]):
    """Entry of each word that was looked up; None for what has neither letter nor digit."""

    MAX_WORDS = 1 << 18
    """Words after which all are forgotten: texts hold any number of words in Latin letters, and numbers."""

    def __init__(self) -> None:
        super().__init__()
        text = resources.files("jieba").joinpath("dict.txt").read_text(encoding="utf-8")
        # word -> "times tag", parsed when a text has the word: there are 349,046 of them
        self._lines: dict[str, str] = dict(line.split(" ", 1) for line in text.splitlines())

    @functools.cached_property
    def _total(self) -> int:
        """Words of the corpus that the dictionary was counted on."""
        return sum(int(line.partition(" ")[0]) for line in self._lines.values())

    def __missing__(self, word: str) -> _Entry | None:
        if len(self) >= self.MAX_WORDS:
            self.clear()
        self[word] = entry = self._entry(word) if any(map(str.isalnum, word)) else None
        return entry

    def _entry(self, word: str) -> _Entry:
        name = len(word) > 1 and LATIN.fullmatch(word) and not word.isdigit()
        times, tag = self._lines.get(word, f"1 {'nz' if name else 'x'}").split()
        p = max(int(times), 1) / self._total
        stop = word in stop_words() or tag.startswith(FUNCTION)
        noun = not stop and (tag.startswith(NAMING) or (tag == "x" and not word.isascii() and word.isalpha()))
        content = not stop and (noun or tag.startswith(CONTENT))
        return _Entry(noun, content, stop, -p * math.log(p))


@functools.cache
def _entries() -> _Entries:
    return _Entries()
