"""Images of an HTML page with their texts, from one walk over the DOM.

The walk cuts the page into blocks of running text and notes for every image its position in its block, the figures
around it, and whether it is page furniture (navigation, footer, sidebar). Texts are then looked up:

    alt           the image's alt, then its title attribute
    caption       figcaption, or a block whose class says caption, within the image's figure or right after it;
                  DocBook's and Asciidoctor's `title` within a figure; a line that begins with ▲ or 图：
    title         the headline of the page's article: its h1; of several the one that og:title or <title> names, else
                  og:title, JSON-LD's headline, or <title> without the site's name (`pipeline.pages.head`)
    surrounding   the nearest block of text before the image, and the nearest after it, within the article, list entry,
                  card ... that the image belongs to (`pipeline.pages.scopes`); on a page with several images the
                  sentence right beside an image, else its section's heading, comes before the title (`_Lookup`), and
                  of a card its heading, else the text after the image or before it
    abstract      og:description or meta description, else the first paragraph
    tag           the page's keywords: rel=tag links, article:tag, meta keywords, JSON-LD

For a site with a rule (`pipeline.pages.site_rules`), the rule selects the article, its title and its captions.

Addresses of images come from the attributes of lazy loaders, before `src` (on a lazy page src is a placeholder), from
the largest of `srcset`, `<picture>`, `<noscript>`, og:image and JSON-LD (`image`, ImageObject with its caption).
Parser: selectolax (lexbor), which repairs HTML as browsers do.

Limits: scripts are not run, and CSS is not applied: backgrounds and hidden elements are not known. A page beyond the
bounds of `pipeline.pages.bounds` is refused; other costs of a page are limited by the caller
(`pipeline.confined`).
"""

from __future__ import annotations

import bisect
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from data_specs.shard import Text, TextKind
from pipeline.pages import bounds, linked_data, site_rules
from pipeline.pages.head import MAX_TAGS, Meta, elements_of, headline_of
from pipeline.pages.scopes import Scope, scopes_of
from pipeline.pages.site_rules import SiteRule, SiteTexts
from pipeline.pages.walk import SRCSETS, Place, Walk
from pipeline.texts.cleaning import clean

MAX_SURROUNDING = 200
"""Characters kept of a surrounding text, the ones nearest to the image."""

MAX_TEXT = 1000
"""Characters kept of any other text."""

MAX_DISTANCE = 40
"""Blocks between an image and its surrounding text at most: bounds the work on a hostile page."""

MAX_CAPTIONS = 3

MIN_ABSTRACT = 20
"""Letters that a first paragraph needs to be taken as the abstract."""

MIN_SENTENCE = 4
"""Han characters of a sentence beside an image that can stand before the title, words without content aside."""

MIN_HEADING, MIN_CARD, MAX_IN_SECTION = 3, 2, 3
"""Han characters of a section's heading, and of a card's text, that can stand before the title (简介 is one of many
sections), and images of the section, or of cards with this text."""

MAX_TAG = 20
"""Characters above which a keyword is a sentence and no tag."""

MAX_SRCSET = 10_000
"""Characters read of a srcset."""

_LAZY = ("data-original", "data-src", "data-actualsrc", "data-lazy-src", "data-lazyload", "data-lazy", "data-echo",
         "data-original-src", "data-ks-lazyload", "data-croporisrc", "data-real-src", "zoomfile", "file",
         "original", "lazy-src", "_src", "data-hi-res-src")  # fmt: skip
_COPIES = frozenset((*_LAZY, *SRCSETS))
_PLACEHOLDER = re.compile(
    r"[-_./](?:loading|placeholder|lazy\w*|blank|spacer|1x1|transparent|pixel|gr[ae]y)[-_.\d]*\.\w{3,4}(?:$|\?)", re.I
)
"""Names of what a lazy page shows first, in `src` or, as a common theme has it, in `srcset`."""
_CAPTION_LINE = re.compile(r"^[（(]?(?:[▲△↑▼]|图[：:为注]|圖[：:為註])")
_NUMBER = re.compile(r"^\s*(?:图|圖|表|[Ff]ig(?:ure)?\.?)\s*\d+(?:[.\-–—]\d+)*\s*[.:：、。)）]?\s*")
_SECTION_NUMBER = re.compile(
    r"^(?:\d+(?:\.\d+)+[.、]?|第\s*[\d零一二三四五六七八九十百]{1,5}\s*[章节節讲講课課])\s+(?=\S)"
)
_LETTER = re.compile(r"[^\W\d_]")
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
_REFERS_BACK = re.compile(
    r"[这這它他她其此该該但而]|因此|所以|否[则則]|如果|另外|[并並]且|同[时時]|然[后後]|通常|例如|比如"
)
_POINTS_UP = re.compile(
    r"上[图圖]|上面?(?:[这這]|的)?[一两兩张張幅个個]{0,2}[图圖]|如上|^[从從由]?[图圖](?:中|里|裡|上|可)"
)
"""Sentences about the picture above them."""
_REFERS = re.compile(r"[详詳][情细細]?[见見]|[参參][见見考阅閱看]")
_SENTENCE_END = re.compile(r"[。！？；]|[.!?;](?=\s)")
_FORMULA = re.compile(f"\\$([^\\s$\\\\{_HAN.pattern[1:-1]}]{{1,30}})\\$")
_PHRASE_END = re.compile(r"[，,、：:]|\s(?=\S)")
_COPY = re.compile(r"[\s,]*(\S+)")
_DESCRIPTOR = re.compile(r"\s*(\d+(?:\.\d+)?)[wx]")


class PageImage(NamedTuple):
    """An image of a page. `url` is as written; `attributes` are those of its element, with names in lower case."""

    row: int  # position among the page's images; -1 for og:image and JSON-LD
    url: str
    texts: tuple[Text, ...]
    attributes: Mapping[str, str]
    furniture: bool = False  # within navigation, footer, sidebar ...
    fallback: bool = False  # within <noscript>: shown instead of a lazy image, not beside it
    listed: bool = False  # in one of several cards or articles of its page


@dataclass(frozen=True, slots=True)
class Page:
    """The content of a page. `base` is the address that relative ones start from, as written; "" if there is none."""

    base: str
    language: str
    robots: tuple[str, ...]  # contents of meta robots tags, "name: content" for those of a named agent
    text: str  # all running text, for a look at its language
    images: tuple[PageImage, ...]
    reserved: bool = False  # a tdm-reservation meta tag reserves text and data mining


def parse(html: str, rule: SiteRule | None = None) -> Page:
    """Read one page, by its site's rule if there is one. Anything but HTML is a page without images.

    Raises PageRefused for a page beyond a bound.
    """
    tree = bounds.tree_of(html)
    selected = site_rules.apply(tree, rule) if rule is not None else SiteTexts()
    elements = elements_of(tree)
    meta, linked = Meta.of(tree, elements), linked_data.read(elements["script"])
    walk = Walk()
    body = selected.content if selected.content is not None else tree.body
    if body is not None:
        walk.run(_written(body))
    headline = clean(selected.title or "") or headline_of(walk.headlines, meta, clean(linked.headline))
    headline = _without_number(headline)
    abstract = clean(selected.abstract or "") or meta.abstract or clean(linked.description) or _first_paragraph(walk)
    tags = _tags((*selected.tags, *meta.tags, *linked.keywords))
    lookup = _Lookup(walk, headline, abstract, tags)
    images = [lookup.image(row) for row in range(len(walk.places))]
    whole: list[tuple[TextKind, str]] = [("title", headline), ("abstract", abstract), *(("tag", t) for t in tags)]
    for url, caption in ([(meta.image, "")] if meta.image else []) + linked.images:
        images.append(PageImage(-1, url, _texts([("caption", clean(caption)), *whole]), {}))
    return Page(meta.base, meta.language, meta.robots, walk.text(), tuple(images), meta.reserved)


def _written(element: Any) -> str:
    """An element as lexbor writes it out."""
    return element.html or ""


def _first_paragraph(walk: Walk) -> str:
    """The first block of running text that is long enough, "" if there is none."""
    for block in walk.blocks[:200]:
        if not block.furniture and not block.is_caption and block.length >= MIN_ABSTRACT:
            text = block.text()
            if len(_LETTER.findall(text[:200])) >= MIN_ABSTRACT and text[:MAX_SURROUNDING] not in walk.headlines:
                return text[:MAX_SURROUNDING]
    return ""


def _tags(keywords: Iterable[str]) -> tuple[str, ...]:
    """Tags of some lists of keywords, each tag once; a sentence is not a tag."""
    parts = (clean(part) for text in keywords for part in re.split(r"[,，、;；|]", text[:500]))
    return tuple(dict.fromkeys(part for part in parts if 2 <= len(part) <= MAX_TAG))[:MAX_TAGS]


class _Lookup:
    """Looks up the texts of images once the walk is over."""

    def __init__(self, walk: Walk, headline: str, abstract: str, tags: tuple[str, ...]) -> None:
        self.blocks, self.places, self.headline, self.abstract = walk.blocks, walk.places, headline, abstract
        self.tags = tags
        self._with_image = {place.block for place in walk.places}
        self._several = sum(not place.furniture and not place.fallback for place in walk.places) > 1
        self._sections, self._headings = walk.sections, frozenset(walk.sections)
        self._scopes = scopes_of(walk)
        self._near = [self._own_text(place) for place in walk.places]
        rows = range(len(walk.places))
        self._beside = [self._beside_of(row) for row in rows] if self._several else []
        self._count_of = Counter(self._beside)
        self._card = [self._card_text(row) for row in rows]
        self._cards_of = Counter(self._card)
        self._in_section = Counter(self._section(place) for place in walk.places) if self._several else Counter()
        self._images_of: dict[int, dict[int, int]] = {}  # figure -> row of an image in it -> its place among them
        self._captions_of: dict[int, list[int]] = {}  # figure -> its caption blocks
        for row, place in enumerate(walk.places):
            for figure in place.figures if not place.fallback else ():
                images = self._images_of.setdefault(figure, {})
                images[row] = len(images)
        for i, block in enumerate(walk.blocks):
            if (block.caption or block.titles) and block.is_caption and block.text():
                for figure in block.figures:
                    self._captions_of.setdefault(figure, []).append(i)

    def image(self, row: int) -> PageImage:
        """One image with its texts, the closest to it first."""
        place = self.places[row]
        attributes = place.attributes
        captions, used = self._captions(row)
        texts: list[tuple[TextKind, str]] = [("caption", _NUMBER.sub("", text)) for text in captions]
        own = [clean(attributes.get(name, "")) for name in ("alt", "title")]
        texts += [("alt", text) for text in own if text != self.headline or not self._several]
        card = self._card[row] if self._cards_of[self._card[row]] <= MAX_IN_SECTION else ""
        if beside := card or self._sentence(row, used) or self._heading(place):
            texts.append(("surrounding", beside))
        texts.append(("title", self.headline))
        texts += [("surrounding", text) for text in self._surrounding(row, used)]
        texts += [("abstract", self.abstract), *(("tag", tag) for tag in self.tags)]
        url = image_url(attributes, place.sources)
        listed = self._scopes[row].listed
        return PageImage(row, url, _texts(texts), attributes, place.furniture, place.fallback, listed)

    def _captions(self, row: int) -> tuple[list[str], int]:
        """Captions of an image; and, for one that stands in no figure, its block, else -1."""
        place = self.places[row]
        for figure in reversed(place.figures):
            blocks, images = self._captions_of.get(figure, []), self._images_of.get(figure, {})
            if blocks and len(images) == len(blocks) and row in images:  # one caption per image, in the same order
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

    def _card_text(self, row: int) -> str:
        """The text that names an image's card: its heading, else the sentence beside the image: before it in its block,
        after it in the card, or before it.
        """
        scope, place = self._scopes[row], self.places[row]
        if not scope.listed or place.furniture:
            return ""
        if scope.heading >= 0:
            return _without_number(self.blocks[scope.heading].text()[:MAX_SURROUNDING])
        before, after = self._near[row]
        if not _LETTER.search(before) and not _LETTER.search(after):
            after = self._nearest(place.block, 1, scope, -1)
            before = "" if after else self._nearest(place.block, -1, scope, -1)
        if _LETTER.search(before):
            *_, text = _sentences(before[-MAX_SURROUNDING:])
        else:
            text = next(_sentences(after[:MAX_SURROUNDING]), "")
        return text if _says_something(text, MIN_CARD) else ""

    def _sentence(self, row: int, used: int) -> str:
        """The sentence right beside an image, if the page has several images and no other one has this sentence.

        The title of such a page says what all of them are about, and the sentence what this one shows: a step of a
        recipe, the line or the section's heading before a screenshot. "" if there is none, or one that says less than
        MIN_SENTENCE characters beside words without content (如下图所示), or that speaks of what is said elsewhere (这,
        因此, 详见).
        """
        sentence = self._beside[row] if self._several else ""
        if not sentence or self._count_of[sentence] > 1:
            return ""
        if not _POINTS_UP.search(sentence) and (_REFERS_BACK.match(sentence) or _REFERS.search(sentence)):
            return ""
        return sentence if used < 0 or sentence != self.blocks[used].text() else ""

    def _heading(self, place: Place) -> str:
        """The heading of an image's section, on a page with several images of which few are in this section."""
        at = self._section(place) if self._several and not place.furniture else -1
        if at < 0 or self._in_section[at] > MAX_IN_SECTION:
            return ""
        text = _without_number(self.blocks[at].text()[:MAX_SURROUNDING])
        return text if len(_HAN.findall(text)) >= MIN_HEADING and text != self.headline else ""

    def _section(self, place: Place) -> int:
        """The block that is the heading of an image's section; -1 without one before it."""
        at = bisect.bisect_left(self._sections, place.block) - 1
        return self._sections[at] if at >= 0 else -1

    def _own_text(self, place: Place) -> tuple[str, str]:
        """The text of an image's block before and after it, if that is running text."""
        own = self.blocks[place.block]
        return ("", "") if own.furniture or own.is_caption else own.near(place.offset)

    def _beside_of(self, row: int) -> str:
        """The sentence beside an image that says something: before it, or behind it and about the image above."""
        for find in (self._sentence_beside, self._pointing_up):
            if (sentence := find(row)) and sentence != self.headline and _says_something(sentence):
                return sentence
        return ""

    def _sentence_beside(self, row: int) -> str:
        """The last sentence of the text before an image, within its block or in the block before; else the first after
        it in its block; "" if another image or furniture stands between, or if it is about the image above.
        """
        place, scope, (before, after) = self.places[row], self._scopes[row], self._near[row]
        own = self.blocks[place.block]
        if own.furniture or own.is_caption or place.furniture or place.fallback:
            return ""
        if not _LETTER.search(before):
            if _LETTER.search(after):
                return next(_sentences(after[:MAX_SURROUNDING]), "")
            at = place.block - 1
            while at > scope.before and at not in self._with_image and not self.blocks[at].length:
                at -= 1
            if at < scope.before or at in self._with_image or self.blocks[at].furniture or self.blocks[at].is_caption:
                return ""
            before = self.blocks[at].text()
        *_, last = ("", *_sentences(before[-MAX_SURROUNDING:]))
        return "" if _POINTS_UP.search(last) else last

    def _pointing_up(self, row: int) -> str:
        """The first sentence behind an image if it speaks of the image above it; "" for any other one."""
        place, scope = self.places[row], self._scopes[row]
        if place.furniture or place.fallback or place.block + 1 in self._with_image:
            return ""
        after = self._near[row][1]
        if not _LETTER.search(after):
            after = self._nearest(place.block, 1, scope, -1)
        sentence = next(_sentences(after[:MAX_SURROUNDING]), "")
        return sentence if _POINTS_UP.search(sentence) else ""

    def _surrounding(self, row: int, used: int) -> list[str]:
        """The nearest text before the image (its own paragraph as far as the image, else a block before) and after."""
        start, scope, (before, after) = self.places[row].block, self._scopes[row], self._near[row]
        if not _LETTER.search(before):
            before = self._nearest(start, -1, scope, used)
        if not _LETTER.search(after):
            after = self._nearest(start, 1, scope, used)
        near = [_without_number(_whole_end(before)), _whole_beginning(after, self._near[row])]
        return near[::-1] if scope.listed else near

    def _nearest(self, start: int, step: int, scope: Scope, used: int) -> str:
        """The first block of running text within a scope: no furniture, no caption, at least one letter; "" if none is
        near.
        """
        for distance in range(1, MAX_DISTANCE):
            i = start + step * distance
            if not scope.before <= i < scope.behind or (step > 0 and i in self._headings and not scope.listed):
                break  # a heading behind an image begins what is not about it
            block = self.blocks[i]
            if i == used or block.furniture or block.is_caption:
                continue
            text = block.text()
            if _LETTER.search(text) and not _is_caption_line(text):
                return text
        return ""


def _without_number(heading: str) -> str:
    """A heading without the number of its section: 4.2.3., 第 9 章."""
    return _SECTION_NUMBER.sub("", heading)


def _says_something(sentence: str, least: int = MIN_SENTENCE) -> bool:
    """True if so many Han characters remain once words without content are taken out, the longest first."""
    words, at, said = _empty_words(), 0, 0
    while at < len(sentence):
        if sentence[at : at + 3] in words:
            at += 3
        elif sentence[at : at + 2] in words:
            at += 2
        else:
            if sentence[at] not in words and _HAN.match(sentence, at):
                said += 1
                if said >= least:
                    return True
            at += 1
    return False


@functools.cache
def _empty_words() -> frozenset[str]:
    listed = resources.files("pipeline.pages").joinpath("empty_words.txt").read_text(encoding="utf-8")
    return frozenset(word for line in listed.splitlines() if line[:1] != "#" for word in line.split())


def _whole_end(text: str) -> str:
    """The last MAX_SURROUNDING characters of a text, from the beginning of a sentence or phrase on."""
    if len(text) <= MAX_SURROUNDING:
        return text.strip()
    end = text[-MAX_SURROUNDING:]
    mark = _SENTENCE_END.search(end) or _PHRASE_END.search(end)
    return (end[mark.end() :] if mark and _LETTER.search(end, mark.end()) else end).strip()


def _whole_beginning(text: str, near: tuple[str, str]) -> str:
    """The first MAX_SURROUNDING characters of the text after an image; where the image stands within a sentence, from
    the next one on.
    """
    before, after = near
    if text == after and _LETTER.search(before) and not _SENTENCE_END.match(before[-1]):
        mark = _SENTENCE_END.search(text)
        text = text[mark.end() :] if mark else text
    return text[:MAX_SURROUNDING].strip()


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a text with their marks."""
    at = 0
    for mark in _SENTENCE_END.finditer(text):
        if sentence := text[at : mark.end()].strip():
            yield sentence
        at = mark.end()
    if sentence := text[at:].strip():
        yield sentence


def _is_caption_line(text: str) -> bool:
    return len(text) <= 100 and _CAPTION_LINE.match(text) is not None


def _texts(pairs: list[tuple[TextKind, str]]) -> tuple[Text, ...]:
    """Texts without empty ones and repetitions: a text that comes twice has the kind of its first occurrence."""
    texts: dict[str, Text] = {}
    for kind, text in pairs:
        if "$" in text:
            text = _FORMULA.sub(r"\1", text)  # $N$ is N
        if text and text not in texts:
            texts[text] = _text(kind, text[:MAX_TEXT])
    return tuple(texts.values())


@functools.lru_cache(maxsize=256)  # the images of a page share its title, tags and what stands between them
def _text(kind: TextKind, text: str) -> Text:
    return Text(kind, text)


def image_url(attributes: Mapping[str, str], sources: tuple[str, ...] = ()) -> str:
    """The address of an image's best copy, as written; a data: URI only if there is nothing else; "" without any.

    `sources` are the srcsets of the <picture> around it.
    """
    src = attributes.get("src", "").strip()
    if _COPIES.isdisjoint(attributes):
        real = [src] if _is_address(src) else []
    else:
        lazy = [url for name in _LAZY if name in attributes and (url := attributes[name].strip())]
        sets = [url for name in SRCSETS if name in attributes and (url := _largest(attributes[name]))]
        real = [url for url in [*lazy, *sets, src] if _is_address(url)]
    if not real:
        real = [url for srcset in sources if (url := _largest(srcset)) and _is_address(url)]
    return next((url for url in real if not _PLACEHOLDER.search(url)), real[0]) if real else src


def _is_address(url: str) -> bool:
    if not url.strip("#") or not ("." in url or "/" in url):
        return False
    return not url.lower().startswith(("data:", "about:", "javascript:", "blob:", "{{", "${"))


def _largest(srcset: str) -> str:
    """The URL with the largest descriptor of a srcset."""
    return _largest_of(srcset[:MAX_SRCSET])


@functools.lru_cache(maxsize=256)  # the sources of a <picture> are those of each image in it
def _largest_of(srcset: str) -> str:
    """Source: HTML Living Standard, parse a srcset attribute."""
    best, size, at = "", -1.0, 0
    while entry := _COPY.match(srcset, at):
        url, at, descriptor = entry.group(1), entry.end(), ""
        if not url.endswith(","):
            end = srcset.find(",", at)
            descriptor, at = srcset[at : end if end >= 0 else None], end + 1 if end >= 0 else len(srcset)
        number = _DESCRIPTOR.match(descriptor)
        weight = float(number.group(1)) if number else 1.0
        url = url.rstrip(",")
        if url and weight > size and not url.lower().startswith("data:"):
            best, size = url, weight
    return best
