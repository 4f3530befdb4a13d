"""The scope of each image of a page: the blocks of text that may be about it.

A scope is the smallest element around an image that holds text of its own and is a unit of the page: an article, list
entry, figure, table row or definition list, a section with a heading, or one of a row of like siblings that each hold
an image (cards). Without such an element it is the whole page. No text is taken across the end of an article, of a
section with a heading, or of a card that holds text.

Limits: siblings are alike if they are of one element and share a class, or have none; with a text between them, if all
their classes are the same. Cards that are made of several siblings each (`<dt><dd><dt><dd>`) are not recognised.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.pages.markup import value_of
from pipeline.pages.walk import Block, ImagePlace, Walk, positions_of

_LETTER = re.compile(r"[^\W\d_]")
_UNITS = frozenset(("article", "li", "figure", "tr", "dl", "section"))
_SECTION = frozenset(("section", "section ", "/section"))
_UNIT_STARTS = frozenset(name[:2] for name in _UNITS)
_WITHIN_TEXT = frozenset(("p", "b", "em", "font", "i", "span", "strong", "center", "picture", "noscript"))
"""Elements of running text: two of them with an image each are not cards; nor are two sections of a document."""

MAX_IN_CARD = 3
"""Images of a card; what holds more of them, such as a cell of a page that is laid out by a table, is a part of it."""

MAX_ARTICLES = 200
"""Articles of a page that are compared with one that holds an image."""


class Scope(NamedTuple):
    """Blocks [before, behind) that may be about an image.

    listed: whether it is one of several cards, or articles. heading: the block of the card's heading, -1 for none.
    """

    before: int
    behind: int
    listed: bool
    heading: int


def scopes_of(walk: Walk) -> list[Scope]:
    """The scope of each image of a page, after the walk over it; of those that are furniture the whole page."""
    page = Scope(0, len(walk.blocks), False, -1)
    if all(place.furniture for place in walk.places):
        return [page] * len(walk.places)
    scopes = _Scopes(walk, page)
    return [page if place.furniture else scopes.scope_of(place) for place in walk.places]


class _Scopes:
    """Finds scopes; what images have in common is found once."""

    def __init__(self, walk: Walk, page: Scope) -> None:
        self._walk, self._page = walk, page
        self._first_tags = walk.first_tags
        self._images = [place.tag for place in walk.places if not place.furniture and not place.fallback]
        self._units: dict[int, Scope] = {}  # by the tag of an element, what it and those around it are
        self._with_text: dict[int, bool] = {}
        self._cards = self._rows_of_cards()
        self._borders = self._find_borders()
        self._articles: list[str] | None = None

    def scope_of(self, place: ImagePlace) -> Scope:
        scope, inner = self._page, list[int]()
        units, cards, tags = self._units, self._cards, self._walk.tags
        for at in reversed(place.path):
            unit = units.get(at)
            if unit is None and (at in cards or tags[at][:2] in _UNIT_STARTS):
                unit = self._unit(at)
            if unit is not None:
                scope = unit
                break
            inner.append(at)
        for at in inner:  # images that stand together have most elements around them in common
            self._units[at] = scope
        borders, block = self._borders, place.block
        at = bisect.bisect_left(borders, place.tag)
        low, high = borders[at - 1] if at else -1, borders[at] if at < len(borders) else len(self._walk.tags)
        before = max(scope.before, bisect.bisect_left(self._first_tags, low))
        behind = min(scope.behind, bisect.bisect_left(self._first_tags, high))
        if before == scope.before and behind == scope.behind:
            return scope
        return Scope(min(before, block), max(behind, block + 1), scope.listed, scope.heading)

    def _unit(self, at: int) -> Scope | None:
        """The scope that the element is which a tag begins; None if it is none."""
        walk, tag, card = self._walk, self._walk.tags[at], at in self._cards
        if not card and _name(tag) not in _UNITS:
            return None
        first, end = self._blocks(at)
        if not self._holds_text(at, first, end):
            return None
        heading = next(iter(walk.sections[slice(*self._range(walk.sections, first, end))]), -1)
        name = _name(tag)
        if name == "section" and not card and heading < 0:
            return None
        is_card = card or (name == "article" and self._is_one_of_several(tag))
        is_card = is_card and len(self._images[slice(*self._range(self._images, at, walk.ends[at]))]) <= MAX_IN_CARD
        unit = self._units[at] = Scope(first, end, is_card, heading if is_card else -1)
        return unit

    def _rows_of_cards(self) -> set[int]:
        """Tags that begin an element with a like sibling beside it, each with an image."""
        tags, cards = self._walk.tags, set[int]()
        shown = [place for place in self._walk.places if not place.furniture and not place.fallback]
        for one, other in itertools.pairwise(shown):
            depth = _common_depth(one.path, other.path)
            if depth < min(len(one.path), len(other.path)):
                first, second = one.path[depth], other.path[depth]
                if not _is_running_text(tags[first]) and self._are_alike(first, second):
                    cards |= {first, second}
        return cards

    def _are_alike(self, first: int, second: int) -> bool:
        """True for elements of one kind, and of like kinds (two boxes of a document) without a text between."""
        tags, walk = self._walk.tags, self._walk
        if tags[first] == tags[second] or not _share_class(tags[first], tags[second]):
            return tags[first] == tags[second]
        between = self._range(self._first_tags, walk.ends.get(first, first), second)
        return not any(map(_has_letters, walk.blocks[slice(*between)]))

    def _find_borders(self) -> list[int]:
        """Tags that end an element across which no text is taken, ascending."""
        tags, borders, opened = self._walk.tags, positions_of("/article", self._walk.tags), list[int]()
        headings = [self._first_tags[block] for block in self._walk.sections if block < len(self._first_tags)]
        for at, tag in enumerate(tags) if "/section" in tags else ():
            if (name := tag[:8]) not in _SECTION:
                continue
            if name == "/section":
                first, end = self._range(headings, opened.pop() if opened else at, at)
                if first < end:
                    borders.append(at)
            else:
                opened.append(at)
        for card in self._cards:
            if self._holds_text(card, *self._blocks(card)):
                borders.append(self._walk.ends.get(card, len(tags)))
        return sorted(borders)

    def _is_one_of_several(self, article: str) -> bool:
        """True for an article beside which there are others of its kind."""
        if self._walk.tags.count("/article") < 2:
            return False
        if self._articles is None:
            articles = (tag for tag in self._walk.tags if tag[:7] == "article" and _name(tag) == "article")
            self._articles = list(itertools.islice(articles, MAX_ARTICLES))
        return sum(_share_class(article, other) for other in self._articles) > 1

    def _holds_text(self, at: int, first: int, end: int) -> bool:
        """True if the element of a tag, with blocks [first, end), has text that is neither caption nor furniture."""
        if (holds := self._with_text.get(at)) is None:
            holds = self._with_text[at] = any(map(_has_letters, self._walk.blocks[first:end]))
        return holds

    def _blocks(self, at: int) -> tuple[int, int]:
        """The blocks [first, end) within the element that a tag begins."""
        return self._range(self._first_tags, at, self._walk.ends.get(at, len(self._walk.tags)))

    @staticmethod
    def _range(values: Sequence[int], low: int, high: int) -> tuple[int, int]:
        return bisect.bisect_left(values, low), bisect.bisect_left(values, high)


def _has_letters(block: Block) -> bool:
    return not block.furniture and not block.is_caption and _LETTER.search(block.raw_text()) is not None


def _name(tag: str) -> str:
    return tag.partition(" ")[0]


def _is_running_text(tag: str) -> bool:
    """True for a part of a text: an element within a paragraph, or a section of a document, as Sphinx has them."""
    name = _name(tag)
    if name in _WITHIN_TEXT:
        return True
    classes = value_of(tag, "class") or ""
    return (name == "section" and not classes) or "section" in classes.split()


def _common_depth(one: Sequence[int], other: Sequence[int]) -> int:
    at, limit = 0, min(len(one), len(other))
    while at < limit and one[at] == other[at]:
        at += 1
    return at


def _share_class(one: str, other: str) -> bool:
    """True for tags of one name that share a class, or have none."""
    if one == other:
        return True
    if _name(one) != _name(other):
        return False
    classes = [set((value_of(tag, "class") or "").split()) for tag in (one, other)]
    return not (classes[0] or classes[1]) or not classes[0].isdisjoint(classes[1])
