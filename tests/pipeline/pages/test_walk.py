"""walk: what belongs to the article and what is page furniture, whatever the markup."""

from __future__ import annotations

import pytest

from pipeline.pages.page import parse
from tests.parsed import texts


def test_an_image_in_noscript_is_a_fallback():
    page = parse('<img src="x.gif" data-src="a.jpg"><noscript><img src="a.jpg"></noscript>')
    assert [(image.url, image.fallback) for image in page.images] == [("a.jpg", False), ("a.jpg", True)]


def test_surrounding_is_the_own_paragraph_first_and_never_furniture():
    html = """<nav>首页 新闻</nav><article><h1>标题</h1><p>更早。</p><p>之前<img src=a.jpg>之后</p>
    <div class="share">分享到微信</div><p>更晚</p></article><footer><p>版权</p></footer>"""
    assert texts(html)["surrounding"] == ["之前", "之后"]
    html = html.replace("之前", "").replace("之后", "").replace("<p>更晚</p>", "")
    assert texts(html)["surrounding"] == ["更早。"]


def test_a_class_that_names_the_sidebar_of_the_whole_page_does_not_make_it_one():
    html = "<h1>标题</h1><p>正文</p><img src=a.jpg><div class=sidebar><p>热门</p></div>"
    html = f"<div class='page has-sidebar'>{html}</div>"
    assert texts(html) == {"title": ["标题"], "surrounding": ["正文"]}


def test_a_banner_and_a_button_are_not_furniture_for_their_names():
    images = parse("<div class=banner><img src=head.jpg alt=故宫雪景></div>").images
    assert not images[0].furniture


@pytest.mark.parametrize("odd", ["<?php echo 1 ?>", "6<?I>", "<?xml version='1.0'?>", "<!-- <?php -->", "<?"])
def test_unrendered_php_and_its_like_are_no_elements(odd):
    [image] = parse(f"<body><p>北京今天下雪{odd}了</p><img src=a.jpg>{odd}").images
    text = image.texts[0].text
    assert text.startswith("北京今天下雪")
    assert text.replace("6", "") == "北京今天下雪了" or odd == "<?", "which hides what comes up to the next >"
