"""Pictures of a page that no <img> shows. They are counted, not read, so that a page's account says what it met.

CSS backgrounds of elements (`style`, `background`) are decoration as a rule. A browser shows nothing of a <picture>
without <img>; pictures in <object>, <embed>, <iframe> and SVG, image buttons and posters of videos have no text.

Limits: backgrounds that a style sheet sets, and pictures that scripts insert, are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SELECTOR = 'picture,object,embed,iframe,image,input[type="image" i],video[poster],[background],[style*="url(" i]'
"""Elements that may show one."""

_BACKGROUND = re.compile(r"background[^;]*?url\(", re.I)
_SUFFIX = re.compile(r"\.(?:jpe?g|png|gif|webp|avif|bmp|svg)(?:$|[?#])|^data:image/", re.I)


def count_unread(nodes: Iterable[Any]) -> tuple[int, int]:
    """(elements with a background, elements with another picture) of those that SELECTOR has found."""
    backgrounds = embedded = 0
    for node in nodes:
        attributes = node.attributes
        backgrounds += bool(attributes.get("background") or _BACKGROUND.search(attributes.get("style") or ""))
        embedded += _shows_picture(node.tag, node, attributes)
    return backgrounds, embedded


def _shows_picture(tag: str, node: Any, attributes: dict[str, str | None]) -> bool:
    """True for an element other than <img> that shows a picture, beside its background."""
    if tag == "picture":
        return node.css_first("source") is not None and node.css_first("img") is None
    if tag in ("object", "embed", "iframe"):
        url = attributes.get("data" if tag == "object" else "src") or ""
        return bool(url) and ((attributes.get("type") or "").startswith("image/") or bool(_SUFFIX.search(url)))
    if tag == "input":
        return bool(attributes.get("src"))
    return bool(attributes.get({"image": "href", "video": "poster"}.get(tag, "")) or attributes.get("xlink:href"))
