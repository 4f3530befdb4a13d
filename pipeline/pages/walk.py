"""The walk over a page's DOM: blocks of running text, and the position of each image among them.

Tags and class names tell what a block or an image belongs to (page furniture, figures, captions). The class names are
those of Chinese sites and of common generators: WordPress, MediaWiki, DocBook, Asciidoctor, Toutiao, Jianshu, Baike.

The walk uses no recursion and bounds the text around an image, so that a hostile page costs no more than its size.

Limits: class names must say what they mean; a site that calls its captions `p3` is not understood. MathML is not
text: beside it stands the same formula for browsers without it, as a picture or as spans (MediaWiki, KaTeX).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.pages.markup import attributes_of, pieces_of, unescaped, value_of
from pipeline.texts.characters import HAN
from pipeline.texts.cleaning import clean

MAX_NEAR = 2000
"""Characters of a block, on each side of an image, that can become its surrounding text."""

MAX_FIGURES = 8
"""Depth of figures within figures; deeper ones count as part of the last."""

MAX_LOOKS = 100
"""Elements per page that are searched for an article; after that, furniture is recognised by class names alone."""

MAX_HEADLINES = 50
"""Headlines of first order that are noted: a page made from Markdown has one per section."""

MAX_SOURCES = 50
"""Copies that are read of a <picture>; later ones are passed over."""

MAX_PATH = 64
"""Elements around an image that are noted, from the outermost inwards."""

SRCSETS = ("data-srcset", "data-lazy-srcset", "srcset")
"""Attributes that hold a list of copies of an image."""

SILENT = frozenset((
    "script", "style", "template", "svg", "math", "iframe", "object", "select", "textarea", "head", "audio", "video",
    "canvas", "rt", "rp"
))  # fmt: skip
_VOID = frozenset((
    "area", "base", "basefont", "bgsound", "br", "col", "embed", "frame", "hr", "img", "input", "keygen", "link",
    "meta", "param", "source", "track", "wbr"
))  # fmt: skip
"""Elements that lexbor writes without an end tag."""
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "br", "button", "caption", "center", "dd", "details", "dialog",
    "dir", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6",
    "header", "hgroup", "hr", "legend", "li", "listing", "main", "menu", "nav", "ol", "optgroup", "option", "p",
    "plaintext", "pre", "search", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
    "xmp"
))  # fmt: skip
"""Elements that end the text before them; any other one is within a line. Source: HTML Living Standard, 15.3."""
_LINK = ("a", "a ")
MARKS = frozenset(["¶", "§", "#", "⚓", "⚓︎", "🔗", "\uf0c1", "&para;", "&sect;"])
"""Texts of the links that generators of documentation put beside a heading."""
_MARKED = frozenset(mark[0] for mark in MARKS)
_NEVER_FURNITURE = frozenset(("html", "body", "article", "main", "h1"))
_FURNITURE_TAGS = frozenset(("nav", "footer", "aside", "form", "button", "menu"))
_FURNITURE = re.compile(
    r"[\s_-](?<!\bwith[_-])(?<!\bhas[_-])(?<!\bno[_-])(?<!quote[_-])(?:nav|navbar|navigation|menu|breadcrumbs?|crumbs?|"
    r"footer|foot|copyright|sidebar|side-bar|category-chain|docnav|toc|share|sharing|related|recommend|reward|donate|"
    r"tabbed-labels|tablist|comments?|pagination|pager|toolbar|advert|ads?|sponsor|login|search)[\s_-]"
)
"""These are searched in class and id in lower case, with spaces around: what begins with a set of characters is found
fast."""
_FIGURE = re.compile(
    r"\s(?:figure|informalfigure|mediaobject|imageblock|wp-caption|thumb(?:inner)?|media|"
    r"(?:image|img|pic|photo|picture|figure)[-_]?(?:box|wrap|wrapper|container|block|package|item|area)|pgc-img|"
    r"lemma-picture|gallery-?item|illustration)\s"
)
_CAPTION = re.compile(
    r"[\s_-](?:img|image|pic|photo|picture|figure|fig)[-_]?(?:desc|description|title|text|note|info|"
    r"intro|txt|words|legend)[\s_-]"
)
_BOLD = frozenset(("b", "strong"))
_CENTRED = re.compile(r'^center\b|align\W{1,4}center|class="[^"]*center')
_ARTICLES = frozenset(("article", "main", "h1"))
_CAPTIONS = frozenset(("figcaption", "caption"))
_TITLE_IN_FIGURE = re.compile(r"\s(?:title|description|desc|legend|note)\s")


class Block:
    """Running text between two block boundaries: the part [start, end) of the texts of its page."""

    furniture = caption = titles = False  # titles: its class says title: it is a caption if it is in a figure
    figures: tuple[int, ...] = ()
    first_tag = 0  # number of the tag before its first text or image
    start = end = 0
    texts: list[str]
    _joined: str | None = None
    _clean: str | None = None
    _has_han: bool | None = None

    # without a constructor, since of a page's objects most are blocks: what differs from the above is set where it does

    def text(self) -> str:
        """The whole text, cleaned. Only for use after the walk, since the result is kept."""
        if self._clean is None:
            self._clean = clean(self.raw_text())
        return self._clean

    def between(self, start: int, end: int) -> str:
        """The text between two positions of the block, cleaned."""
        if start >= end:
            return ""
        raw = self.raw_text()
        return self.text() if not start and end == len(raw) else clean(raw[start:end])

    def raw_text(self) -> str:
        """The whole text as the page has it. Only for use after the walk."""
        if self._joined is None:
            self._joined = "".join(self.texts[self.start : self.end])
        return self._joined

    def has_han(self) -> bool:
        """True if it holds a Han character. Only for use after the walk."""
        if self._has_han is None:
            self._has_han = HAN.search(self.raw_text()) is not None
        return self._has_han

    @property
    def is_caption(self) -> bool:
        return self.caption or (self.titles and bool(self.figures))


class ImagePlace(NamedTuple):
    """Position of an image: its block, the characters of the block before it, figures from the outermost inwards."""

    block: int
    offset: int
    figures: tuple[int, ...]
    furniture: bool
    attributes: dict[str, str]
    sources: tuple[str, ...]  # srcsets of the <picture> around it
    fallback: bool
    tag: int  # its number among the tags
    path: tuple[int, ...]  # tags that begin the elements around it, from the outermost inwards, MAX_PATH at most


class _Kind(NamedTuple):
    """Kind of an element, by its tag, class, id and role."""

    tag: str
    article: bool
    furniture: bool
    suspect: bool  # furniture by its class, unless it holds the article
    header: bool  # furniture outside an article
    figure: bool
    caption: bool
    titles: bool
    block: bool
    counted: str  # its tag, if it matters for the elements inside it
    heading: bool  # of a section, h1 to h6
    silent: bool  # nothing of it is shown
    counts: bool  # how many of its sort are open matters for the elements inside it
    effect: int  # effect of its tag on the walk


(
    _INLINE_TAG, _BLOCK_TAG, _END, _IMAGE, _BREAK, _NOTHING, _SOURCE, _QUIET_INLINE, _QUIET_BLOCK, _ARTICLE, _OTHER
) = range(11)  # fmt: skip
"""Effects of tags. Most begin an element that changes nothing but that it may be a block, or end one, show an image,
end a block (`<br>`), or do nothing (a comment). Some matter outside furniture only. Its `_Kind` says the rest."""

_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_COUNTED = frozenset(("h1", "picture", "noscript"))
_ROLES = frozenset(("navigation", "contentinfo", "complementary", "search"))


@functools.lru_cache(maxsize=8192)
def _kind(tag: str, style: str, role: str) -> _Kind:
    """The kind of an element, cached: a site's pages consist of few combinations, and patterns are slow."""
    style = f" {style.lower()} "
    figure = tag == "figure" or _FIGURE.search(style) is not None
    caption = tag in _CAPTIONS or (not figure and ("caption" in style or _CAPTION.search(style) is not None))
    article, counted = tag in ("article", "main"), tag in _COUNTED
    furniture = tag in _FURNITURE_TAGS or role in _ROLES
    suspect = tag not in _NEVER_FURNITURE and ("crumb" in style or _FURNITURE.search(style) is not None)
    titles = _TITLE_IN_FIGURE.search(style) is not None
    block, heading, silent = tag in _BLOCKS or caption, tag in _HEADINGS, tag in SILENT
    if tag in _VOID or tag[:1] in ("!", "?"):  # it holds nothing that its class could be about
        effect = _SOURCE if tag == "source" else _BREAK if block else _NOTHING
    elif tag in _ARTICLES:
        effect = _ARTICLE
    elif figure or caption or titles or silent or tag in ("picture", "noscript"):  # within furniture too
        effect = _OTHER
    elif furniture or suspect or heading or tag == "header":
        effect = _QUIET_BLOCK if block else _QUIET_INLINE
    else:
        effect = _BLOCK_TAG if block else _INLINE_TAG
    return _Kind(
        tag=tag,
        article=article,
        furniture=furniture,
        suspect=suspect,
        header=tag == "header",
        figure=figure,
        caption=caption,
        titles=titles,
        block=block,
        counted=tag if counted else "",
        heading=heading,
        silent=silent,
        counts=article or caption or titles or counted,
        effect=effect,
    )


_OPENS = frozenset((_INLINE_TAG, _BLOCK_TAG, _QUIET_INLINE, _QUIET_BLOCK, _ARTICLE, _OTHER))

_MOST_KINDS, _LONG = 10_000, 300
"""Tags that are remembered, and characters of one at most: what is remembered is bounded in bytes."""


class _Effects(dict[str, int]):
    """Effects by tags with their attributes. Most tags of a page are found here."""

    def __missing__(self, tag: str) -> int:
        name, _, attributes = tag.partition(" ")
        if name == "img":
            return _IMAGE
        if not ("class=" in attributes or "id=" in attributes or "role=" in attributes):
            tag = name  # nearly every link has another address: its kind is by name
            if name in self:
                return self[name]
        effect = _END if name[:1] == "/" else _kind_of.__wrapped__(tag).effect
        if len(tag) <= _LONG:
            if len(self) >= _MOST_KINDS:
                self.clear()
            self[tag] = effect
        return effect


_EFFECTS = _Effects()


@functools.lru_cache(maxsize=4096)
def _kind_of(tag: str) -> _Kind:
    """The kind of the element that a tag with its attributes begins."""
    name = tag.partition(" ")[0]
    style = f"{value_of(tag, 'class')} {value_of(tag, 'id')}"[:_LONG]
    return (_kind if len(name) <= _LONG else _kind.__wrapped__)(name, style, value_of(tag, "role")[:_LONG])


_BITS, _BLOCKED, _HOLDS, _UNDO, _RARE = 3, 1, 2, 4, 6
"""Bits of an open element: a block; it holds an image; leaving it must undo something."""


@dataclass(slots=True)
class _OpenElement:
    """An element that the walk has entered, with what leaving it must undo."""

    kind: _Kind
    furniture: bool
    figure: bool


class Walk:
    """The walk over an element, the body: fills `blocks`, `places`, `headlines`, `sections`, `tags` and `ends`."""

    def __init__(self) -> None:
        self.texts: list[str] = []  # all running text, a space behind each block
        self.blocks: list[Block] = []
        self._block = self._new_block()  # the last one
        self._filled = False  # whether it holds text or an image
        self.places: list[ImagePlace] = []
        self.headlines: list[str] = []  # its h1, MAX_HEADLINES at most
        self.sections: list[int] = []  # blocks that are the heading of a section, h1 to h6
        self.tags: list[str] = []
        self.ends: dict[int, int] = {}  # by the tag that begins an element with an image, the one that ends it
        self._figures: list[int] = []
        self._count = 0
        self._article = self._furniture = self._caption = self._titles = 0  # open elements of each sort
        self._captions = 0  # of the last two sorts
        self._inside: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._sources: list[str] = []
        self._looks = 0
        self._effects: list[int] = []  # of the tags
        self._article_at, self._article_path = -1, list[int]()  # an article, and elements around it

    def run(self, html: str) -> None:
        """Walk over an element as lexbor writes it out, in the order of its tags."""
        self.tags, texts = pieces_of(html)
        self._effects = list(map(_EFFECTS.__getitem__, self.tags))
        # what is asked for at each tag is kept in names of its own
        pieces = zip(itertools.count(), self._effects, self.tags, texts, strict=False)
        parts, block, filled, empty = self.texts, self._block, False, True  # empty: the block is without text
        furniture = captions = 0
        entered: list[int] = []  # open elements: the number of the tag above three bits
        to_undo: list[_OpenElement] = []  # those with _UNDO
        for at, effect, tag, text in pieces:
            ends = 0  # whether a block ends here
            if effect == _END:
                opened = entered.pop() if entered else 0
                ends = opened & _BLOCKED
                if opened & _RARE:
                    if opened & _HOLDS:
                        self.ends[opened >> _BITS] = at
                    if opened & _UNDO:
                        self._filled = filled
                        block = self._leave(to_undo.pop())
                        filled, furniture, captions = self._filled, self._furniture, self._captions
                        empty = block.start == len(parts)
            elif effect == _INLINE_TAG:
                entered.append(at << _BITS)
            elif effect == _BLOCK_TAG:
                entered.append(at << _BITS | _BLOCKED)
                ends = 1
            elif effect == _IMAGE:
                if captions and empty and not self._is_in_shown_figure():
                    captions = self._without_captions(to_undo)
                if filled and not captions and self._opens_card(at):
                    block, filled, empty = self._new_block(), False, True
                if not filled:
                    block.first_tag = at
                self._add_place(at, attributes_of(tag), entered)
                filled = True
            elif effect == _BREAK:
                ends = 1
            elif effect == _NOTHING:
                pass
            elif effect == _SOURCE:
                self._note_source(tag)
            elif furniture and effect < _ARTICLE:
                ends = int(effect == _QUIET_BLOCK)
                entered.append(at << _BITS | ends)
            elif (kind := _kind_of(tag) if len(tag) <= _LONG else _kind_of.__wrapped__(tag)).silent:
                text = self._skip_element(pieces, kind.tag)
            else:
                self._filled = filled
                to_undo.append(self._enter(at, kind))
                entered.append(at << _BITS | _UNDO)
                block, filled, furniture, captions = self._block, self._filled, self._furniture, self._captions
                empty = block.start == len(parts)
            if ends and filled:
                if captions and self._caption:  # a caption is one text, whatever stands in it
                    parts.append(" ")
                    empty = False
                else:
                    block, filled, empty = self._new_block(), False, True
            if text and not (empty and text.isspace()):
                if text[0] in _MARKED and text.rstrip() in MARKS and tag[:2] in _LINK:
                    continue
                if "&" in text:
                    text = unescaped(text)
                    if empty and text.isspace():
                        continue
                parts.append(text)
                if empty:
                    empty = False
                    if not filled:
                        block.first_tag = at
                    filled = True
                    if furniture:
                        block.furniture = True
                    if self._figures:
                        block.figures = tuple(self._figures)
                if captions:
                    block.caption, block.titles = block.caption or self._caption > 0, block.titles or self._titles > 0
        self._finish()

    def _finish(self) -> None:
        self._block.end = len(self.texts)
        self._block.first_tag = self._block.first_tag or len(self.tags)  # it may be empty

    def _skip_element(self, pieces: Iterable[tuple[int, object, str, str]], name: str) -> str:
        """Take the rest of an element of which nothing is shown out of the page; the text behind it."""
        depth, start, end = 1, f"{name} ", f"/{name}"
        for at, _, tag, text in pieces:
            if tag == end:
                depth -= 1
                if not depth:
                    return text
            elif tag == name or tag.startswith(start):
                depth += 1
            self.tags[at] = ""
        return ""

    def _note_source(self, tag: str) -> None:
        if len(self._sources) < MAX_SOURCES:
            self._sources += [v for k in SRCSETS if (v := value_of(tag, k)) and "avif" not in v]

    def is_foreign_heading(self, at: int) -> bool:
        """True for a block that is a heading, or begins in bold, without Chinese: what stands before it is about
        something else, as it is not before a command or a formula."""
        block = self.blocks[at]
        if block.has_han() or not block.raw_text():
            return False
        if self.begins_in_bold(at):
            return True
        row = bisect.bisect_left(self.sections, at)
        return row < len(self.sections) and self.sections[row] == at

    def begins_in_bold(self, at: int) -> bool:
        """True for a block whose text begins within <b> or <strong>."""
        first_tag = self.blocks[at].first_tag
        return first_tag < len(self.tags) and self.tags[first_tag].partition(" ")[0] in _BOLD

    def is_centred(self, place: ImagePlace, at: int) -> bool:
        """True if an element around a block behind an image is centred by its tag, attributes or class."""
        around = [self.tags[tag] for tag in place.path]
        for tag in self.tags[place.tag + 1 : min(self.blocks[at].first_tag + 1, place.tag + MAX_LOOKS)]:
            if tag[:1] == "/":
                del around[-1:]
            elif tag and tag.partition(" ")[0] not in _VOID:
                around.append(tag)
        return any("center" in tag and _CENTRED.search(tag) for tag in around)

    def _enter(self, at: int, kind: _Kind) -> _OpenElement:
        """Note that the walk is inside an element, that of a piece; returns what `_leave` needs."""
        furniture = kind.furniture or (kind.header and not self._article)
        furniture = furniture or (kind.suspect and self._is_furniture(at))
        opened = _OpenElement(kind, furniture, kind.figure and len(self._figures) < MAX_FIGURES)
        if kind.block and self._filled:
            self._end_block()
        if kind.heading and not (furniture or self._furniture or self._caption):
            self.sections.append(len(self.blocks) - 1)
        self._count_element(opened, 1)
        if opened.figure:
            self._count += 1
            self._figures.append(self._count)
        if kind.tag == "picture":
            self._sources = []
        return opened

    def _opens_card(self, at: int) -> bool:
        """True for an image that opens a link or custom element right behind another one: a card that CSS makes of it.

        at: the tag of the image.
        """
        first = at
        while first > 1 and self._effects[first - 1] == _INLINE_TAG:
            first -= 1
        name = self.tags[first].partition(" ")[0]
        return first < at and self.tags[first - 1] == f"/{name}" and (name == "a" or "-" in name)

    def _is_furniture(self, at: int) -> bool:
        """True if an element whose class or id says so is furniture. Not if it holds the article:
        `<div class="page has-sidebar">` is the whole page.
        """
        if self._furniture or self._looks >= MAX_LOOKS:
            return True
        self._looks += 1
        if at > self._article_at:
            self._find_article(at)
        return at not in self._article_path

    def _find_article(self, at: int) -> None:
        """Find the next article, main part of a page or headline of first order, and what is around it from `at` on."""
        self._article_path = opened = list[int]()
        try:
            self._article_at = self._effects.index(_ARTICLE, at)
        except ValueError:
            self._article_at = len(self.tags)
            return
        for tag, effect in enumerate(self._effects[at : self._article_at], at):
            if effect == _END:
                del opened[-1:]
            elif effect in _OPENS:
                opened.append(tag)

    @functools.cached_property
    def first_tags(self) -> list[int]:
        """The number of the tag before the first text or image of each block, ascending."""
        return [block.first_tag for block in self.blocks]

    def _leave(self, opened: _OpenElement) -> Block:
        """Undo `_enter`; returns the block that text now belongs to."""
        kind = opened.kind
        if kind.counted == "h1" and not self._furniture and len(self.headlines) < MAX_HEADLINES:
            self.headlines += [headline] if (headline := clean(self._block_text())[:MAX_NEAR]) else []
        self._count_element(opened, -1)
        if kind.block and self._filled:
            self._end_block()
        if opened.figure:
            self._figures.pop()
        return self._block

    def _count_element(self, opened: _OpenElement, by: int) -> None:
        kind = opened.kind
        self._furniture += by * opened.furniture
        if kind.counts:
            self._article += by * kind.article
            self._caption += by * kind.caption
            self._titles += by * kind.titles
            self._captions = self._caption + self._titles
            if kind.counted:
                self._inside[kind.counted] += by

    def _is_in_shown_figure(self) -> bool:
        """True if the innermost figure has shown an image: another one that opens its caption is an icon."""
        return bool(self._figures and self.places) and self._figures[-1] in self.places[-1].figures

    def _without_captions(self, others: list[_OpenElement]) -> int:
        """Takes the open elements for what holds images, whatever their class says; returns how many captions remain:
        those by their tag. `caption-position-bottom` is a class of a whole gallery.
        """
        for opened in others:
            if opened.kind.tag not in _CAPTIONS:
                self._caption -= opened.kind.caption
                self._titles -= opened.kind.titles
                opened.kind = opened.kind._replace(caption=False, titles=False)
        self._captions = self._caption + self._titles
        return self._captions

    def _end_block(self) -> None:
        """End the current block, but within a caption, which is one text."""
        if self._caption:
            self.texts.append(" ")
        else:
            self._new_block()

    def _new_block(self) -> Block:
        """End the current block and begin an empty one."""
        texts, blocks = self.texts, self.blocks
        if blocks:
            blocks[-1].end = len(texts)
            texts.append(" ")
        block = self._block = Block()
        block.texts, block.start = texts, len(texts)
        blocks.append(block)
        self._filled = False
        return block

    def _block_text(self) -> str:
        """The text of the current block up to here."""
        return "".join(self.texts[self._block.start :])

    def _add_place(self, at: int, attributes: dict[str, str], entered: list[int]) -> None:
        self._filled = True
        self.places.append(
            ImagePlace(
                block=len(self.blocks) - 1,
                offset=sum(map(len, self.texts[self._block.start :])),
                figures=tuple(self._figures),
                furniture=self._furniture > 0,
                attributes=attributes,
                sources=tuple(self._sources) if self._inside["picture"] else (),
                fallback=self._inside["noscript"] > 0,
                tag=at,
                path=tuple([opened >> _BITS for opened in entered[:MAX_PATH]]),
            )
        )
        for i in range(len(entered) - 1, -1, -1):
            if entered[i] & _HOLDS:
                break
            entered[i] |= _HOLDS
