"""Candidates of one captured page: its images with their texts, and a Decision for each image that is dropped.

Pages are decoded (`pipeline.texts.charset`), looked at (`pipeline.pages.first_look`) and, where they may be Chinese and
may show a picture, read in one walk (`pipeline.pages.page`). A page that asks not to be used, that is not Chinese or
cannot be read is a Decision about the capture. One image shown twice on a page is one
candidate with the texts of both places. `read_within_limits` reads a page that may take long in a process of its own.

Limits: whether a page is Chinese is judged by script.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from data_specs.shard import SourceKind, Text
from pipeline.pages import bounds, first_look
from pipeline.pages.page import MAX_SHARING, Page, PageImage, parse
from pipeline.pages.site_rules import rule_of
from pipeline.processes.confined import Confined
from pipeline.rows.account import Named, Units
from pipeline.rows.decisions import Decision, DropReason, drop, drop_capture
from pipeline.rows.records import Candidate, Capture, Shown, sha256_hex
from pipeline.stages._furniture import is_about_image
from pipeline.texts.charset import decode
from pipeline.urls import canonical_url, split_userinfo
from pipeline.web import policy

if TYPE_CHECKING:
    from pipeline.sources import PageSource

Entries = list[Candidate | Decision]


class Reading(NamedTuple):
    """Entries of a page; its `wording_of` if it may have candidates; what became of its images, None where an
    entry is about the whole page."""

    entries: Entries
    wording: str | None = None
    images: Units | None = None


_EXAMPLE = Capture("http://a.cn/", 200, "", "text/html", "<p>一段话<a href=/b><img src=c.jpg alt=图>".encode())

_PIXELS = re.compile(r"\s*(\d+)\s*(?:px)?\s*$")
MIN_SIDE = 48
"""An image whose own element says that it is smaller, in CSS pixels, is an icon or a spacer."""

_STRONG = r"spacer|1x1|placeholder|lazyload|logo|sprites?|avatar|favicon|emoji|emoticon|qr|qrcode|ewm|erweima"
_WEAK = r"blank|pixel|loading|lazy|grey|gray|transparent|icons?|ico|arrow|bullet|callouts?|dot|rss"
"""Words that are the subject of a picture as often: `gray-wolf`, `app-icon-design`, `page-loading-time`."""
_SPACER_NAME, _STRONG_NAME = (  # of a name with the slash before it: what begins with a set of characters is found fast
    re.compile(rf"[-_./](?:{words})(?:[-_.0-9]|$)", re.I) for words in (f"{_STRONG}|{_WEAK}", _STRONG)
)
_WEAK_STEM = re.compile(
    rf"/[-_.@x\d]*(?:(?:{_WEAK}|left|right|up|down|prev|next|mini|small|big|large)[-_.@x\d]*)+(?:\.\w*)?$", re.I
)
MAX_TITLED = 2
"""Images of a page that can have its title as their only text."""

SMALL_SIDE = 100
"""An image with a weak word in its name whose own element says that it is smaller, in CSS pixels, is an icon."""

_BUTTON_NAME = re.compile("/(?:btn|button)(?:[-_.0-9]|$)", re.I)  # a screenshot may show one: dialog_button_ok.png
_SPACER_CLASS = re.compile(
    r"(?:^|[-_\s])(?:icons?|logo|avatar|emoji|emoticon|spacer|pixel|callout|qrcode|badge)(?:$|[-_\s])", re.I
)
_AVATARS = re.compile(r"/avatars?/|/uc_server/|//[^/]*gravatar\.com/", re.I)
"""Folders and hosts that serve the pictures of users."""
_TRACKERS = r"(?:cnzz|51\.la|google-analytics|googletagmanager|doubleclick|scorecardresearch|umeng|miaozhen|admaster)"
_TRACKER = re.compile(rf"(?:^|\.){_TRACKERS}(?:\.|$)|^(?:hm|eclick)\.baidu\.com$", re.I)
_TRACKING_PATH = re.compile(
    rf"[./](?:(?<=\.){_TRACKERS}(?:\.|$)|(?<=/)(?:(?:pixel|beacon)\.(?:gif|php|png)|"
    r"(?:track|stat|count(?:er)?)\.(?:gif|php)))",  # a track, statistics or a counter may be a picture's subject
    re.I,
)
_HAN, _KANA, _HANGUL = (
    re.compile(p) for p in ("[\u3400-\u9fff\U00020000-\U0003ffff]+", "[\u3041-\u30fa]+", "[\uac00-\ud7a3]+")
)
_HIGH_OF_HAN, _HIGH_OF_HANGUL = bytes(range(0x34, 0xA0)), bytes(range(0xAC, 0xD8))
_NUMBERS = re.compile(r"[\d\s零〇一二三四五六七八九十\x00-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
"""These and what nobody sees are no part of a page's wording."""
_LETTERS = re.compile(r"[^\W\d_]+")
MIN_HAN = 0.1
"""Share of Han characters among a page's letters, menus and code included, from which on it counts as Chinese."""


def read_within_limits(capture: Capture, source: PageSource, reader: Confined[Reading]) -> Reading:
    """`extract_page`, by `reader` where the page may take long: one in five of large pages, hardly one of others.

    reader: runs `extract_page`. Raises OverLimit and PageRefused.
    """
    source_args = source.name, source.source_kind, source.max_images_per_page
    if len(capture.body) > bounds.LIGHT_CHARACTERS:
        refusal = _refusal(capture, source.name)
        return Reading([refusal]) if refusal is not None else reader(capture, *source_args)
    html = _html_or_reading(capture, source.name)
    if isinstance(html, Reading):
        return html
    return _read_page(capture, html, *source_args) if bounds.is_light(html) else reader(capture, *source_args)


def page_reader() -> Confined[Reading]:
    """Runs `extract_page` in a process of its own, which is started when it is first needed."""
    return Confined(extract_page, (_EXAMPLE, "", "news", 1))


def extract_page(capture: Capture, source: str, source_kind: SourceKind, max_images: int = 2_000) -> Reading:
    """The candidates of one captured page, with a Decision per image that is none, or one Decision about the capture.

    max_images: candidates of the page at most.

    Raises PageRefused for a page beyond the bounds on markup. Meant to raise nothing else: whatever is wrong with a
    page is a Decision. If it raises all the same, `extract._read_page` makes it one.
    """
    html = _html_or_reading(capture, source)
    return html if isinstance(html, Reading) else _read_page(capture, html, source, source_kind, max_images)


def _refusal(capture: Capture, source: str) -> Decision | None:
    """The Decision about a capture that is not a page at all."""
    try:  # of the pages of a WARC, which others wrote, every later stage asks for the host
        if not capture.url.isascii() or "[" in capture.url or "]" in capture.url:  # nothing else is refused
            urlsplit(capture.url)
    except ValueError as e:
        return drop_capture(capture.url, source, "extract", DropReason.BAD_URL, str(e))
    if not 200 <= capture.status < 300:
        return drop_capture(capture.url, source, "extract", DropReason.HTTP_STATUS, str(capture.status))
    if not policy.is_html(capture.content_type, capture.body):
        return drop_capture(capture.url, source, "extract", DropReason.NOT_HTML, capture.content_type[:80])
    if not capture.body or capture.body.isspace():
        return drop_capture(capture.url, source, "extract", DropReason.EMPTY_BODY, "empty, or only white space")
    return None


def _html_or_reading(capture: Capture, source: str) -> Reading | str:
    """Returns the HTML of a page, or the Reading of a page that need not be parsed."""

    def dropped(reason: DropReason, why: str) -> Reading:
        return Reading([drop_capture(capture.url, source, "extract", reason, why)])

    if (refusal := _refusal(capture, source)) is not None:
        return Reading([refusal])
    decoded = decode(capture.body, capture.content_type)
    if decoded is None:
        return dropped(DropReason.BAD_CHARSET, "not text in the declared charset or in a known East Asian one")
    html, encoded = decoded[0], capture.body if decoded[1] == "utf-8" else None
    bare = first_look.is_without_pictures(html)
    nothing_shown = bare and not first_look.may_show_others(html)
    if not (nothing_shown or first_look.is_without_han(html, encoded)) or first_look.may_opt_out(html):
        return html
    if outs := policy.opt_outs(capture.headers):
        return dropped(DropReason.OPT_OUT, str(outs))
    return Reading([]) if bare else dropped(DropReason.NOT_CHINESE, f"no Han characters among {len(html)} characters")


def _read_page(capture: Capture, html: str, source: str, source_kind: SourceKind, max_images: int) -> Reading:
    """Reads a page as `extract_page` does, by a walk over the DOM."""
    page = parse(html, rule_of(capture.url))
    if outs := policy.opt_outs(capture.headers, page.robots, page.reserved):
        return Reading([drop_capture(capture.url, source, "extract", DropReason.OPT_OUT, str(outs))])
    images = _count_images(page)
    if not page.images:
        return Reading([], None, images)
    if script := not_chinese(page):
        return Reading([drop_capture(capture.url, source, "extract", DropReason.NOT_CHINESE, script)])
    entries = list(_image_entries(capture, page, source, source_kind, max_images, images))
    return Reading(entries, wording_of(page.text), images)


def not_chinese(page: Page) -> str:
    """Evidence that a page is not Chinese, "" for none. By script, since short texts mislead models.

    A page with little Chinese stays if one of its images has a Chinese alt or caption.
    """
    own_words = [t.text for image in page.images for t in image.texts if t.kind in ("alt", "caption")]
    text = " ".join((page.text[:100_000], *own_words))[:200_000]
    han, kana, hangul = _script_bounds(text)
    if han < 0 or kana > 0.2 * (han + kana) or hangul > han:
        han, kana, hangul = (sum(map(len, runs.findall(text))) for runs in (_HAN, _KANA, _HANGUL))
    if han < MIN_HAN * len(text) and not any(_HAN.search(t) for t in own_words):
        letters = sum(map(len, _LETTERS.findall(text)))
        if han < MIN_HAN * letters:
            return f"{han} Han characters of {letters} letters"
    if kana > 0.2 * (han + kana):
        return f"{kana} kana and {han} Han characters"
    if hangul > han:
        return f"{hangul} hangul and {han} Han characters"
    return ""


def _script_bounds(text: str) -> tuple[int, int, int]:
    """Returns (Han characters, upper bound of kana, upper bound of hangul) of a text, by the high bytes of its UTF-16:
    a tenth of what a search takes. Han is -1 for a text with characters beyond U+FFFF."""
    high = text.encode("utf-16-le", "surrogatepass")[1::2]
    if len(high) != len(text):
        return -1, 0, 0
    han, hangul = (len(high) - len(high.translate(None, rows)) for rows in (_HIGH_OF_HAN, _HIGH_OF_HANGUL))
    return han, high.count(0x30), hangul


def _count_images(page: Page) -> Units:
    """Counts the images of a page, by name those that `parse` leaves out and pictures of other elements."""
    images = Units(page.elements + page.backgrounds + page.embedded)
    names = Named.UNSHOWN, Named.OUTSIDE, Named.BACKGROUND, Named.EMBEDDED
    for name, count in zip(names, (page.hidden, page.outside, page.backgrounds, page.embedded), strict=True):
        if count:
            images.named[name] = count
    return images


@dataclass(slots=True)
class _Draft:
    """A candidate while its page is read: images of the same address add their texts. is_element: its first one is an
    <img>, and no og:image."""

    row: int
    is_element: bool
    userinfo: str
    texts: dict[str, Text]
    listed: bool


def _image_entries(
    capture: Capture, page: Page, source: str, source_kind: SourceKind, most: int, images: Units
) -> Iterator[Candidate | Decision]:
    """Candidates of a page in the order of its images, decisions first."""
    base = _base_url(capture.url, page.base)
    drafts: dict[str, _Draft] = {}  # by canonical URL
    for image in sorted(page.images, key=lambda image: image.fallback):  # a lazy image itself before its <noscript>
        bare, userinfo = split_userinfo(image.url) if "@" in image.url else (image.url, "")
        image = image._replace(url=bare) if userinfo else image
        is_element = image.row >= 0
        row = image.row if is_element else len(page.images)
        url_or_fault = _url_or_fault(image, base)
        if isinstance(url_or_fault, str) and url_or_fault not in drafts:
            if len(drafts) < most:
                drafts[url_or_fault] = _Draft(row, is_element, userinfo, {t.text: t for t in image.texts}, image.listed)
                continue
            url_or_fault = DropReason.CAP_PER_PAGE, f"the page has more than {most} images"
        # An image that is not a candidate is identified by its place on the page: others may have the same address.
        origin = f"{capture.url}#image-{row}"
        candidate = Candidate(source, source_kind, origin, capture.url, image.url[:2000], image.texts, row)
        if isinstance(url_or_fault, tuple):
            images.decisions += is_element
            yield drop(candidate, "extract", *url_or_fault)
            continue
        draft = drafts[url_or_fault]
        draft.listed = draft.listed and image.listed
        draft.texts.update({t.text: t for t in image.texts if t.text not in draft.texts})
        if image.fallback:
            images.named[Named.FALLBACK] += 1
        elif is_element:
            images.decisions += 1
            repeated = replace(candidate, image_url=url_or_fault)
            leader = sha256_hex(source, capture.url, url_or_fault)  # its candidate_id
            yield drop(repeated, "extract", DropReason.REPEATED_ON_PAGE, "texts went to the first", duplicate_of=leader)
    bare_first = sorted(drafts, key=lambda url: is_about_image(drafts[url].texts.values()))
    alone = set(bare_first[:MAX_TITLED] if len(drafts) <= MAX_SHARING else ())
    for url, draft in drafts.items():
        texts, about = tuple(draft.texts.values()), (source, source_kind, capture.url, capture.url)
        shown: Shown = "listed" if draft.listed else "alone" if url in alone else "among"
        candidate = Candidate(*about, url, texts, draft.row, userinfo=draft.userinfo, shown=shown)
        entry = candidate if texts else drop(candidate, "extract", DropReason.NO_TEXT)
        if draft.is_element:
            images.take([entry])
        yield entry


def _base_url(url: str, base: str) -> str:
    try:
        return canonical_url(split_userinfo(base)[0], url) if base else url
    except ValueError:
        return url


def _url_or_fault(image: PageImage, base: str) -> str | tuple[DropReason, str]:
    """Canonical URL of an image, or the reason and evidence for dropping it."""
    if not image.url:
        return DropReason.BAD_URL, "no URL"
    if image.url[:5].lower() == "data:":
        return DropReason.DATA_URI, image.url[:40]
    try:
        url = canonical_url(image.url, base)
    except ValueError as e:
        return DropReason.BAD_URL, str(e)
    why = _spacer_evidence(image, url)
    return (DropReason.SPACER, why) if why else url


def _spacer_evidence(image: PageImage, url: str) -> str:
    """Evidence that an image with a canonical URL is an icon, a spacer or a tracker; "" if it is not."""
    attributes = image.attributes
    is_small = False
    for name in ("width", "height"):
        number = _PIXELS.match(attributes[name]) if name in attributes else None
        if number and int(number.group(1)) < MIN_SIDE:
            return f"{name} {number.group(1)}"
        is_small = is_small or (number is not None and int(number.group(1)) < SMALL_SIDE)
    _, _, host, *parts = url.partition("?")[0].split("/")  # a canonical URL lacks user info and fragment
    path = "/" + "/".join(parts)
    if _is_tracker(host) or _TRACKING_PATH.search(path):
        return "tracker"
    if image.row < 0:
        return ""
    style = f"{attributes.get('class', '')} {attributes.get('id', '')}"
    if style != " " and (
        why := (_spacer_style if len(style) <= 300 else _spacer_style.__wrapped__)(style)  # what is kept is bounded
    ):
        return why
    name = path[path.rindex("/") :]
    match = _SPACER_NAME.search(name)
    if match and not is_small:
        match = _STRONG_NAME.search(name) or (match if _WEAK_STEM.match(name) else None)
    if match := match or _BUTTON_NAME.match(name):
        return f"name {match.group(0)[match.start() == 0 :]}"
    if match := _AVATARS.search(url):
        return f"name {match.group(0)}"
    if image.furniture:
        return "in navigation, footer or sidebar"
    return ""


@functools.lru_cache(maxsize=4096)  # a page's images are on few hosts, and of few classes
def _is_tracker(netloc: str) -> bool:
    return _TRACKER.search(urlsplit(f"//{netloc}").hostname or "") is not None


@functools.lru_cache(maxsize=4096)
def _spacer_style(style: str) -> str:
    match = _SPACER_CLASS.search(style.replace("lazy", ""))
    return f"class {match.group(0).strip()}" if match else ""


@functools.cache
def _wording_mask() -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each unit of UTF-16 whether it is wording: a look-up takes a tenth of a search."""
    return np.array([_NUMBERS.match(chr(unit)) is None for unit in range(1 << 16)])


def wording_of(text: str) -> str:
    """Digest of a page's text but for its numbers: equal for the pages of a calendar or a counter."""
    units = np.frombuffer(text[:100_000].encode("utf-16-le", "surrogatepass"), "<u2")
    return hashlib.sha256(units[_wording_mask().take(units)].tobytes()).hexdigest()[:16]
