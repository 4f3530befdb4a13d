"""What a page says of its images, for tests of the parts of the page reader."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pipeline.pages import page, walk
from pipeline.pages.page import parse
from pipeline.texts.cleaning import clean


def texts(html: str, row: int = 0) -> dict[str, list[str]]:
    """Texts by kind of one image of a page."""
    by_kind: dict[str, list[str]] = {}
    for text in parse(html).images[row].texts:
        by_kind.setdefault(text.kind, []).append(text.text)
    return by_kind


def first_of(html: str) -> list[tuple[str, str]]:
    """The kind and the text that come first of each image of a page."""
    return [(image.texts[0].kind, image.texts[0].text) for image in parse(html).images]


def work(html: str) -> int:
    """What it costs to parse a page: lines of our code run, and characters of texts that are cleaned."""
    done = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal done
        done += event == "line"
        return trace if "/pipeline/" in frame.f_code.co_filename else None

    def cleaning(text: str) -> str:
        nonlocal done
        done += len(text)
        return clean(text)

    before = sys.gettrace()
    with pytest.MonkeyPatch.context() as patch:
        for module in (page, walk):
            patch.setattr(module, "clean", cleaning)
        sys.settrace(trace)
        try:
            parse(html)
        finally:
            sys.settrace(before)
    return done
