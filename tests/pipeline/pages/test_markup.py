"""markup: what lexbor writes out is cut into tags and texts, and says what the DOM says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from pipeline.pages.markup import attributes_of, pieces_of, unescaped, value_of
from pipeline.pages.page import Page, parse
from pipeline.texts.cleaning import clean
from tests.dom_walk import parse_by_nodes
from tests.places import CORPUS, needs_corpus

_PIECES = """
图 文字 &amp; &lt; &nbsp; a 雪。 <p> </p> <p|class=caption> <p|id=toc> <div|class=nav> <div|class='page|sidebar'> </div>
<h1> </h1> <h2|id=x> </h2> <article> </article> <main> <figure> </figure> <figcaption> </figcaption>
<img|src=a.jpg|alt='x"&lt;y'> <picture> </picture> <source|srcset='b.jpg|2x'> <noscript> </noscript>
<script>a<b&&"</p>"</script> <script><!--<script></script>|--></script> <script>|<!-- <style>p>a</style>
<xmp><b>&amp;</xmp> <noembed><i></noembed> <noframes><p></noframes> <iframe><p></iframe> <svg> </svg> <svg><title><b>
<math> </math> <select><option> </select> <textarea><p> </textarea> <template> </template> <template><h1> <object>
</object> <?php|a> <!--|<p>|--> <!-> <!--> </|x> <a|b"c=d|<g=h> <div<p> <table> <tr> <td> </table> <li> <ul> <br>
<hr|class=nav> <br|class=figure> <a|href=x|id=toc> </a> <b> </b> <span|role=navigation> </span> <header> </header>
<button> <form> </form> <body|class=x> <frameset> <image|src=q.png> <input> <wbr> <embed>
<p|<!--|a|--> <td<script> <b<template> <x<noembed>
""".split()  # noqa: SIM905 - as a list it would be a column of a hundred lines
"""Pieces of pages; | stands for a space within one."""

_PAGES = st.lists(st.sampled_from(_PIECES), max_size=16).map(lambda pieces: "".join(pieces).replace("|", " "))


def cleaned(page: Page) -> Page:
    """A page whose text does not tell how many blocks are empty."""
    return replace(page, text=clean(page.text))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(_PAGES.filter(lambda html: not ("<svg" in html and re.search("<s(?:cript|tyle)", html))))
@example('<a b"c=d <g=h>图<img src=a.jpg></a>')
@example("<xmp><p>图</xmp><noembed><i>b</noembed><img src=a.jpg>")
@example("<script><!--<script></script> --></script><p>图</p><img src=a.jpg>")
@example("<div class=a <!-- id=b --> ><p>图<img src=a.jpg></div>文<!-- x -->")
@example("<div<script>图</div<script>文<img src=a.jpg><x<template>图</x<template><img src=b.jpg>")
@example("<template><h1>图</h1><template></template></template><div class=sidebar>文<img src=a.jpg></div>")
@example("<p>图<picture><source media='x srcset=' srcset='b.jpg 2x'></picture>")
@example("<nav>图<noscript><img src=a.jpg></noscript><picture><source srcset='b.jpg'><img></picture>文<br>字</nav>")
@example("<h1>图</h1><p>雪一<br>雪二<img src=a.jpg>雪三<hr class=caption>雪四<br class=figure>雪五</p>")
@example("<nav class=share><div class=figure><p class=caption>图</p><img src=a.jpg></div><header>文</header></nav>")
@example("<article><image src=q.png>图<svg><article>")
@example("<article><img src=a.jpg>图<svg></article></svg>文<img src=b.jpg></article>")
@example("<p><b>雪景</b> <i>图</i><div class=caption><b>图</b> <p> 文<img src=a.jpg></div>")
@example("<p>图<div title='x role=' role=navigation>文<img src=a.jpg></div>")
def test_the_walk_over_what_is_written_finds_what_the_walk_over_nodes_finds(html: str) -> None:
    assert cleaned(parse(html)) == cleaned(parse_by_nodes(html))


@needs_corpus("howtocook-site")
def test_real_pages_are_read_alike_by_both_walks() -> None:
    files = sorted((CORPUS / "howtocook-site").rglob("*.html"))
    assert files
    for file in files[::4]:
        body = file.read_bytes()
        html = body.decode("gb18030" if b"gb18030" in body[:500] or b"gb2312" in body[:500] else "utf-8", "replace")
        assert cleaned(parse(html)) == cleaned(parse_by_nodes(html)), file


def test_tags_come_with_the_text_behind_them() -> None:
    def pieces(html: str) -> list[str]:
        tags, texts = pieces_of(html)
        return [f"{tag}>{text}" for tag, text in zip(tags, texts, strict=True)]

    assert pieces("<p>a<br>b</p>c") == ["p>a", "br>b", "/p>c"]
    assert pieces("<p>a<!-- <b> -->c<script>if (a<b)</script>d</p>") == ["p>a", "!>c", "!>d", "/p>"]
    assert pieces('<a <g="h">x</a>') == ['a <g="h">x', "/a>"]
    assert pieces('<p <!--="" --="">a<!-- b -->c</p>') == ['p <!--="" --="">a', "!>c", "/p>"]
    assert pieces("<p><xmp><b>&amp;</xmp></p>") == ["p>", "xmp>&lt;b&gt;&amp;amp;", "/xmp>", "/p>"]
    assert pieces("") == []


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(("alt", "class", "data-src", "Title")), st.text(max_size=20), max_size=4))
def test_attributes_are_those_of_the_dom(attributes: dict[str, str]) -> None:
    written = "".join(
        f' {name}="{value.replace("&", "&amp;").replace(chr(34), "&quot;")}"' for name, value in attributes.items()
    )
    tree = LexborHTMLParser(f"<body><p{written}>")
    own = {name.lower(): value or "" for name, value in tree.css_first("p").attributes.items()}
    [_, tag, *_], _ = pieces_of(tree.body.html or "")
    assert attributes_of(tag) == own
    assert {name: value_of(tag, name) for name in own} == own


def test_references_are_undone_once() -> None:
    assert unescaped("&amp;lt; &lt;&gt;&quot;&nbsp;") == '&lt; <>"\xa0'


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["<div>", "<!--", "<script>", "<template>", "<svg>", "<xmp>", "<script><!--<script>"])
def test_no_page_takes_longer_than_it_is_large(piece: str) -> None:
    """In quadratic time these two million characters would not be done before the test's time is over."""
    html = piece * (2_000_000 // len(piece))
    assert len(pieces_of(html)[0]) <= html.count("<")
