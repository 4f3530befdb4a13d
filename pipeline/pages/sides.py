"""The side of its images on which a page's texts stand.

Pages show images and texts in turn, and no markup says whether a text is about the image above or the one below. What
repeats does: between the images of a row stand texts of one shape (a paragraph; a heading and a paragraph), and such a
text stands at one end of the row only: behind the last image where each text is about the image above it. Where both
ends have one, words that point (如上图, 如下图) and lines of caption tell, else whether the paragraph at one end is
like those of the row and the other is not. Short lines without a full stop right behind the images of a page of
paragraphs are captions, and paragraphs there that begin with a name in bold, or define one, are about the image above,
whatever stands before the next image. Headings with the number of a section begin what follows. In a table with images
in one row of cells and as many texts in the next, a column is one pair.

A row that says nothing has its texts before its images, as most pages do.

Limits: rows are looked for where images lack a text in their own block and are not cards (`pipeline.pages.scopes`).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from pipeline.pages.lines import (
    DEFINES,
    POINTS_DOWN,
    POINTS_UP,
    SENTENCE_END,
    is_byline,
    is_caption_line,
    is_line,
    without_number,
)
from pipeline.pages.scopes import Scope, common_depth
from pipeline.pages.walk import ImagePlace, Walk

LONGEST_SHAPE = 4
"""Blocks between two images of a row at most."""

FEWEST_MARKED, MARKED_SHARE = 3, 0.8
"""Images of a page that have a line, or a name in bold, below them at least, and their share of its images. At most
the rest of its other paragraphs may be such: verses are not captions."""

MOST_TAGS = 1_000
"""Tags of a row of a table that is looked at."""

LEAST_SPREAD = math.log(1.3)
"""How far lengths of paragraphs are apart at least, as a logarithm, if they are taken to be alike."""

Shape = tuple[str, ...]


class _Group(NamedTuple):
    """Images without a text between them, and the first texts before and behind them, as far as the next image; before
    the first image the nearest."""

    rows: list[int]
    before: list[int]
    behind: list[int]


def texts_of(walk: Walk, scopes: Sequence[Scope], has_text: Sequence[bool], headline: str) -> dict[int, range]:
    """By the number of an image, the blocks that are about it, where images and texts take turns.

    has_text: whether an image's block has text of its own.
    """
    shown = [row for row, place in enumerate(walk.places) if not place.furniture and not place.fallback]
    if sum(not has_text[row] and not scopes[row].listed for row in shown) < 2:
        return {}
    return _Sides(walk, scopes, has_text, headline).find(shown)


class _Sides:
    def __init__(self, walk: Walk, scopes: Sequence[Scope], has_text: Sequence[bool], headline: str) -> None:
        self._walk, self._scopes, self._has_text = walk, scopes, has_text
        self._first_tags = walk.first_tags
        self._blocks = [place.block for place in walk.places]
        self._with_image, self._headings, self._headline = set(self._blocks), frozenset(walk.sections), headline
        self._kinds: dict[int, str] = {}

    def find(self, shown: list[int]) -> dict[int, range]:
        """By image the blocks of its text, of those that are known."""
        texts: dict[int, range] = {}
        stop = 0
        for _, rows in itertools.groupby(shown, key=lambda row: (self._scopes[row], self._has_text[row])):
            members = list(rows)
            start, stop = stop, stop + len(members)
            if self._has_text[members[0]] or self._scopes[members[0]].listed:
                continue
            groups = self._groups(members, shown[start - 1 : start], shown[stop : stop + 1])
            for group in groups:
                texts |= self._columns(group)
            marks = (self._is_line, self._begins_in_bold, self._defines)
            texts |= next(filter(None, (self._marked_texts(groups, mark) for mark in marks)), {})
            at = 0
            while at < len(groups):
                end = at + 1
                while end < len(groups) and self._continues_row(groups[at], groups[end]):
                    end += 1
                for row, text in self._row_texts(groups[at:end]):
                    texts.setdefault(row, range(text, text + 1))
                at = max(at + 1, end - 1) if end < len(groups) else end
        return texts

    def _continues_row(self, first: _Group, other: _Group) -> bool:
        """True if a group is in the row that another one begins: with a text of that shape before it, and in elements
        like those around the first."""
        paths = [self._walk.places[group.rows[0]].path for group in (first, other)]
        names = [[_name(self._walk.tags[at]) for at in path] for path in paths]
        return self._shape(other.before) == self._shape(first.behind) and names[0] == names[1]

    def _row_texts(self, groups: list[_Group]) -> Iterator[tuple[int, int]]:
        """The images of a row, each with the block of its text."""
        if len(groups) < 2 or len(groups[0].behind) > LONGEST_SHAPE:
            return
        behind = self._is_behind(groups)
        for group in groups:
            texts = group.behind[:1] if behind else group.before[-1:]
            if texts and self._kind(texts[0]) != "headline":
                yield from ((row, texts[0]) for row in group.rows)

    def _marked_texts(self, groups: list[_Group], is_marked: Callable[[int], bool]) -> dict[int, range]:
        """The text below each image, where most images have one with a mark and hardly any other paragraph between
        them has it: a line, or a paragraph that begins with a name in bold."""
        followed = [group for group in groups[:-1] if len(group.behind) > 1] + [g for g in groups[-1:] if g.behind]
        marked = [group for group in followed if is_marked(group.behind[0])]
        if len(marked) < max(FEWEST_MARKED, MARKED_SHARE * len(groups)):
            return {}
        if any(map(is_marked, groups[0].before)):
            return {}  # the texts stand before their images
        others = [at for group in groups[:-1] for at in group.behind[1:] if self._kind(at) == "paragraph"]
        if not others or sum(map(is_marked, others)) > (1 - MARKED_SHARE) * len(others):
            return {}
        return {row: range(group.behind[0], group.behind[0] + 1) for group in marked for row in group.rows}

    def _is_line(self, at: int) -> bool:
        return self._kind(at) == "paragraph" and is_line(self._walk.blocks[at].text())

    def _begins_in_bold(self, at: int) -> bool:
        return self._kind(at) == "paragraph" and self._walk.begins_in_bold(at)

    def _defines(self, at: int) -> bool:
        return self._kind(at) == "paragraph" and DEFINES.match(self._walk.blocks[at].text()) is not None

    def _groups(self, rows: list[int], last: list[int], following: list[int]) -> list[_Group]:
        """Images of one scope, in groups. last, following: the image before them and the one behind, if any.

        What stands outside the innermost element that holds them all is not of a row of theirs.
        """
        blocks, scope = self._blocks, self._scopes[rows[0]]
        low = max([scope.before - 1, *(blocks[row] for row in last)])
        high = min([scope.behind, *(blocks[row] for row in following)])
        first = self._walk.places[rows[0]].path
        if depth := common_depth(first, self._walk.places[rows[-1]].path):
            holder = first[depth - 1]
            end = self._walk.ends.get(holder, len(self._walk.tags))
            low = max(low, bisect.bisect_left(self._first_tags, holder) - 1)
            high = min(high, bisect.bisect_left(self._first_tags, end))
        gaps, groups = [self._texts(range(blocks[rows[0]] - 1, low, -1))[::-1]], [[rows[0]]]
        for one, other in itertools.pairwise(rows):
            if gap := self._texts(range(blocks[one] + 1, blocks[other])):
                gaps.append(gap)
                groups.append([other])
            else:
                groups[-1].append(other)
        gaps.append(self._texts(range(blocks[rows[-1]] + 1, high)))
        return [_Group(group, *around) for group, around in zip(groups, itertools.pairwise(gaps), strict=True)]

    def _texts(self, blocks: range) -> list[int]:
        """The first texts of some blocks: a shape's and one more, since what is longer is not a row."""
        return list(itertools.islice(filter(self._kind, blocks), LONGEST_SHAPE + 1))

    def _kind(self, at: int) -> str:
        """The kind of a block: "paragraph", "heading", "headline", or "" for one that is not running text."""
        if (kind := self._kinds.get(at)) is None:
            kind, block = "", self._walk.blocks[at]
            other = at in self._with_image or block.furniture or block.is_caption
            if not other and self._walk.is_foreign_heading(at):
                kind = "heading"
            elif not other and block.has_han() and not is_byline(text := block.text()):
                kind = "paragraph" if at not in self._headings else "headline" if text == self._headline else "heading"
            self._kinds[at] = kind
        return kind

    def _shape(self, blocks: Sequence[int]) -> Shape:
        return tuple(map(self._kind, blocks))

    def _is_behind(self, row: list[_Group]) -> bool:
        """True for a row of images each of which has its text behind it."""
        gaps = [group.before for group in row[1:]]
        shape = self._shape(gaps[0])
        lead, tail = row[0].before[-len(shape) :], row[-1].behind
        text = [self._walk.blocks[at].text() for at in (*(gap[-1] for gap in gaps), *lead[-1:])]
        if any(POINTS_DOWN.search(last[-80:]) for last in text):
            return False
        firsts = [self._walk.blocks[gap[0]].text() for gap in (*gaps, tail) if gap]
        if shape[0] == "heading" and all(without_number(text) != text for text in firsts[: len(gaps)]):
            return False
        if any(POINTS_UP.search(text[:80]) or is_caption_line(text) for text in firsts):
            return True
        tail_fits, lead_fits = self._shape(tail[: len(shape)]) == shape, self._shape(lead) == shape
        if not tail_fits:
            return False
        if not lead_fits:
            leads = shape[0] == "heading" and len(shape) > 1  # a section, of an article if more of it follows
            return (len(gaps) > 1 and not leads) or len(tail) == len(shape)
        if len(gaps) < 2 or shape != ("paragraph",):
            return False
        return self._is_like([gap[0] for gap in gaps], tail[0], lead[0])

    def _is_like(self, blocks: list[int], one: int, other: int) -> bool:
        """True if one paragraph is like some blocks, in its length or in having a full stop, and the other is not."""
        texts = [self._walk.blocks[at].text() for at in (*blocks, one, other)]
        *full, one_full, other_full = (SENTENCE_END.match(text[-1]) is not None for text in texts)
        *logs, one_log, other_log = (math.log(len(text)) for text in texts)
        usual = median(logs)
        spread = max(LEAST_SPREAD, *(abs(log - usual) for log in logs))
        if abs(one_log - usual) <= 1.2 * spread and abs(other_log - usual) > 2 * spread:
            return True
        return len(set(full)) == 1 and one_full == full[0] != other_full

    def _columns(self, group: _Group) -> dict[int, range]:
        """The texts of a group whose images stand in the cells of a row of a table, with a row of as many texts."""
        places = [self._walk.places[row] for row in group.rows]
        rows, cells = ({self._enclosing(place, name) for place in places} for name in ("tr", "td"))
        if len(places) < 2 or len(rows) > 1 or len(cells) < len(places) or -1 in cells | rows:
            return {}
        [row] = rows
        for start in (self._walk.ends.get(row, row) + 1, self._row_before(row)):
            texts = self._cells(start)
            if len(texts) == len(places):
                return dict(zip(group.rows, texts, strict=True))
        return {}

    def _cells(self, row: int) -> list[range]:
        """The blocks of each cell of a row that has text; nothing where no row begins."""
        tags = self._walk.tags
        if not 0 <= row < len(tags) or _name(tags[row]) != "tr" or "/tr" not in tags[row : row + MOST_TAGS]:
            return []
        end = tags.index("/tr", row)
        starts = [at for at in range(row, end) if _name(tags[at]) in ("td", "th")]
        cells = [
            range(bisect.bisect_left(self._first_tags, start), bisect.bisect_left(self._first_tags, following))
            for start, following in itertools.pairwise([*starts, end])
        ]
        return [cell for cell in cells if any(map(self._kind, cell))]

    def _row_before(self, row: int) -> int:
        """The tag that begins the row of a table before another one, -1 without one."""
        tags = self._walk.tags
        if row < 1 or tags[row - 1] != "/tr":
            return -1
        return next((at for at in range(row - 1, max(-1, row - MOST_TAGS), -1) if _name(tags[at]) == "tr"), -1)

    def _enclosing(self, place: ImagePlace, name: str) -> int:
        """The tag that begins the innermost element of a name around an image, -1 for none."""
        return next((at for at in reversed(place.path) if _name(self._walk.tags[at]) == name), -1)


def _name(tag: str) -> str:
    return tag.partition(" ")[0]
