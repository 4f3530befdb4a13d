"""The scope of each image of a page: the blocks of text that may be about it.

A scope is the smallest element around an image that holds text of its own and is a unit of the page: an article, list
entry, figure, table row or definition list, a section with a heading, or one of a row of like siblings that each hold
an image (cards). Without such an element it is the whole page. No text is taken across the end of an article, of a
section with a heading, or of a card that holds text.

Limits: siblings are alike if they are of one element and share a class, or have none. Cards that are made of several
siblings each (`<dt><dd><dt><dd>`) are not recognised.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.pages.markup import value_of
from pipeline.pages.walk import Block, Place, Walk

_LETTER = re.compile(r"[^\W\d_]")
_UNITS = frozenset(("article", "li", "figure", "tr", "dl", "section"))
_WITHIN_TEXT = frozenset(("p", "b", "em", "font", "i", "span", "strong", "center", "picture", "noscript"))
"""Elements of running text: two of them with an image each are no cards."""

MAX_ARTICLES = 200
"""Articles of a page that are compared with one that holds an image."""


class Scope(NamedTuple):
    """Blocks [first, end) that may be about an image.

    before, behind: the blocks [before, behind) of them that can be reached from the image without leaving another
    element of the page's. listed: whether it is one of several cards, or articles. heading: the block of the card's
    heading, -1 for none.
    """

    first: int
    end: int
    before: int
    behind: int
    listed: bool
    heading: int


class Scopes:
    """Scopes of the images of a page, after the walk over it."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._begins = list(itertools.accumulate((block.begins for block in walk.blocks), max))  # the last may be empty
        self._lettered = [i for i, block in enumerate(walk.blocks) if _has_letters(block)]
        self._cards = self._rows_of_cards()
        self._borders = self._ends() if walk.places else []
        self._articles = [tag for tag in walk.tags if tag[:7] == "article" and tag[7:8] in ("", " ")][:MAX_ARTICLES]

    def of(self, place: Place) -> Scope:
        """The scope of an image."""
        walk, tags = self._walk, self._walk.tags
        for at in reversed(place.path):
            name = _name(tags[at])
            card = at in self._cards
            if not card and name not in _UNITS:
                continue
            first, end = self._blocks(at)
            if self._count(self._lettered, first, end) == 0:
                continue
            heading = next(iter(walk.sections[slice(*self._range(walk.sections, first, end))]), -1)
            if name == "section" and not card and heading < 0:
                continue
            listed = card or (name == "article" and sum(_alike(tags[at], other) for other in self._articles) > 1)
            return self._reached(place, first, end, listed, heading if listed else -1)
        return self._reached(place, 0, len(walk.blocks), False, -1)

    def _reached(self, place: Place, first: int, end: int, listed: bool, heading: int) -> Scope:
        """Narrow the blocks that can be reached by the ends of elements before and after the image."""
        borders = self._borders
        at = bisect.bisect_left(borders, place.tag)
        low, high = borders[at - 1] if at else -1, borders[at] if at < len(borders) else len(self._walk.tags)
        before = max(first, bisect.bisect_left(self._begins, low))
        behind = min(end, bisect.bisect_left(self._begins, high))
        return Scope(first, end, min(before, place.block), max(behind, place.block + 1), listed, heading)

    def _rows_of_cards(self) -> set[int]:
        """Tags that begin an element with a like sibling beside it, each with an image."""
        tags, cards = self._walk.tags, set[int]()
        shown = [place for place in self._walk.places if not place.furniture and not place.fallback]
        for one, other in itertools.pairwise(shown):
            depth = _in_common(one.path, other.path)
            if depth < min(len(one.path), len(other.path)):
                first, second = one.path[depth], other.path[depth]
                if _name(tags[first]) not in _WITHIN_TEXT and _alike(tags[first], tags[second]):
                    cards |= {first, second}
        return cards

    def _ends(self) -> list[int]:
        """Tags that end an element across which no text is taken, ascending."""
        tags, found, opened = self._walk.tags, list[int](), list[int]()
        headings = [self._begins[block] for block in self._walk.sections if block < len(self._begins)]
        for at, tag in enumerate(tags):
            if tag == "/article" or (tag == "/section" and opened and self._count(headings, opened.pop(), at)):
                found.append(at)
            elif tag[:7] == "section" and tag[7:8] in ("", " "):
                opened.append(at)
        cards = (card for card in self._cards if self._count(self._lettered, *self._blocks(card)))
        return sorted((*found, *(self._walk.ends.get(card, len(tags)) for card in cards)))

    def _blocks(self, at: int) -> tuple[int, int]:
        """The blocks [first, end) within the element that a tag begins."""
        return self._range(self._begins, at, self._walk.ends.get(at, len(self._walk.tags)))

    @staticmethod
    def _range(values: Sequence[int], low: int, high: int) -> tuple[int, int]:
        return bisect.bisect_left(values, low), bisect.bisect_left(values, high)

    def _count(self, values: Sequence[int], low: int, high: int) -> int:
        first, end = self._range(values, low, high)
        return end - first


def _has_letters(block: Block) -> bool:
    return not block.furniture and not block.is_caption and any(map(_LETTER.search, block.parts))


def _name(tag: str) -> str:
    return tag.partition(" ")[0]


def _in_common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _alike(one: str, other: str) -> bool:
    """True for tags of one name that share a class, or have none."""
    if one == other:
        return True
    if _name(one) != _name(other):
        return False
    classes = [set((value_of(tag, "class") or "").split()) for tag in (one, other)]
    return not (classes[0] or classes[1]) or not classes[0].isdisjoint(classes[1])
