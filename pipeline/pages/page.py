"""One HTML page -> its images with their texts, in one walk over the DOM.

The walk cuts the page into blocks of running text and notes for every image where in which block it stands, in which
figures it lies and in which blocks of page furniture (navigation, footer, sidebar). Texts are then looked up:

    alt           the image's alt, then its title attribute
    caption       figcaption, or a block whose class says caption, within the image's figure or right after it;
                  DocBook's and Asciidoctor's `title` within a figure; a line that begins with ▲ or 图：
    title         the page's headline: its first h1, else og:title, else <title> without the site's name
    surrounding   the nearest block of text before the image, and the nearest after it
    abstract      og:description or meta description, else the first paragraph
    tag           the page's keywords: rel=tag links, article:tag, meta keywords, JSON-LD

Where a site rule (`pipeline.pages.site_rules`) knows the page, it says where the article, its title and its captions
are.

Images come from lazy attributes before `src` (on a lazy page src is a placeholder), the largest of `srcset`,
`<picture>`, `<noscript>`, og:image and JSON-LD (`image`, ImageObject with its caption). Parser: selectolax (lexbor),
which repairs HTML as browsers do.

Limits: scripts are not run, and CSS is not applied: backgrounds and hidden elements are not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data_specs.shard import Text, TextKind
from pipeline.pages import linked_data
from pipeline.pages.site_rules import SiteRule, Told, told_by
from pipeline.pages.walk import SRCSETS, Place, Walk
from pipeline.texts.cleaning import clean

MAX_SURROUNDING = 200
"""Characters kept of a surrounding text: those nearest to the image."""

MAX_TEXT = 1000
"""Characters kept of any other text."""

MAX_DISTANCE = 40
"""Blocks between an image and its surrounding text. It bounds the work on a hostile page."""

MAX_CAPTIONS = 3

MIN_ABSTRACT = 20
"""Letters of a first paragraph that is an abstract."""

MAX_TAGS, MAX_TAG = 10, 20
"""Tags of a page, characters of each."""

_LAZY = ("data-original", "data-src", "data-actualsrc", "data-lazy-src", "data-lazyload", "data-lazy", "data-echo",
         "data-original-src", "data-ks-lazyload", "data-croporisrc", "data-real-src", "zoomfile", "file",
         "original", "lazy-src", "_src", "data-hi-res-src")  # fmt: skip
_CAPTION_LINE = re.compile(r"^[（(]?(?:[▲△↑▼]|图[：:为注]|圖[：:為註])")
_NUMBER = re.compile(r"^\s*(?:图|圖|表|[Ff]ig(?:ure)?\.?)\s*\d+(?:[.\-–—]\d+)*\s*[.:：、。)）]?\s*")
_SITE_NAME = re.compile(r"\s*[_|｜]\s*[^_|｜]{1,30}$|\s+[-–—]+\s+[^-–—]{1,30}$")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class PageImage:
    """An image as the page shows it. `url` as written; `attributes` of its element, lower-case names."""

    row: int  # position among the page's images; -1 for og:image and JSON-LD
    url: str
    texts: tuple[Text, ...]
    attributes: Mapping[str, str]
    furniture: bool = False  # within navigation, footer, sidebar ...
    fallback: bool = False  # within <noscript>: shown instead of a lazy image, not beside it


@dataclass(frozen=True, slots=True)
class Page:
    """What a page holds. `base` is the address that relative ones start from, as written; "" if not given."""

    base: str
    language: str
    robots: tuple[str, ...]  # contents of meta robots tags, "name: content" for those of a named agent
    text: str  # all running text, for a look at its language
    images: tuple[PageImage, ...]
    reserved: bool = False  # a tdm-reservation meta tag reserves text and data mining


def parse(html: str, rule: SiteRule | None = None) -> Page:
    """Read one page, as a site rule says if there is one. Never fails: what is no HTML is a page without images."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(html)
    told = told_by(tree, rule) if rule is not None else Told()
    meta = _Meta.of(tree)
    linked = linked_data.read(tree)
    walk = Walk()
    body = told.content if told.content is not None else tree.body
    if body is not None:
        walk.run(body)
    headline = clean(told.title or "") or walk.headline or meta.title or clean(linked.headline)
    abstract = clean(told.abstract or "") or meta.abstract or clean(linked.description) or _first_paragraph(walk)
    tags = _tags((*told.tags, *meta.tags, *linked.keywords))
    lookup = _Lookup(walk, headline, abstract, tags)
    images = [lookup.image(row) for row in range(len(walk.places))]
    whole: list[tuple[TextKind, str]] = [("title", headline), ("abstract", abstract), *(("tag", t) for t in tags)]
    for url, caption in ([(meta.image, "")] if meta.image else []) + linked.images:
        images.append(PageImage(-1, url, _texts([("caption", clean(caption)), *whole]), {}))
    return Page(meta.base, meta.language, meta.robots, walk.text(), tuple(images), meta.reserved)


def _first_paragraph(walk: Walk) -> str:
    """The first block of running text that is long enough, "" if there is none."""
    for block in walk.blocks[:200]:
        if not block.furniture and not block.is_caption and block.length >= MIN_ABSTRACT:
            text = block.text()
            if len(_LETTER.findall(text[:200])) >= MIN_ABSTRACT and text[:MAX_SURROUNDING] != walk.headline:
                return text[:MAX_SURROUNDING]
    return ""


def _tags(found: Iterable[str]) -> tuple[str, ...]:
    """Tags one by one, each once; what is a sentence is none."""
    parts = (clean(part) for text in found for part in re.split(r"[,，、;；|]", text[:500]))
    return tuple(dict.fromkeys(part for part in parts if 2 <= len(part) <= MAX_TAG))[:MAX_TAGS]


@dataclass(frozen=True, slots=True)
class _Meta:
    """What the head of a page says."""

    base: str
    language: str
    robots: tuple[str, ...]
    title: str
    abstract: str
    image: str
    tags: tuple[str, ...]
    reserved: bool

    @classmethod
    def of(cls, tree: Any) -> _Meta:
        found: dict[str, str] = {}
        robots: list[str] = []
        tags: list[str] = []
        for node in tree.tags("meta"):  # by name: a tenth of what a selector costs
            attributes = node.attributes
            name = (attributes.get("property") or attributes.get("name") or "").strip().lower()
            content = attributes.get("content") or ""
            if name in ("robots", "wenlan"):
                robots.append(content)
            elif name.endswith(("bot", "crawler")):
                robots.append(f"{name}: {content}")
            elif name in ("keywords", "article:tag"):
                tags.append(content)
            elif name:
                found.setdefault(name, content.strip())
        base = next((node for node in tree.tags("base") if "href" in node.attributes), None)
        root, title = tree.root, next(iter(tree.tags("title")), None)
        name_of_page = clean(title.text()) if title is not None else ""
        marked = [node for node in tree.tags("a") if "tag" in (node.attributes.get("rel") or "").split()]
        return cls(
            base=((base.attributes.get("href") or "") if base is not None else "").strip(),
            language=((root.attributes.get("lang") or "") if root is not None else "").strip().lower(),
            robots=tuple(robots),
            title=clean(found.get("og:title", "")) or _SITE_NAME.sub("", name_of_page) or name_of_page,
            abstract=clean(found.get("og:description", "") or found.get("description", "")),
            image=found.get("og:image", ""),
            tags=(*(node.text() for node in marked[:MAX_TAGS]), *tags),
            reserved=found.get("tdm-reservation", "") == "1",
        )


class _Lookup:
    """Finds the texts of the images of a finished walk."""

    def __init__(self, walk: Walk, headline: str, abstract: str, tags: tuple[str, ...]) -> None:
        self.blocks, self.places, self.headline, self.abstract = walk.blocks, walk.places, headline, abstract
        self.tags = tags
        self._with_image = {place.block for place in walk.places}
        self._images_of: dict[int, dict[int, int]] = {}  # figure -> its images, each with its place among them
        self._captions_of: dict[int, list[int]] = {}
        for row, place in enumerate(walk.places):
            for figure in place.figures if not place.fallback else ():
                images = self._images_of.setdefault(figure, {})
                images[row] = len(images)
        for i, block in enumerate(walk.blocks):
            if block.is_caption and block.text():
                for figure in block.figures:
                    self._captions_of.setdefault(figure, []).append(i)

    def image(self, row: int) -> PageImage:
        """One image with its texts, the closest to it first."""
        place = self.places[row]
        attributes = place.attributes
        captions, used = self._captions(row)
        found: list[tuple[TextKind, str]] = [("caption", _NUMBER.sub("", text)) for text in captions]
        found += [("alt", clean(attributes.get("alt", ""))), ("alt", clean(attributes.get("title", "")))]
        found.append(("title", self.headline))
        found += [("surrounding", text) for text in self._surrounding(place, used)]
        found += [("abstract", self.abstract), *(("tag", tag) for tag in self.tags)]
        url = image_url(attributes, place.sources)
        return PageImage(row, url, _texts(found), attributes, place.furniture, place.fallback)

    def _captions(self, row: int) -> tuple[list[str], int]:
        """Captions of an image, and the block that one was taken from if it lies in no figure, else -1."""
        place = self.places[row]
        for figure in reversed(place.figures):
            blocks, images = self._captions_of.get(figure, []), self._images_of.get(figure, {})
            if blocks and len(images) == len(blocks) and row in images:
                return [self.blocks[blocks[images[row]]].text()], -1
            if blocks:
                return [self.blocks[i].text() for i in blocks[:MAX_CAPTIONS]], -1
        for i in range(place.block + 1, min(place.block + MAX_DISTANCE, len(self.blocks))):
            text = self.blocks[i].text()
            if text and ((self.blocks[i].caption and not self.blocks[i].figures) or _is_caption_line(text)):
                return [text.lstrip("▲△↑▼ ")], i
            if text or i in self._with_image:
                break
        return [], -1

    def _surrounding(self, place: Place, used: int) -> list[str]:
        """The nearest text before the image (its own paragraph as far as the image, else a block before) and after."""
        own = self.blocks[place.block]
        before, after = ("", "") if own.furniture or own.is_caption else own.near(place.offset)
        if not _LETTER.search(before):
            before = self._nearest(place.block, -1, used)
        if not _LETTER.search(after):
            after = self._nearest(place.block, 1, used)
        return [before[-MAX_SURROUNDING:].strip(), after[:MAX_SURROUNDING].strip()]

    def _nearest(self, start: int, step: int, used: int) -> str:
        """The first block of running text: no furniture, no caption, at least one letter; "" if none is near."""
        for distance in range(1, MAX_DISTANCE):
            i = start + step * distance
            if not 0 <= i < len(self.blocks):
                break
            block = self.blocks[i]
            if i == used or block.furniture or block.is_caption:
                continue
            text = block.text()
            if _LETTER.search(text) and not _is_caption_line(text):
                return text
        return ""


def _is_caption_line(text: str) -> bool:
    return len(text) <= 100 and _CAPTION_LINE.match(text) is not None


def _texts(found: list[tuple[TextKind, str]]) -> tuple[Text, ...]:
    """Without empty ones and repetitions: the first kind keeps a text."""
    texts: dict[str, Text] = {}
    for kind, text in found:
        if text:
            texts.setdefault(text, Text(kind, text[:MAX_TEXT]))
    return tuple(texts.values())


def image_url(attributes: Mapping[str, str], sources: tuple[str, ...] = ()) -> str:
    """The address of an image's best copy, as written; a data: URI only if there is nothing else; "" for none.

    `sources` are the srcsets of the <picture> around it.
    """
    src = attributes.get("src", "").strip()
    lazy = [found for name in _LAZY if name in attributes and (found := attributes[name].strip())]
    sets = [url for name in SRCSETS if name in attributes and (url := _largest(attributes[name]))]
    real = [url for url in [*lazy, *sets, src] if _is_address(url)]
    if not real:
        real = [url for srcset in sources if (url := _largest(srcset)) and _is_address(url)]
    return real[0] if real else src


def _is_address(url: str) -> bool:
    if not url.strip("#") or not ("." in url or "/" in url):
        return False
    return not url.lower().startswith(("data:", "about:", "javascript:", "blob:", "{{", "${"))


def _largest(srcset: str) -> str:
    """The URL with the largest descriptor of a srcset (HTML Living Standard, parse a srcset attribute)."""
    best, size, rest = "", -1.0, srcset[:10_000]
    while found := re.match(r"[\s,]*(\S+)", rest):
        url, rest, descriptor = found.group(1), rest[found.end() :], ""
        if not url.endswith(","):
            descriptor, _, rest = rest.partition(",")
        number = re.match(r"\s*(\d+(?:\.\d+)?)[wx]", descriptor)
        weight = float(number.group(1)) if number else 1.0
        url = url.rstrip(",")
        if url and weight > size and not url.lower().startswith("data:"):
            best, size = url, weight
    return best
