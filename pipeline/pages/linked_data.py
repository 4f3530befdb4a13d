"""JSON-LD of a page (`<script type="application/ld+json">`, schema.org): images with captions, and what it is about.

Limits: a graph is walked to MAX_NODES objects and MAX_DEPTH levels; what is no JSON is passed over; references between
objects (`@id`) are not followed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

MAX_SCRIPTS, MAX_BYTES, MAX_NODES, MAX_DEPTH = 20, 500_000, 2_000, 12


@dataclass(slots=True)
class LinkedData:
    """What the scripts say. `images`: (address as written, caption)."""

    headline: str = ""
    description: str = ""
    keywords: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)


def read(tree: Any) -> LinkedData:
    """Read the `script` elements of a page (selectolax) that hold JSON-LD. Never fails."""
    found = LinkedData()
    left = [MAX_NODES]
    scripts = [n for n in tree.tags("script") if (n.attributes.get("type") or "").lower() == "application/ld+json"]
    for node in scripts[:MAX_SCRIPTS]:
        text = node.text() or ""
        if len(text) <= MAX_BYTES:
            try:
                _walk(json.loads(text), found, left, 0)
            except (ValueError, RecursionError):
                continue
    found.images = list(dict.fromkeys(found.images))
    return found


def _walk(value: Any, found: LinkedData, left: list[int], depth: int) -> None:
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        return
    if isinstance(value, list):
        for entry in value:
            _walk(entry, found, left, depth + 1)
    if not isinstance(value, dict):
        return
    if "ImageObject" in _strings(value.get("@type")):
        caption = next((t for k in ("caption", "description", "name") for t in _strings(value.get(k))), "")
        found.images += [
            (url, caption) for url in (_strings(value.get("contentUrl")) or _strings(value.get("url")))[:1]
        ]
    found.images += [(url, "") for key in ("image", "thumbnailUrl") for url in _strings(value.get(key))]
    found.headline = found.headline or next(iter(_strings(value.get("headline"))), "")
    found.description = found.description or next(iter(_strings(value.get("description"))), "")
    found.keywords += _strings(value.get("keywords"))
    for entry in value.values():
        if isinstance(entry, (dict, list)):
            _walk(entry, found, left, depth + 1)


def _strings(value: Any) -> list[str]:
    """A string, or those of a list."""
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and v.strip()]
