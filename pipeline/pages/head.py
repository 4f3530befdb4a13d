"""The head of a page: its meta tags, and the title of its article.

Limits: a page whose head names only its site, and whose sections have an h1 each, has the site's name as its title,
which `pipeline.stages._furniture` removes where many pages have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.pages import unread_pictures
from pipeline.texts.cleaning import clean

MAX_TAGS = 10
"""Tags kept per page."""

MIN_HEADLINE = 4
"""Letters of a headline that is looked for within a longer title: shorter ones (简介) are words of many."""

_BEHIND_DASH = re.compile(r"\s+[-–—·]+\s+[^-–—·]{1,30}$")
_SITE_NAME = re.compile(rf"\s*[_|｜]\s*[^_|｜]{{1,30}}$|{_BEHIND_DASH.pattern}")
_NO_LETTER = re.compile(r"[\W_]+")
_OUR_NAMES = frozenset(("robots", "wenlan"))


@dataclass(frozen=True, slots=True)
class Meta:
    """Metadata from the head of a page, and its rel=tag links."""

    base: str
    language: str
    robots: tuple[str, ...]
    full_title: str  # <title>
    title: str  # the same without the site's name
    og_title: str  # og:title, without the site's name where it repeats <title>
    site: str  # og:site_name
    abstract: str
    image: str
    tags: tuple[str, ...]
    reserved: bool

    @classmethod
    def read(cls, tree: Any, elements: dict[str, list[Any]]) -> Meta:
        content_of: dict[str, str] = {}  # name or property of a meta tag -> content of the first such tag
        robots: list[str] = []
        tags: list[str] = []
        reserved = False
        for node in elements["meta"]:
            attributes = node.attributes
            meta_name = (attributes.get("name") or "").strip().lower()
            name = (attributes.get("property") or "").strip().lower() or meta_name
            content = attributes.get("content") or ""
            if name in _OUR_NAMES or meta_name in _OUR_NAMES:
                robots.append(content)
            elif "tdm-reservation" in (name, meta_name):  # of several ones that differ the owner's "no" counts
                reserved = reserved or content.strip() == "1"
            elif name.endswith(("bot", "crawler")):
                robots.append(f"{name}: {content}")
            elif name in ("keywords", "article:tag"):
                tags.append(content)
            elif name:
                content_of.setdefault(name, content.strip())
        base = next((node for node in elements["base"] if "href" in node.attributes), None)
        root, title = tree.root, next(iter(elements["title"]), None)
        name_of_page = clean(title.text()) if title is not None else ""
        bare, og_title = _without_site(name_of_page), clean(content_of.get("og:title", ""))
        tag_links = [node for node in elements["a"] if "tag" in (node.attributes.get("rel") or "").split()]
        return cls(
            base=((base.attributes.get("href") or "") if base is not None else "").strip(),
            language=((root.attributes.get("lang") or "") if root is not None else "").strip().lower(),
            robots=tuple(robots),
            full_title=name_of_page,
            title=bare,
            og_title=bare if og_title == name_of_page else og_title,
            site=clean(content_of.get("og:site_name", "")),
            abstract=clean(content_of.get("og:description", "") or content_of.get("description", "")),
            image=content_of.get("og:image", ""),
            tags=(*(node.text() for node in tag_links[:MAX_TAGS]), *tags),
            reserved=reserved,
        )


def elements_of(tree: Any) -> dict[str, list[Any]]:
    """The elements that tell of a page as a whole, by their tag, and under "" others that may show a picture, in the
    page's order. One search visits all nodes once, which is most of what a search costs."""
    elements: dict[str, list[Any]] = {"meta": [], "base": [], "title": [], "script": [], "a": [], "img": [], "": []}
    last = -1
    for node in tree.css(f"meta,base,title,script,a[rel~=tag],img,{unread_pictures.SELECTOR}"):
        if node.mem_id != last:  # one that fits two selectors comes twice in a row
            elements[node.tag if node.tag in elements else ""].append(node)
            last = node.mem_id
    return elements


def _without_site(title: str) -> str:
    """A page's title without the site's name behind it; whole where what is behind | without spaces is longer."""
    bare = _SITE_NAME.sub("", title) or title
    whole = _BEHIND_DASH.sub("", title)
    return whole if title[len(bare) : len(bare) + 1] in ("|", "｜") and 2 * len(bare) < len(whole) else bare


def headline_of(headlines: list[str], meta: Meta, linked: str) -> str:
    """The title of a page's article.

    Sections of a page may have an h1 each, and a site may set its own name in one: so an h1 that stands alone is the
    title unless it is the site's name, and of several ones it is the first that the head names too.
    """
    titles = [name for name in (meta.og_title, meta.title, linked) if name]
    h1s = [h1 for h1 in headlines if h1 != meta.site or h1 in titles]
    if h1s and (len(headlines) == 1 or not titles):
        return h1s[0]
    for name in (*titles, meta.full_title):
        for h1 in h1s:
            if _is_headline(name, h1):
                return h1
    return next(iter([*titles, *h1s, *headlines]), "")


def _is_headline(name: str, headline: str) -> bool:
    """True if what the head says of a page is a headline of it, perhaps with more around it."""
    whole, part = (_NO_LETTER.sub("", text).lower() for text in (name, headline))
    return part == whole != "" or (len(part) >= MIN_HEADLINE and part in whole)
