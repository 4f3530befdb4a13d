"""JSON-LD of a page (`<script type="application/ld+json">`, schema.org): images with captions, headline, keywords.

Limits: at most MAX_NODES objects, MAX_DEPTH levels deep, are visited; scripts that are not JSON are skipped; references
between objects (`@id`) are not followed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.rows.records import encodable

MAX_SCRIPTS, MAX_BYTES, MAX_NODES, MAX_DEPTH = 20, 500_000, 2_000, 12

MAX_STRINGS = 2_000
"""Strings of one list, images and keywords of a page that are taken."""


@dataclass(slots=True)
class LinkedData:
    """The data of a page's scripts. `images`: (address as written, caption)."""

    headline: str = ""
    description: str = ""
    keywords: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)


def read(scripts: Iterable[Any]) -> LinkedData:
    """Read those of a page's `script` elements (selectolax) that hold JSON-LD. Never fails."""
    data = LinkedData()
    budget = [MAX_NODES]  # shared by all scripts of the page
    linked = [n for n in scripts if (n.attributes.get("type") or "").lower() == "application/ld+json"]
    for node in linked[:MAX_SCRIPTS]:
        text = node.text() or ""
        if len(text) <= MAX_BYTES:
            try:
                _walk(json.loads(text), data, budget, 0)
            except (ValueError, RecursionError):
                continue
    data.images = list(dict.fromkeys(data.images))[:MAX_STRINGS]
    return data


def _walk(value: Any, data: LinkedData, budget: list[int], depth: int) -> None:
    """Collect into `data` what a JSON value holds, as long as the budget of objects lasts."""
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        return
    if isinstance(value, list):
        for entry in value:
            _walk(entry, data, budget, depth + 1)
    if not isinstance(value, dict):
        return
    if "ImageObject" in _strings(value.get("@type")):
        caption = next((t for k in ("caption", "description", "name") for t in _strings(value.get(k))), "")
        data.images += [(url, caption) for url in (_strings(value.get("contentUrl")) or _strings(value.get("url")))[:1]]
    data.images += [(url, "") for key in ("image", "thumbnailUrl") for url in _strings(value.get(key))]
    data.headline = data.headline or next(iter(_strings(value.get("headline"))), "")
    data.description = data.description or next(iter(_strings(value.get("description"))), "")
    if len(data.keywords) < MAX_STRINGS:
        data.keywords += _strings(value.get("keywords"))
    for entry in value.values():
        if isinstance(entry, (dict, list)):
            _walk(entry, data, budget, depth + 1)


def _strings(value: Any) -> list[str]:
    """The strings that are not blank in a value: itself, or the entries of a list. Fit for UTF-8."""
    strings = (v for v in (value[:MAX_STRINGS] if isinstance(value, list) else [value]) if isinstance(v, str))
    return [encodable(v) for v in strings if v.strip()]
