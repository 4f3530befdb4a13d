"""Sitemaps: the pages that a site itself lists (sitemaps.org protocol 0.9); indexes too, plain or gzipped.

Read with the XML parser of the standard library, which resolves no outside entity; a file that declares entities of its
own is refused. Of a damaged file the entries before the damage are read.
"""

from __future__ import annotations

import io
from xml.etree import ElementTree

from pipeline.web.bodies import BodyTooLarge, unpacked

MAX_BYTES = 50 * 1024 * 1024
"""Size of one file, unpacked: the protocol's own limit."""

MAX_FILES = 1_000
"""Sitemaps that are read per site."""

MAX_URLS = 50_000
"""Entries of one file: the protocol's own limit."""


def parse(body: bytes, cap: int = MAX_BYTES) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) that a file lists, as written; both empty for what is no sitemap."""
    if body[:2] == b"\x1f\x8b":
        try:
            body = unpacked(body, "gzip", cap)
        except (BodyTooLarge, ValueError):
            return [], []
    if b"<!ENTITY" in body:
        return [], []
    pages: list[str] = []
    further: list[str] = []
    try:
        for _, node in ElementTree.iterparse(io.BytesIO(body)):
            tag = str(node.tag).rpartition("}")[2]
            if tag in ("url", "sitemap"):
                url = next((c.text or "" for c in node if str(c.tag).rpartition("}")[2] == "loc"), "").strip()
                (pages if tag == "url" else further).append(url)
                node.clear()  # else the tree of all entries stays in memory
            if len(pages) + len(further) >= MAX_URLS:
                break
    except ElementTree.ParseError:
        pass
    return [url for url in pages if url], [url for url in further if url]
