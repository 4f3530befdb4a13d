"""Images of an HTML page with their texts, from one walk over the DOM.

The walk cuts the page into blocks of running text and notes for every image its position in its block, the figures
around it, and whether it is page furniture (navigation, footer, sidebar). Texts are then looked up:

    alt           the image's alt, its title attribute, and the name of its file where that is Chinese; a name with a
                  number, which others of a series have as well, comes as a title; an alt that only counts or
                  repeats the title of several images stands behind what is said beside its image, and one of words
                  without content (运行结果) is left out
    caption       figcaption, or a block whose class says caption, within the image's figure or right after it;
                  DocBook's and Asciidoctor's `title` within a figure; a line that begins with ▲, 图： or 图 1,
                  that ends with its photographer (新华社记者张三 摄), or that is centred right behind the image; a
                  line behind the image in its own block
    title         the headline of the page's article: its h1; of several the one that og:title or <title> names, else
                  og:title, JSON-LD's headline, or <title> without the site's name (`pipeline.pages.head`)
    surrounding   the nearest block of text before the image, and the nearest after it, within the article, list entry,
                  card ... that the image belongs to (`pipeline.pages.scopes`); on a page with several images what is
                  said right beside an image, else its section's heading, comes before the title (`_Lookup`), and on
                  one with many any text near it, as do words that lead to an image (这是, 如下图) on any page; of a
                  card its heading, else the text after the image or before it
    abstract      og:description or meta description, else the first paragraph; and on a page with many images a text
                  near one that is near more than MAX_SHARING others, says little, or tells a story (`is_story`)
    tag           the page's keywords: rel=tag links, article:tag, meta keywords, JSON-LD

For a site with a rule (`pipeline.pages.site_rules`), the rule selects the article, its title and its captions.

Addresses of images come from the attributes of lazy loaders, before `src` (on a lazy page src is a placeholder), from
the largest of `srcset`, `<picture>`, `<noscript>`, og:image and JSON-LD (`image`, ImageObject with its caption). AMP's
<amp-img> is an <img>.
Parser: selectolax (lexbor), which repairs HTML as browsers do.

Limits: scripts are not run, and CSS is not applied: hidden elements are not known, and pictures that no <img> shows
are only counted (`unread_pictures`). A page beyond the
bounds of `pipeline.pages.bounds` is refused; other costs of a page are limited by the caller
(`pipeline.processes.confined`).
"""

from __future__ import annotations

import functools
import html as entities
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from data_specs.shard import Text, TextKind
from pipeline.pages import bounds, linked_data, site_rules, unread_pictures
from pipeline.pages.head import MAX_TAGS, Meta, elements_of, headline_of
from pipeline.pages.lines import (
    CAPTION_MARKS,
    MAX_LINE,
    MAX_SURROUNDING,
    MIN_BESIDE,
    POINTS_DOWN,
    POINTS_UP,
    SENTENCE_END,
    beginning_of,
    ending_of,
    han_length,
    is_byline,
    is_caption_line,
    is_line,
    is_story,
    says_something,
    sentences_of,
    without_frame,
    without_number,
)
from pipeline.pages.scopes import Scope, scopes_of
from pipeline.pages.sides import texts_of
from pipeline.pages.site_rules import SiteRule, SiteTexts
from pipeline.pages.walk import MAX_NEAR, SILENT, SRCSETS, ImagePlace, Walk
from pipeline.texts.characters import HAN
from pipeline.texts.cleaning import clean

MAX_TEXT = 1000
"""Characters kept of any other text."""

MAX_DISTANCE = 40
"""Blocks between an image and its surrounding text at most: bounds the work on a hostile page."""

MAX_CAPTIONS = 3

MIN_ABSTRACT = 20
"""Letters that a first paragraph needs to be taken as the abstract."""

MIN_HEADING, MIN_CARD, MIN_OWN = 3, 2, 2
"""Han characters of a section's heading, and of a card's text, that can stand before the title (简介 is one of many
sections), and of the name of a file."""

MAX_SHARING = 3
"""Images that may share a text beside them, the heading of their section, or the text of their cards, and of a page
whose title is a text of theirs before others."""

MAX_NAME = 12
"""Characters of a text beside each image of a row, or in each of several cards, that is its caption: a name."""

MAX_HEADING = 4
"""Characters of a heading, of a card or beside each image of a row, that is a caption, a name; a longer one may be the
title of an article."""

MAX_TAG = 20
"""Characters above which a keyword is a sentence and no tag."""

MAX_SRCSET = 10_000
"""Characters read of a srcset."""

_LAZY = ("data-original", "data-src", "data-actualsrc", "data-lazy-src", "data-lazyload", "data-lazy", "data-echo",
         "data-original-src", "data-ks-lazyload", "data-croporisrc", "data-real-src", "zoomfile", "file",
         "original", "lazy-src", "_src", "data-hi-res-src")  # fmt: skip
_UNSHOWN = ",".join(f"{name} img" for name in sorted(SILENT))
_COPIES = frozenset((*_LAZY, *SRCSETS))
_PLACEHOLDER = re.compile(
    r"[-_./](?:loading|placeholder|lazy\w*|blank|spacer|1x1|transparent|pixel|gr[ae]y)[-_.\d]*\.\w{3,4}(?:$|\?)", re.I
)
"""Names of what a lazy page shows first, in `src` or, as a common theme has it, in `srcset`."""
_NUMBER = re.compile(r"^\s*(?:图|圖|表|[Ff]ig(?:ure)?\.?)\s*\d+(?:[.\-–—]\d+)*\s*[.:：、。)）]?\s*")
_LETTER = re.compile(r"[^\W\d_]")
_PARAGRAPH = re.compile(rf"(?:[\W\d_]*[^\W\d_]){{{MIN_ABSTRACT}}}")
_REFERS_BACK = re.compile(
    r"[这這它他她其此该該但而]|因此|所以|否[则則]|如果|另外|[并並]且|同[时時]|然[后後]|通常|例如|比如"
)
_REFERS = re.compile(r"[详詳][情细細]?[见見]|[参參][见見考阅閱看]")
_FORMULA = re.compile(f"\\$([^\\s$\\\\{HAN.pattern[1:-1]}]{{1,30}})\\$")
_COUNTED = re.compile(r"[\s\-_.#（(]*\d+[）)]?$")
"""The number at the end of an alt that counts pictures: 步骤 3, 预览图-2."""
_LATIN = re.compile("[A-Za-z]")
_COPY = re.compile(r"[\s,]*(\S+)")
_ENTITY = re.compile(r"&(?:#\d{2,7}|#x[\da-fA-F]{2,6}|[a-zA-Z]{2,8});")
_AROUND_NAME = re.compile(r"^\d+px-|\.[A-Za-z]\w{1,4}$|[\W_]+")
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
    text: str  # all running text as written, for a look at its language; "" for a page without images
    images: tuple[PageImage, ...]
    elements: int = 0  # <img> elements of its DOM, shown or not
    hidden: int = 0  # those of them in elements of which nothing is shown, such as <object>
    outside: int = 0  # those that the site's rule leaves out
    backgrounds: int = 0  # and other pictures that no <img> shows (`unread_pictures`)
    embedded: int = 0
    reserved: bool = False  # a tdm-reservation meta tag reserves text and data mining


def parse(html: str, rule: SiteRule | None = None) -> Page:
    """Read one page, by its site's rule if there is one. Anything but HTML is a page without images.

    Raises PageRefused for a page beyond a bound.
    """
    if "<amp-img" in html:  # AMP's scripts make an <img> of it
        html = html.replace("<amp-img", "<img")
    tree = bounds.tree_of(html)
    elements = elements_of(tree)
    images_met, unread = len(elements["img"]), unread_pictures.count_unread(elements[""])
    selected = site_rules.apply(tree, rule) if rule is not None else SiteTexts()
    if rule is not None:  # it deletes some
        elements = elements_of(tree)
    meta, linked = Meta.read(tree, elements), linked_data.read(elements["script"])
    walk = Walk()
    body = selected.content if selected.content is not None else tree.body
    if body is not None and (elements["img"] or meta.image or linked.images):
        walk.run(_written(body))
    headline = clean(selected.title or "") or headline_of(walk.headlines, meta, clean(linked.headline))
    headline = without_number(headline)
    scopes, sections = scopes_of(walk)
    abstract = clean(selected.abstract or "") or meta.abstract or clean(linked.description)
    abstract = abstract or _first_paragraph(walk, scopes)
    tags = _tags((*selected.tags, *meta.tags, *linked.keywords))
    lookup = _Lookup(walk, scopes, sections, headline, abstract, tags)
    images = [lookup.image(row) for row in range(len(walk.places))]
    of_page: list[tuple[TextKind, str]] = [("title", headline), ("abstract", abstract), *(("tag", t) for t in tags)]
    for url, caption in ([(meta.image, "")] if meta.image else []) + linked.images:
        images.append(PageImage(-1, url, _texts([("caption", clean(caption)), *of_page]), {}))
    shown, hidden, outside = len(walk.places), 0, 0
    if rule is not None:
        outside = images_met - shown
    elif images_met != shown:
        hidden = len({node.mem_id for node in tree.css(_UNSHOWN)})
    content = meta.base, meta.language, meta.robots, "".join(walk.texts), tuple(images)
    return Page(*content, images_met, hidden, outside, *unread, meta.reserved)


def _written(element: Any) -> str:
    """An element as lexbor writes it out."""
    return element.html or ""


def _first_paragraph(walk: Walk, scopes: list[Scope]) -> str:
    """The first block of running text that is long enough and stands in no card, "" if there is none."""
    cards = set[int]().union(*(range(before, min(behind, 200)) for before, behind, listed, _ in set(scopes) if listed))
    for at, block in enumerate(walk.blocks[:200]):
        if not (block.furniture or block.is_caption or at in cards) and len(block.raw_text()) >= MIN_ABSTRACT:
            text = block.text()
            if _PARAGRAPH.match(text, 0, 200) and text[:MAX_SURROUNDING] not in walk.headlines:
                return text[:MAX_SURROUNDING]
    return ""


def _tags(keywords: Iterable[str]) -> tuple[str, ...]:
    """Tags of some lists of keywords, each tag once; a sentence is not a tag."""
    parts = (clean(part) for text in keywords for part in re.split(r"[,，、;；|]", text[:500]))
    return tuple(dict.fromkeys(part for part in parts if 2 <= len(part) <= MAX_TAG))[:MAX_TAGS]


class _Lookup:
    """Looks up the texts of images once the walk is over."""

    def __init__(
        self,
        walk: Walk,
        scopes: list[Scope],
        sections: list[int],
        headline: str,
        abstract: str,
        tags: tuple[str, ...],
    ) -> None:
        self.blocks, self.places, self.headline, self.abstract = walk.blocks, walk.places, headline, abstract
        self.tags, self._walk = tags, walk
        self._says_something = functools.cache(says_something)  # of the texts of one page, most are asked for again
        self._with_image = {place.block for place in walk.places}
        shown = sum(map(self._is_shown, range(len(walk.places))))
        self._several, self._many = shown > 1, shown > MAX_SHARING
        self._alts = [clean(place.attributes.get("alt", "")) for place in walk.places]
        self._series = Counter(alt[: number.start()] for alt in self._alts if (number := _number_at_end(alt)))
        self._headings = frozenset(walk.sections)
        self._scopes, self._sections = scopes, sections
        self._own_texts = [self._own_text(row) for row in range(len(walk.places))]
        rows = range(len(walk.places))
        self._image_first = list[bool]()  # whether the block of each image begins with an image
        for row in rows:
            same = row and self.places[row - 1].block == self.places[row].block
            self._image_first.append(self._image_first[-1] if same else not HAN.search(self._own_texts[row][0]))
            if same and self._image_first[row] and (behind := self._text_behind(row)):
                self._own_texts[row] = "", behind
        self._text_of: dict[int, range] = {}
        if self._several:
            has_text = [any(map(HAN.search, near)) for near in self._own_texts]
            self._text_of = texts_of(walk, self._scopes, has_text, headline)
        self._leads = list[str]()  # what leads to each image
        for row in rows:
            self._leads.append(self._leading_to(row))
        self._beside_texts = [self._beside_text(row) for row in rows]
        self._beside_count = Counter(self._beside_texts)
        self._cards = [self._card_text(row) for row in rows]
        self._card_count = Counter(self._cards)
        self._section_count = Counter(sections)
        self._images_of: dict[int, dict[int, int]] = {}  # figure -> row of an image in it -> its place among them
        self._captions_of: dict[int, list[int]] = {}  # figure -> its caption blocks
        for row, place in enumerate(walk.places):
            for figure in place.figures if not place.fallback else ():
                images = self._images_of.setdefault(figure, {})
                images[row] = len(images)
        for i, block in enumerate(walk.blocks) if self._images_of else ():
            if (block.caption or block.titles) and block.is_caption and block.text():
                for figure in block.figures:
                    self._captions_of.setdefault(figure, []).append(i)
        self._row_captions = [self._captions(row) for row in rows]
        self._nearby = [self._surrounding(row, used) for row, (_, used) in zip(rows, self._row_captions, strict=True)]
        self._nearby_count = Counter(text for row in rows if self._is_shown(row) for text in set(self._nearby[row]))

    def _is_shown(self, row: int) -> bool:
        return not self.places[row].furniture and not self.places[row].fallback

    def image(self, row: int) -> PageImage:
        """One image with its texts, the closest to it first."""
        place = self.places[row]
        attributes = place.attributes
        captions, used = self._row_captions[row]
        texts: list[tuple[TextKind, str]] = [("caption", _NUMBER.sub("", text)) for text in captions]
        url = image_url(attributes, place.sources)
        card = self._cards[row] if self._card_count[self._cards[row]] <= MAX_SHARING else ""
        beside = card or self._unshared_beside(row, used) or self._heading(row)
        name, numbered = _name_of_file(url)
        alts = map(self._unwrapped, filter(None, (self._alts[row], clean(attributes.get("title", "")))))
        named = dict.fromkeys(filter(None, (*alts, "" if numbered else name)))
        own_alts = [text for text in named if not self._is_empty(text) or _LATIN.search(text)]
        shared = [text for text in own_alts if self._is_shared(text)]
        texts += [("alt", text) for text in own_alts if not beside or text not in shared]
        if beside:
            is_name = self._is_name_of(row, beside) and not any(self._says_something(text, 1) for _, text in texts)
            texts.append(("caption" if is_name else "surrounding", beside))
        texts += [("alt", text) for text in shared if text != self.headline]
        texts.append(("title", name))
        surrounding = self._nearby[row]
        kind: TextKind = "abstract" if self._many else "surrounding"
        if self._many:  # below the headline, that is what stands near one of them
            specific = filter(self._is_specific, surrounding)
            texts += [("title" if text == self.headline else "surrounding", text) for text in specific]
        texts += [("title", self.headline), *((kind, text) for text in surrounding), ("abstract", self.abstract)]
        texts += [("tag", tag) for tag in self.tags]
        listed = self._scopes[row].listed
        return PageImage(row, url, _texts(texts), attributes, place.furniture, place.fallback, listed)

    def _unwrapped(self, alt: str) -> str:
        """An alt without words without content around it (這是一張有關標題為 X 的圖片); fewer around a headline."""
        before, headline, behind = alt.partition(self.headline) if self.headline else (alt, "", "")
        wraps = headline and HAN.search(before + behind) and not _number_at_end(alt)
        return headline if wraps and not self._says_something(before + behind, 1) else without_frame(alt)

    def _is_specific(self, text: str) -> bool:
        """True for a text near an image that may be about it, among many images."""
        says = self._says_something(text) and not (_REFERS.search(text) or is_story(text))
        return says and self._nearby_count[text] <= MAX_SHARING

    def _is_empty(self, text: str) -> bool:
        """True for words without content (运行结果), beside a name in Latin letters too (top 命令)."""
        return HAN.search(text) is not None and not self._says_something(text, 1)

    def _is_shared(self, text: str) -> bool:
        """True for an alt that says what others of the page say too: its headline, or a name with a number (照片 3), or
        little (top 命令)."""
        if self._is_empty(text):
            return True
        if not self._several:
            return False
        number = _number_at_end(text)
        return text == self.headline or (number is not None and self._series[text[: number.start()]] > 1)

    def _captions(self, row: int) -> tuple[list[str], int]:
        """Captions of an image; and the block of one that stands in no figure, else -1."""
        place = self.places[row]
        for figure in reversed(place.figures):
            blocks, images = self._captions_of.get(figure, []), self._images_of.get(figure, {})
            if blocks and len(images) == len(blocks) and row in images:  # one caption per image, in the same order
                return [self.blocks[blocks[images[row]]].text()], -1
            if blocks:
                return [self.blocks[i].text() for i in blocks[:MAX_CAPTIONS]], -1
        if self._image_first[row] and self._scopes[row].heading < 0:
            after = beginning_of(self._own_texts[row][1])
            if HAN.search(after) and (is_line(after) or is_caption_line(after)):
                return [CAPTION_MARKS.sub("", after)], place.block
        blocks_of_text = self._text_of.get(row, range(0))
        if blocks_of_text.start > place.block and is_caption_line(text := self.blocks[blocks_of_text.start].text()):
            return [CAPTION_MARKS.sub("", text)], blocks_of_text.start
        for i in range(place.block + 1, min(place.block + MAX_DISTANCE, len(self.blocks))):
            block = self.blocks[i]
            if text := block.text():
                has_mark = is_caption_line(text) or (block.caption and not block.figures)
                captions = has_mark or self._is_centred_line(place, i)
                return ([CAPTION_MARKS.sub("", text)], i) if captions else ([], -1)
            if i in self._with_image:
                break
        return [], -1

    def _is_centred_line(self, place: ImagePlace, at: int) -> bool:
        """True for a short line that is centred, as its image may be, in an article that is not."""
        if at in self._headings or not is_line(self.blocks[at].text()) or not self._walk.is_centred(place, at):
            return False
        behind = range(at + 1, min(at + MAX_DISTANCE, len(self.blocks)))
        texts = (block for block in behind if self.blocks[block].raw_text())
        following = next(texts, None)
        return following is None or not self._walk.is_centred(place, following)

    def _card_text(self, row: int) -> str:
        """The text that names an image's card: its heading, else words that lead to the image, else the text of its
        block, else the first text behind it in the card that says something, or the last before it: a post, where
        what stands behind is not a sentence.
        """
        scope, place = self._scopes[row], self.places[row]
        if not scope.listed or place.furniture:
            return ""
        if scope.heading >= 0:
            return without_number(self.blocks[scope.heading].text()[:MAX_SURROUNDING])
        (before, after), led = self._own_texts[row], ending_of(self._leads[row])
        for text in (led if POINTS_DOWN.search(led[-80:]) else "", ending_of(before), beginning_of(after)):
            if self._says_something(text, MIN_CARD) and not is_byline(text):
                return text
        behind = beginning_of(self._nearest(place.block, 1, scope, -1, MIN_CARD))
        ahead = ending_of(self._nearest(place.block, -1, scope, -1, MIN_CARD))
        is_post = SENTENCE_END.search(ahead) and not SENTENCE_END.search(behind)
        return ahead if is_post or not behind else behind

    def _is_name_of(self, row: int, beside: str) -> bool:
        """True for a text as short as a name of an image in a card, or of one in a row of images."""
        if len(beside) > MAX_NAME or SENTENCE_END.search(beside) or POINTS_DOWN.search(beside):
            return False
        in_row = row in self._text_of and beside == self._beside_texts[row]
        if self._scopes[row].heading >= 0 or (in_row and self._text_of[row].start in self._headings):
            return len(beside) <= MAX_HEADING
        return in_row or self._scopes[row].listed

    def _unshared_beside(self, row: int, used: int) -> str:
        """The text right beside an image, if few other ones have it.

        The title of a page with several images says what all of them are about, and this what one of them shows: a
        step of a recipe, the paragraph before a screenshot. Beside an image that is alone only words that lead to it
        come before the title. "" if there is none, or if it only names another place (详见); its section's heading if
        it speaks of what was said before (这, 因此), and there is one.
        """
        beside = self._beside_texts[row]
        if not beside or self._beside_count[beside] > MAX_SHARING or (used >= 0 and beside == self.blocks[used].text()):
            return ""
        *_, last = sentences_of(beside)
        if POINTS_DOWN.search(last):
            return beside
        if not self._several or (_REFERS.search(last) and not POINTS_UP.search(beside)):
            return ""
        place = self.places[row]
        if POINTS_UP.search(beside) or self._text_of.get(row, range(0)).start > place.block:
            return beside
        heading = self._heading(row) if is_story(beside) or _REFERS_BACK.match(last) else ""
        return heading or ("" if is_story(beside) else beside)

    def _heading(self, row: int) -> str:
        """The heading of an image's section, on a page with several images of which few are in this section."""
        at = self._sections[row] if self._several and not self.places[row].furniture else -1
        if at < 0 or self._section_count[at] > MAX_SHARING:
            return ""
        text = without_number(self.blocks[at].text()[:MAX_SURROUNDING])
        return text if han_length(text) >= MIN_HEADING and text != self.headline else ""

    def _own_text(self, row: int) -> tuple[str, str]:
        """The text of an image's block before and after it, as far as the next image, if that is running text."""
        places, place = self.places, self.places[row]
        block = self.blocks[place.block]
        if block.furniture or block.is_caption:
            return "", ""
        since, until = 0, len(block.raw_text())
        if row and places[row - 1].block == place.block:
            since = places[row - 1].offset
        if row + 1 < len(places) and places[row + 1].block == place.block:
            until = places[row + 1].offset
        return block.between(max(since, place.offset - MAX_NEAR), place.offset), block.between(
            place.offset, min(until, place.offset + MAX_NEAR)
        )

    def _text_behind(self, row: int) -> str:
        """The text behind a block of images with their texts behind them, the last of which has it; "" if there is
        none, or if such a text stands before the first one too."""
        (before, after), block, scope = self._own_texts[row], self.places[row].block, self._scopes[row]
        if HAN.search(after) or POINTS_DOWN.search(before[-80:]) or block + 1 in self._with_image:
            return ""
        return self._nearest(block, 1, scope, -1) if self._nearest(block, -1, scope, -1) in ("", self.headline) else ""

    def _leading_to(self, row: int) -> str:
        """The text that leads to an image: before it in its block, or the block before. Images that stand together have
        it in common, and what is not Chinese, such as a command and its output, is passed over. "" if another text of
        its own block, a caption or furniture stands closer.
        """
        place, (before, after) = self.places[row], self._own_texts[row]
        own_block = self.blocks[place.block]
        if own_block.furniture or own_block.is_caption or place.furniture:
            return ""
        if HAN.search(before) or HAN.search(after):
            return before if HAN.search(before) else ""
        last = self.places[row - 1].block if row else -1  # the block of the image before
        if last == place.block:
            return self._leads[row - 1]
        for at in range(place.block - 1, max(self._scopes[row].before, place.block - MAX_DISTANCE) - 1, -1):
            block = self.blocks[at]
            if at == last:
                return "" if HAN.search(self._own_texts[row - 1][1]) else self._leads[row - 1]
            if self._walk.is_foreign_heading(at):
                return ""
            if block.raw_text() and (block.furniture or block.is_caption):
                return ""
            if block.has_han() and not is_byline(block.text()):
                return block.text()
        return ""

    def _beside_text(self, row: int) -> str:
        """The text right beside an image that says something: what leads to it, else what stands behind it in its
        block, or behind one that begins a section, else a sentence behind it that is about the image above.
        """
        place, scope, after = self.places[row], self._scopes[row], self._own_texts[row][1]
        if place.furniture or place.fallback:
            return ""
        if (blocks := self._text_of.get(row)) is not None:
            text = " ".join(filter(None, (self.blocks[at].text() for at in blocks)))
            beside = beginning_of(text) if blocks.start > place.block else ending_of(text)
            if self._says_something(beside, MIN_BESIDE if POINTS_DOWN.search(beside) else MIN_CARD):
                return beside
        led = ending_of(self._leads[row])
        *_, last = ("", *sentences_of(led))
        if led and not POINTS_UP.search(last):
            beside = led
        elif not led and HAN.search(after):
            beside = beginning_of(after)
        elif not led and place.block and self._walk.is_foreign_heading(place.block - 1):
            beside = beginning_of(self._nearest(place.block, 1, scope, -1, MIN_CARD))
        else:
            beside = ""
        if beside != self.headline and self._says_something(beside):
            return beside
        if place.block + 1 in self._with_image:
            return ""
        sentence = next(sentences_of((after or self._nearest(place.block, 1, scope, -1))[:MAX_SURROUNDING]), "")
        return sentence if POINTS_UP.search(sentence) and self._says_something(sentence) else ""

    def _surrounding(self, row: int, used: int) -> list[str]:
        """The nearest text before the image (its own paragraph as far as the image, else a block before) and after; not
        words without content (运行结果如下图)."""
        start, scope, (before, after) = self.places[row].block, self._scopes[row], self._own_texts[row]
        if _LETTER.search(before) and not SENTENCE_END.match(before[-1]):  # the image stands within a sentence
            mark = SENTENCE_END.search(after)
            after = after[mark.end() :] if mark else after
        if not HAN.search(before):
            before = self._leads[row] or self._nearest(start, -1, scope, used)
        if used == start:
            after = ""
        elif not HAN.search(after):
            after = self._nearest(start, 1, scope, used)
        near = [ending_of(before), beginning_of(after)]
        near = [text for text in near if len(text) > MAX_LINE or (text and self._says_something(text, 1))]
        return near[::-1] if scope.listed else near

    def _nearest(self, start: int, step: int, scope: Scope, used: int, minimum: int = 1) -> str:
        """The first block of running text within a scope: Chinese, no furniture, no caption, with so many characters
        beside words without content; "" if none is near.
        """
        for distance in range(1, MAX_DISTANCE):
            i = start + step * distance
            if not scope.before <= i < scope.behind or (step > 0 and i in self._headings and not scope.listed):
                break  # a heading behind an image begins what is not about it
            block = self.blocks[i]
            if step < 0 and self._walk.is_foreign_heading(i):
                break  # and one before it ends it, in another language too
            if i == used or block.furniture or block.is_caption or not block.has_han():
                continue
            text = block.text()
            if is_caption_line(text) or is_byline(text):
                continue
            if minimum == 1 or self._says_something(text[:MAX_NEAR], minimum):
                return text
        return ""


def _texts(pairs: list[tuple[TextKind, str]]) -> tuple[Text, ...]:
    """Texts without empty ones and repetitions: a text that comes twice has the kind of its first occurrence."""
    texts: dict[str, Text] = {}
    for kind, text in pairs:
        if "$" in text:
            text = _FORMULA.sub(r"\1", text)  # $N$ is N
        if "&" in text and _ENTITY.search(text):  # escaped twice, as feeds and templates do
            text = clean(entities.unescape(text))
        if text and text not in texts:
            texts[text] = _text(kind, text[:MAX_TEXT])
    return tuple(texts.values())


@functools.lru_cache(maxsize=256)  # the images of a page share its title, tags and what stands between them
def _text(kind: TextKind, text: str) -> Text:
    return Text(kind, text)


def _number_at_end(alt: str) -> re.Match[str] | None:
    """The number at the end of an alt that counts pictures."""
    return _COUNTED.search(alt) if alt[-1:].isdecimal() or alt[-1:] in (")", "）") else None


def _name_of_file(url: str) -> tuple[str, bool]:
    """The name of an image's file without its suffix and numbers, "" where it is not Chinese; and whether it has a
    number, as those of a series have."""
    name = url.partition("?")[0].partition("#")[0].rpartition("/")[2]
    if not ("%" in name or HAN.search(name)):
        return "", False
    words = clean(_AROUND_NAME.sub(" ", unquote(name[:1_000])))
    bare = words.strip("0123456789 ")
    return bare if len(HAN.findall(bare)) >= MIN_OWN and "\ufffd" not in bare else "", bare != words


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
