"""What a page says of its images, for tests of the parts of the page reader."""

from __future__ import annotations

from pipeline.pages.page import parse


def texts(html: str, row: int = 0) -> dict[str, list[str]]:
    """Texts by kind of one image of a page."""
    by_kind: dict[str, list[str]] = {}
    for text in parse(html).images[row].texts:
        by_kind.setdefault(text.kind, []).append(text.text)
    return by_kind
