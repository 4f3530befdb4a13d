"""A first look never passes over what the walk over the DOM would find; the walk is the oracle."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages import first_look
from pipeline.pages.page import parse

_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")

_PIECES = """
图 圖 𠮷 &#22270; &#x56fe; &#X56FE &#00022270; &#x20BB7; &#134071; &#8217; &#x2019; “quoted” é 😀 words
&amp; かな 한글 。 \\u56fe \\ud842\\udfb7 \\u0041
<p> </p> <title> </title> <!-- --> <h1> </h1> <script> </script> <figure> </figcaption> <figcaption> <meta < >
<img|src=a.jpg|alt=' <IMG|SRC=b.png|ALT=' '> <image|src=c.gif> <iMg/src=d.jpg>
<meta|property=og:image|content=e.jpg> <meta|name='OG:Image'|content='f.jpg'>
<script|type="application/ld+json">{"@type":"ImageObject","contentUrl":"g.jpg","caption":" "}</script>
<meta|name=robots|content=noai> <META|CONTENT='NOINDEX,|follow'|NAME=ROBOTS> <meta|name=a|content=b>
<meta|name=tdm-reservation|content=1> <meta|name=wenlan|content=none>
""".split()  # noqa: SIM905 - as a list it would be a column of fifty lines
"""Pieces of pages; | stands for a space within one."""

_PAGES = st.lists(st.sampled_from(_PIECES), max_size=12).map(lambda pieces: " ".join(pieces).replace("|", " "))


@given(_PAGES)
def test_what_a_first_look_excludes_the_walk_does_not_find(html: str) -> None:
    page = parse(html)
    if first_look.is_without_han(html):
        texts = [text.text for image in page.images for text in image.texts]
        assert not _HAN.search(" ".join([page.text, *texts]))
    if first_look.is_without_pictures(html):
        assert not page.images
    if not first_look.may_opt_out(html):
        assert not page.reserved
        assert not any(re.search("noai|noindex|none", value, re.I) for value in page.robots)


@pytest.mark.parametrize(
    ("html", "without"),
    [
        ("<p>An English page &#8217; with “quotes”, &#x2019; and €", True),
        ("<p>日本語", False),
        ("<p>㐂", False),
        ("<p>𠮷", False),
        ("<p>ひらがな", True),
        ("<p>&#20013;", False),
        (r'<script type="application/ld+json">{"caption": "\u4e2d"}</script>', False),
        (r"<script>var a = '\u00e9\u2019'</script>", True),
    ],
)
def test_a_page_without_han_is_known_by_its_text(html: str, without: bool) -> None:
    assert first_look.is_without_han(html) is without


@pytest.mark.parametrize(
    "html",
    [
        "<IMG SRC=a.jpg>",
        "<image src=a.jpg>",
        "<meta property='OG:image' content=a.jpg>",
        '<script type="application/LD+json">{"image": "a.jpg"}</script>',
    ],
)
def test_a_page_with_a_picture_is_walked(html: str) -> None:
    assert parse(html).images
    assert not first_look.is_without_pictures(html)


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["<meta ", "&#", "\\u", "<i", "&#x", "<meta content="])
def test_a_first_look_takes_no_longer_than_a_page_is(piece: str) -> None:
    """Searched in quadratic time, these two million characters would not be done before the test's time is over."""
    html = piece * (2_000_000 // len(piece))
    assert not first_look.may_opt_out(html)
    assert first_look.is_without_han(html)
    assert first_look.is_without_pictures(html)


@pytest.mark.parametrize("before", ["", "a" * 16_383, "é" * 9_000, "…" * 40_000])
def test_one_han_character_is_found_wherever_it_stands(before):
    assert not first_look.is_without_han(f"{before}图")
    assert first_look.is_without_han(before + "x")
