"""The scope of each image of a page: the blocks of text that may be about it.

A scope is the smallest element around an image that holds text of its own and is a unit of the page: an article, list
entry, figure, table row or definition list, a section with a heading, or one of a row of like siblings that each hold
an image (cards). Without such an element it is the whole page. No text is taken across the end of an article, of a
section with a heading, or of a card that holds text. Sections of a document are not cards, unless each opens with its
picture and its heading follows.

Limits: siblings are alike if they are of one element and share a class, or have none; with a text between them, if all
their classes are the same. Cards that are made of several siblings each (`<dt><dd><dt><dd>`) are not recognised.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.pages.markup import value_of
from pipeline.pages.walk import Block, ImagePlace, Walk

_LETTER = re.compile(r"[^\W\d_]")
_UNITS = frozenset(("article", "li", "figure", "tr", "dl", "section"))
_CLOSED = frozenset(("article", "article ", "/article", "section", "section ", "/section"))
"""The first characters of tags that begin and end articles and sections."""
_UNIT_STARTS = frozenset(name[:2] for name in _UNITS)
_WITHIN_TEXT = frozenset(("p", "b", "em", "font", "i", "span", "strong", "center", "picture", "noscript"))
"""Elements of running text: two of them with an image each are not cards."""

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


def scopes_of(walk: Walk) -> tuple[list[Scope], list[int]]:
    """The scope of each image of a page, after the walk over it; of those that are furniture the whole page. And by
    image the block of the last heading before it, -1 for none; not one in an article, section or card that has ended.
    """
    page = Scope(0, len(walk.blocks), False, -1)
    if all(place.furniture for place in walk.places):
        return [page] * len(walk.places), [-1] * len(walk.places)
    scopes = _Scopes(walk, page)
    return [page if place.furniture else scopes.scope_of(place) for place in walk.places], list(scopes.headings())


class _Scopes:
    """Finds scopes; what images have in common is found once."""

    def __init__(self, walk: Walk, page: Scope) -> None:
        self._walk, self._page = walk, page
        self._first_tags = walk.first_tags
        self._images = [place.tag for place in walk.places if not place.furniture and not place.fallback]
        self._units: dict[int, Scope] = {}  # by the tag of an element, what it and those around it are
        self._with_text: dict[int, bool] = {}
        self._cards = self._rows_of_cards()
        self._closed = self._find_closed()
        self._borders = sorted(end for _, end in self._closed)
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

    def headings(self) -> Iterator[int]:
        """By image of the page the block of the last heading before it, as `scopes_of` returns it."""
        closed, sections = iter(sorted(self._closed)), iter(self._walk.sections)
        element, section = next(closed, None), next(sections, -1)
        around, headings = list[int](), list[tuple[int, int]]()  # ends of elements; headings, each with its end
        for place in self._walk.places:
            while 0 <= section < place.block:
                at = self._first_tags[section]
                while element is not None and element[0] < at:
                    around.append(element[1])
                    element = next(closed, None)
                while around and around[-1] < at:
                    around.pop()
                headings.append((section, around[-1] if around else len(self._walk.tags)))
                section = next(sections, -1)
            while headings and headings[-1][1] < place.tag:
                headings.pop()
            yield headings[-1][0] if headings else -1

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
        cards = set[int]()
        shown = [place for place in self._walk.places if not place.furniture and not place.fallback]
        for one, other in itertools.pairwise(shown):
            depth = common_depth(one.path, other.path)
            if depth < min(len(one.path), len(other.path)):
                first, second = one.path[depth], other.path[depth]
                if self._are_alike(first, second) and self._are_cards((first, one.tag), (second, other.tag)):
                    cards |= {first, second}
        return cards

    def _are_cards(self, *elements: tuple[int, int]) -> bool:
        """True unless elements, each with the tag of its image, are running text."""
        tags = [self._walk.tags[at] for at, _ in elements]
        if not _WITHIN_TEXT.isdisjoint(map(_name, tags)):
            return False
        return not any(map(_is_section, tags)) or all(self._opens_with(*element) for element in elements)

    def _opens_with(self, at: int, image: int) -> bool:
        """True for an element that has its heading behind its image, and no text before it."""
        blocks = slice(*self._range(self._first_tags, at, image))
        headings = self._walk.sections[slice(*self._range(self._walk.sections, *self._blocks(at)))]
        return bool(headings) and not any(map(_has_letters, self._walk.blocks[blocks]))

    def _are_alike(self, first: int, second: int) -> bool:
        """True for elements of one kind, and of like kinds (two boxes of a document) without a text between."""
        tags, walk = self._walk.tags, self._walk
        if tags[first] == tags[second] or not _share_class(tags[first], tags[second]):
            return tags[first] == tags[second]
        between = self._range(self._first_tags, walk.ends.get(first, first), second)
        return not any(map(_has_letters, walk.blocks[slice(*between)]))

    def _find_closed(self) -> list[tuple[int, int]]:
        """First and last tags of elements across whose end no text is taken."""
        tags, opened, closed = self._walk.tags, list[int](), list[tuple[int, int]]()
        headings = [self._first_tags[block] for block in self._walk.sections if block < len(self._first_tags)]
        if "/article" in tags or "/section" in tags:
            for at in [at for at, tag in enumerate(tags) if tag[:8] in _CLOSED]:
                if tags[at][0] != "/":
                    opened.append(at)
                elif opened:
                    start = opened.pop()
                    first, end = self._range(headings, start, at)
                    if first < end or tags[at] == "/article":
                        closed.append((start, at))
        for card in self._cards:
            if self._holds_text(card, *self._blocks(card)):
                closed.append((card, self._walk.ends.get(card, len(tags))))
        return closed

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


def _is_section(tag: str) -> bool:
    """True for a section of a document, as Sphinx has them."""
    classes = value_of(tag, "class") or ""
    return (_name(tag) == "section" and not classes) or "section" in classes.split()


def common_depth(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many elements hold both images, by the paths of these."""
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
