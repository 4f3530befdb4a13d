"""The walk over a page's DOM: blocks of running text, and the position of each image among them.

Tags and class names tell what a block or an image belongs to (page furniture, figures, captions). The class names are
those of Chinese sites and of common generators: WordPress, MediaWiki, DocBook, Asciidoctor, Toutiao, Jianshu, Baike.

The walk uses no recursion and bounds the text around an image, so that a hostile page costs no more than its size.

Limits: class names must say what they mean; a site that calls its captions `p3` is not understood.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.texts.cleaning import clean

MAX_NEAR = 2000
"""Characters of a block, on each side of an image, that can become its surrounding text."""

MAX_FIGURES = 8
"""Depth of figures within figures; deeper ones count as part of the last."""

MAX_LOOKS = 100
"""Elements per page that are searched for an article; after that, furniture is told by class names alone."""

MAX_HEADLINES = 50
"""Headlines of first order that are noted: a page made from Markdown has one per section."""

MAX_SOURCES = 50
"""Copies that are read of a <picture>; later ones are passed over."""

SRCSETS = ("data-srcset", "data-lazy-srcset", "srcset")
"""Attributes that hold a list of copies of an image."""

_SILENT = frozenset((
    "script", "style", "template", "svg", "math", "iframe", "object", "select", "textarea", "head"
))  # fmt: skip
_INLINE = frozenset((
    "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins",
    "kbd", "label", "mark", "noscript", "picture", "q", "s", "samp", "small", "source", "span", "strike",
    "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"
))  # fmt: skip
_NEVER_FURNITURE = frozenset(("html", "body", "article", "main", "h1"))
_FURNITURE_TAGS = frozenset(("nav", "footer", "aside", "form", "button", "menu"))
_FURNITURE = re.compile(
    r"(?:^|[-_\s])(?:nav|navbar|navigation|menu|breadcrumbs?|crumbs?|footer|foot|copyright|sidebar|side-bar|docnav|toc|"
    r"share|sharing|related|recommend|comments?|pagination|pager|toolbar|advert|ads?|sponsor|login|search)"
    r"(?:$|[-_\s])|crumb|recommend|copyright",
    re.I,
)
_FIGURE = re.compile(
    r"(?:^|\s)(?:figure|informalfigure|mediaobject|imageblock|wp-caption|thumb(?:inner)?|media|"
    r"(?:image|img|pic|photo|picture|figure)[-_]?(?:box|wrap|wrapper|container|block|package|item|area)|pgc-img|"
    r"lemma-picture|gallery-?item|illustration)(?:$|\s)",
    re.I,
)
_CAPTION = re.compile(
    r"caption|(?:^|[-_\s])(?:img|image|pic|photo|picture|figure|fig)[-_]?(?:desc|description|title|text|note|info|"
    r"intro|txt|words|legend)(?:$|[-_\s])",
    re.I,
)
_TITLE_IN_FIGURE = re.compile(r"(?:^|\s)(?:title|description|desc|legend|note)(?:$|\s)", re.I)


@dataclass(slots=True)
class Block:
    """Running text between two block boundaries."""

    parts: list[str] = field(default_factory=list)
    length: int = 0
    furniture: bool = False
    caption: bool = False
    titles: bool = False  # its class says title: it is a caption if it is in a figure
    figures: tuple[int, ...] = ()
    _clean: str | None = None

    def text(self) -> str:
        """The whole text, cleaned. Only for use after the walk, since the result is kept."""
        if self._clean is None:
            self._clean = clean(self.joined())
        return self._clean

    def near(self, offset: int) -> tuple[str, str]:
        """Up to MAX_NEAR characters of text before and after a position in the block, cleaned."""
        joined = self.joined()
        return clean(joined[max(0, offset - MAX_NEAR) : offset]), clean(joined[offset : offset + MAX_NEAR])

    def joined(self) -> str:
        """The whole text as the page has it."""
        if len(self.parts) > 1:
            self.parts = ["".join(self.parts)]
        return self.parts[0] if self.parts else ""

    @property
    def is_caption(self) -> bool:
        return self.caption or (self.titles and bool(self.figures))


@dataclass(frozen=True, slots=True)
class Place:
    """Position of an image: its block, the characters of the block before it, figures from the outermost inwards."""

    block: int
    offset: int
    figures: tuple[int, ...]
    furniture: bool
    attributes: dict[str, str]
    sources: tuple[str, ...]  # srcsets of the <picture> around it
    fallback: bool


class _Kind(NamedTuple):
    """What an element is by its tag, class, id and role."""

    article: bool
    furniture: bool
    suspect: bool  # furniture by its class, unless it holds the article
    header: bool  # furniture outside an article
    figure: bool
    caption: bool
    titles: bool
    block: bool
    counted: str  # its tag, if it matters for the elements inside it
    heading: bool  # of a section, h2 to h6
    plain: bool  # none of the above but `block` and `heading`


_HEADINGS = frozenset(("h2", "h3", "h4", "h5", "h6"))
_COUNTED = frozenset(("h1", "picture", "noscript"))
_ROLES = frozenset(("navigation", "contentinfo", "complementary", "search"))


@functools.lru_cache(maxsize=8192)
def _kind(tag: str, style: str, role: str) -> _Kind:
    """The kind of an element, cached: a site's pages consist of few combinations, and patterns are slow."""
    figure = tag == "figure" or (style != "" and _FIGURE.search(style) is not None)
    by_style = tag == "figcaption" or (style != "" and not figure and _CAPTION.search(style) is not None)
    kind = _Kind(
        article=tag in ("article", "main"),
        furniture=tag in _FURNITURE_TAGS or role in _ROLES,
        suspect=style != "" and tag not in _NEVER_FURNITURE and _FURNITURE.search(style) is not None,
        header=tag == "header",
        figure=figure,
        caption=by_style or tag == "caption",  # a table's
        titles=style != "" and _TITLE_IN_FIGURE.search(style) is not None,
        block=tag not in _INLINE or by_style,
        counted=tag if tag in _COUNTED else "",
        heading=tag in _HEADINGS,
        plain=False,
    )
    return kind._replace(plain=not any((*kind[:7], kind.counted)))  # the first seven fields are flags other than block


@dataclass(slots=True)
class _Opened:
    """An element that the walk has entered, with what leaving it must undo."""

    kind: _Kind
    furniture: bool
    figure: bool


class Walk:
    """The walk over the body: fills `blocks`, `places`, `headlines` and `sections`."""

    def __init__(self) -> None:
        self._block, self._filled = Block(), False  # the last block, and whether it holds text or an image
        self.blocks: list[Block] = [self._block]
        self.places: list[Place] = []
        self.headlines: list[str] = []  # its h1, MAX_HEADLINES at most
        self.sections: list[int] = []  # blocks that are the heading of a section, h2 to h6
        self._figures: list[int] = []
        self._count = 0
        self._article = self._furniture = self._caption = self._titles = 0  # open elements of each sort
        self._inside: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._sources: list[str] = []
        self._looks = 0

    def run(self, body: Any) -> None:
        """Walk depth first, without recursion: pages nest deeper than Python's stack."""
        entered: list[bool | _Opened] = []  # open elements; a plain one is only a flag: whether it is a block
        node = body
        while True:
            tag = node.tag
            inner = None
            if tag == "-text":
                text = node.text_content
                if text and (self._block.parts or not text.isspace()):
                    self._text(text)
            elif tag == "img":
                self._place(node.attributes)
            elif tag == "source":
                attributes = node.attributes
                if len(self._sources) < MAX_SOURCES:
                    self._sources += [v for k in SRCSETS if (v := attributes.get(k)) and "avif" not in v]
            elif tag is not None and tag not in _SILENT and tag[0] != "-":  # None: `<?php ... ?>` and its like
                entered.append(self._enter(node, tag))
                inner = node.first_child
                if inner is None:
                    self._leave(entered.pop())
            if inner is None:
                while entered and (inner := node.next) is None:  # up, to the first ancestor with a next sibling
                    node = node.parent
                    opened = entered.pop()
                    if opened is True:  # as `_leave` does, inlined for the most frequent case
                        if self._filled:
                            self._break()
                    elif opened:
                        self._leave(opened)
                if not entered:
                    return
            node = inner

    def text(self) -> str:
        """All running text of the page, cleaned."""
        return clean(" ".join(block.joined() for block in self.blocks))

    def _enter(self, node: Any, tag: str) -> bool | _Opened:
        """Note that the walk is inside an element; returns what `_leave` needs."""
        attributes = node.attributes
        if attributes:
            style = " ".join(v for k in ("class", "id") if (v := attributes.get(k)))[:300]
            kind = _kind(tag, style, attributes.get("role") or "")
        else:
            kind = _kind(tag, "", "")
        if kind.plain:
            if kind.block and self._filled:
                self._break()
            if kind.heading and not self._furniture:
                self.sections.append(len(self.blocks) - 1)
            return kind.block
        furniture = kind.furniture or (kind.header and not self._article) or (kind.suspect and self._is_furniture(node))
        opened = _Opened(kind, furniture, kind.figure and len(self._figures) < MAX_FIGURES)
        if kind.block and self._filled:
            self._break()
        if kind.heading and not furniture and not self._furniture:
            self.sections.append(len(self.blocks) - 1)
        self._count_in(opened, 1)
        if opened.figure:
            self._count += 1
            self._figures.append(self._count)
        if tag == "picture":
            self._sources = []
        return opened

    def _is_furniture(self, node: Any) -> bool:
        """Whether an element whose class or id says so is furniture. Not if it holds the article:
        `<div class="page has-sidebar">` is the whole page.
        """
        if self._furniture or self._looks >= MAX_LOOKS:
            return True
        self._looks += 1
        return node.css_first("article, main, h1") is None

    def _leave(self, opened: bool | _Opened) -> None:
        if isinstance(opened, bool):
            if opened and self._filled:
                self._break()
            return
        kind = opened.kind
        if kind.counted == "h1" and not self._furniture and len(self.headlines) < MAX_HEADLINES:
            self.headlines += [headline] if (headline := clean(self._block.joined())[:MAX_NEAR]) else []
        if kind.block and self._filled:
            self._break()
        self._count_in(opened, -1)
        if opened.figure:
            self._figures.pop()

    def _count_in(self, opened: _Opened, by: int) -> None:
        kind = opened.kind
        self._article += by * kind.article
        self._furniture += by * opened.furniture
        self._caption += by * kind.caption
        self._titles += by * kind.titles
        if kind.counted:
            self._inside[kind.counted] += by

    def _break(self) -> None:
        """End the current block and begin an empty one."""
        self._block = Block()
        self.blocks.append(self._block)
        self._filled = False

    def _text(self, text: str) -> None:
        block = self._block
        if not block.parts:
            self._filled = True
            block.furniture = self._furniture > 0
            block.figures = tuple(self._figures)
        block.caption = block.caption or self._caption > 0
        block.titles = block.titles or self._titles > 0
        block.parts.append(text)
        block.length += len(text)

    def _place(self, attributes: dict[str, str | None]) -> None:
        self._filled = True
        self.places.append(
            Place(
                block=len(self.blocks) - 1,
                offset=self._block.length,
                figures=tuple(self._figures),
                furniture=self._furniture > 0,
                attributes={k.lower(): v or "" for k, v in attributes.items()},
                sources=tuple(self._sources) if self._inside["picture"] else (),
                fallback=self._inside["noscript"] > 0,
            )
        )
