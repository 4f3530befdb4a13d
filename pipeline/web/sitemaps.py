"""Sitemaps: which pages a site names itself (sitemaps.org protocol 0.9), as an index, plain or gzipped.

Read with the XML parser of the standard library, which resolves no outside entity; a file that declares entities of its
own is refused. A damaged file gives what stands before the damage.
"""

from __future__ import annotations

import io
from xml.etree import ElementTree

from pipeline.web.guard import BodyTooLarge, unpacked

MAX_BYTES = 50 * 1024 * 1024
"""Of one file, unpacked: the protocol's own limit."""

MAX_FILES = 1_000
"""Sitemaps read of one site."""

MAX_URLS = 50_000
"""Of one file: the protocol's own limit."""


def parse(body: bytes, cap: int = MAX_BYTES) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) that a file names, as written. What is no sitemap names nothing."""
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
                found = next((c.text or "" for c in node if str(c.tag).rpartition("}")[2] == "loc"), "").strip()
                (pages if tag == "url" else further).append(found)
                node.clear()
            if len(pages) + len(further) >= MAX_URLS:
                break
    except ElementTree.ParseError:
        pass
    return [url for url in pages if url], [url for url in further if url]
