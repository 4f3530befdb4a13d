"""Reads sitemaps, the lists of pages of a site (sitemaps.org protocol 0.9), and their indexes, plain or gzipped.

Read with the XML parser of the standard library, which resolves no outside entity; a file that declares entities of its
own is refused. Of a damaged file the entries before the damage are read.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from pipeline.sources.site import Site
from pipeline.texts.charset import codec_of
from pipeline.web.bodies import BodyTooLarge, unpacked

MAX_BYTES = 50 * 1024 * 1024
"""Size of one file, unpacked: the protocol's own limit."""

MAX_FILES = 1_000
"""Sitemaps that are read per site."""

MAX_URLS = 50_000
"""Entries of one file: the protocol's own limit."""

MAX_DEPTH, MAX_NODES = 32, 1_000_000
"""Nested elements, and elements, that are read of one file: a sitemap with images and videos nests 4 deep and has some
20 elements per entry. Each open element costs memory (50 kB of gzip made 4.5 GB), each one read about a microsecond."""

GZIP = b"\x1f\x8b"

_LONG_TAG = re.compile(rb"<[^<>]{65536}")
"""A tag whose attributes alone would fill the memory; sitemaps have few and short ones."""

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([\w.:-]{1,40})["'][^>]{0,200}>""")
_EXPAT_CHARSETS = ("utf-8", "us-ascii", "ascii", "iso-8859-1")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"<\0", b"\0<")
"""First bytes of a file in UTF-16 (XML 1.0, appendix F.1), which the protocol does not allow, and in which declarations
would pass unseen."""


def read(body: bytes, cap: int, site: Site) -> tuple[list[str], list[str]]:
    """(pages of the site, further sitemaps) that a file lists."""
    pages, further = parse(body, cap)
    return site.pages_of(pages), further[:MAX_FILES]


def parse(body: bytes, cap: int = MAX_BYTES) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) that a file lists, as written; both empty for what is not a sitemap."""
    if body.startswith(GZIP):
        try:
            body = unpacked(body, "gzip", cap)
        except (BodyTooLarge, ValueError):
            return [], []
    body = _utf8(body)
    if body.startswith(_UTF16) or b"<!ENTITY" in body or _LONG_TAG.search(body):
        return [], []
    pages: list[str] = []
    further: list[str] = []
    try:
        for tag, url in _entries(body):
            (pages if tag == "url" else further).append(url)
            if len(pages) + len(further) >= MAX_URLS:
                break
    except (ElementTree.ParseError, LookupError, ValueError):  # damaged, or in an encoding that expat does not read
        pass
    return [url for url in pages if url], [url for url in further if url]


def _entries(body: bytes) -> Iterator[tuple[str, str]]:
    """("url" or "sitemap", its address, "" for none) of each entry. Raises ParseError where the file is damaged."""
    open_elements: list[ElementTree.Element] = []
    nodes = 0
    for event, node in ElementTree.iterparse(io.BytesIO(body), ("start", "end")):
        if event == "start":
            nodes += 1
            open_elements.append(node)
            if nodes > MAX_NODES or len(open_elements) > MAX_DEPTH:
                return
            continue
        open_elements.pop()
        tag = _name(node)
        if tag in ("url", "sitemap"):
            yield tag, next((child.text or "" for child in node if _name(child) == "loc"), "").strip()
        if len(open_elements) == 1:  # a child of the root has ended
            open_elements[0].clear()  # else the tree of all entries stays in memory


def _name(node: ElementTree.Element) -> str:
    """An element's name without its namespace."""
    return str(node.tag).rpartition("}")[2]


def _utf8(body: bytes) -> bytes:
    """The file as UTF-8 where it declares a charset that expat cannot read: gb2312, gb18030, Big5 and all others with
    characters of several bytes. What it declares is believed; an unknown charset is read as UTF-8."""
    declared = _DECLARED.match(body[:1024])
    label = declared.group(1).decode("ascii", "replace").lower() if declared else "utf-8"
    if declared is None or label in _EXPAT_CHARSETS:
        return body
    return body[declared.end() :].decode(codec_of(label) or "utf-8", "replace").encode()
