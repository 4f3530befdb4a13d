"""Bounds on markup: what pages are is far within them, and what costs a parser much is beyond them or not light."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages import bounds
from pipeline.pages.bounds import PageRefused, excess, is_light, is_tiny
from pipeline.pages.page import parse
from tests.places import CORPUS

PARAGRAPHS = "<p>一段话 <b class=x>粗</b> <a href=/a>链接</a> <img src=a.jpg alt=图></p>"

BEYOND: dict[str, Callable[[], str]] = {
    "elements nested": lambda: "<ul><li>" * 60_000,
    "nested": lambda: "<div><b>" * 80_000,
    "tags": lambda: "<p>x" * (bounds.MAX_TAGS + 1),
    "images": lambda: "<IMG src=a.jpg>" * (bounds.MAX_IMAGES + 1),
    "attributes": lambda: "<img " + " ".join(f"a{n}=1" for n in range(80_000)) + ">",
}

HEAVY: dict[str, Callable[[], str]] = {
    "formatting opened again": lambda: "<p>" + "".join(f"<b a{n}>" for n in range(1_000)) + "<p>x" * 2_000,
    "formatting moved": lambda: "".join(f"<i a={n}>" for n in range(60)) + "<div>" * 4_900 + "</i>" * 4_900,
    "attributes behind quoted ends": lambda: "<img " + " ".join(f"a{n}='>'" for n in range(4_000)) + ">",
    "attributes behind one quoted end": lambda: "<img a='>' " + " ".join(f"a{n}" for n in range(9_000)) + ">",
    "attributes of bodies": lambda: "".join(f"<body a{n}>" for n in range(9_000)),
    "nesting hidden by attributes": lambda: "<div a='</div>'>" * 60_000,
    "pictures": lambda: "<img src=a.jpg>" * 4_000,
    "size": lambda: "文" * 1_000_001,
}


@pytest.mark.parametrize("word", BEYOND)
def test_a_page_beyond_a_bound_is_refused_before_it_is_parsed(word):
    html = BEYOND[word]()
    began = time.process_time()
    with pytest.raises(PageRefused, match=word):
        parse(html)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", HEAVY)
def test_a_page_that_may_take_long_is_not_light(name):
    assert not is_light(HEAVY[name]())


@pytest.mark.parametrize("html", ["", "<p>", PARAGRAPHS * 10, PARAGRAPHS * 150, "文字" * 100_000, "a < b " * 5_000])
def test_pages_are_light_and_within_the_bounds(html):
    assert excess(html) == ""
    assert is_light(html)


def test_the_demos_pages_are_within_a_tenth_of_the_bounds_and_light(monkeypatch):
    pages = sorted((CORPUS / "howtocook-site").rglob("*.html"))
    if not pages:
        pytest.skip("the demo's corpus is not here")
    for name in ("MAX_TAGS", "MAX_DEPTH", "MAX_ATTRIBUTES", "MAX_IMAGES", "MANY_TAGS", "LONG_TAG"):
        monkeypatch.setattr(bounds, name, getattr(bounds, name) // 10)
    monkeypatch.setattr(bounds, "MANY_TAGS", 0)
    for path in pages:
        html = path.read_bytes().decode("utf-8", "replace")
        assert (path, excess(html), is_light(html)) == (path, "", True)


def test_an_end_tag_ends_what_is_open_within_it_and_stray_ones_nothing(monkeypatch):
    monkeypatch.setattr(bounds, "MANY_TAGS", 0)
    monkeypatch.setattr(bounds, "MAX_DEPTH", 10)
    assert excess("<ul><li><font><b>x</ul>" * 100) == ""
    assert excess("<p>a<p>b<br><img>" * 100) == ""
    assert excess("</div></b>" * 100) == ""
    assert excess("<div></p>" * 11) == "elements nested more than 10 deep"


def test_long_values_are_no_attributes():
    drawing = "<svg><path d='" + "M 1 2 L 3 4 " * 5_000 + "'/></svg>"
    data = "<img src='data:image/png;base64," + "abc/" * 20_000 + "'>"
    assert excess(drawing + data) == ""


@pytest.mark.parametrize(("html", "tiny"), [(PARAGRAPHS * 5, True), (PARAGRAPHS * 100, False), ("文" * 16_001, False)])
def test_a_tiny_page_is_read_within_an_event_loop(html, tiny):
    assert is_tiny(html) == tiny


def test_a_parser_without_memory_refuses_the_page(monkeypatch):
    from selectolax import lexbor

    def fails(_html: str) -> None:
        raise lexbor.SelectolaxError("Can't parse HTML.")

    monkeypatch.setattr(lexbor, "LexborHTMLParser", fails)
    with pytest.raises(PageRefused, match="memory"):
        parse("<p>")


@given(st.text("<>/bBiImMaAsS =x\n", max_size=60))
def test_what_is_counted_first_is_never_less(html: str) -> None:
    assert len(bounds._MAYBE_FORMATTING.findall(html)) >= len(bounds._FORMATTING.findall(html))


@given(st.lists(st.sampled_from([1, 50, 4_095, 4_096, 4_097, 9_000]), max_size=6))
def test_a_long_part_is_seen_from_far(lengths: list[int]) -> None:
    html = ">".join("x" * length for length in lengths)
    assert list(map(len, bounds._long_parts(html))) == [length for length in lengths if length > bounds.LONG_TAG]
