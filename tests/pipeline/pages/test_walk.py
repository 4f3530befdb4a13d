"""walk: what belongs to the article and what is page furniture, whatever the markup."""

from __future__ import annotations

import itertools
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from pipeline.pages.page import parse
from tests.parsed import texts, work


def test_an_image_in_noscript_is_a_fallback():
    page = parse('<img src="x.gif" data-src="a.jpg"><noscript><img src="a.jpg"></noscript>')
    assert [(image.url, image.fallback) for image in page.images] == [("a.jpg", False), ("a.jpg", True)]


def test_surrounding_is_the_own_paragraph_first_and_never_furniture():
    html = """<nav>首页 新闻</nav><article><h1>标题</h1><p>更早。</p><p>雪山<img src=a.jpg>湖泊</p>
    <div class="share">分享到微信</div><p>更晚</p></article><footer><p>版权</p></footer>"""
    assert texts(html)["surrounding"] == ["雪山", "湖泊"]
    html = html.replace("雪山", "").replace("湖泊", "").replace("<p>更晚</p>", "")
    assert texts(html)["surrounding"] == ["更早。"]


def test_a_class_that_names_the_sidebar_of_the_whole_page_does_not_make_it_one():
    html = "<h1>标题</h1><p>雪山</p><img src=a.jpg><div class=sidebar><p>热门</p></div>"
    html = f"<div class='page has-sidebar'>{html}</div>"
    assert texts(html) == {"title": ["标题"], "surrounding": ["雪山"]}


def test_what_holds_pictures_is_not_a_caption_for_its_class_and_a_captions_heading_begins_no_section() -> None:
    figure = "<figure><img src={}.jpg><figcaption><h4>{}</h4></figcaption></figure>"
    shown = "".join(figure.format(row, bird) for row, bird in enumerate(("翠鸟捕鱼", "白鹭涉水")))
    html = f"<h1>湿地</h1><p>清晨出发。</p><div class='gallery caption-position-bottom'>{shown}</div>"
    assert [[(t.kind, t.text) for t in image.texts[:2]] for image in parse(html).images] == [
        [("caption", "翠鸟捕鱼"), ("surrounding", "清晨出发。")],
        [("caption", "白鹭涉水"), ("title", "湿地")],
    ]
    icon = "<figure><img src=a.jpg></figure><p class=img-caption>湖边的柳树<img src=icon.gif></p>"
    assert texts(icon, 0)["caption"] == ["湖边的柳树"]


@pytest.mark.parametrize(
    "figure",
    [
        "<figure><img src=a.jpg><figcaption>{}</figcaption></figure>",
        "<figure><figcaption>{}</figcaption><img src=a.jpg></figure>",
        "<div class=figure><img src=a.jpg><p class=img-caption>{}</p></div>",
        "<div class=figure><img src=a.jpg><div class=desc><p>{}</p></div></div>",
    ],
)
def test_an_icon_that_opens_a_caption_changes_nothing(figure: str) -> None:
    shown = figure.format("<img class=icon src=i.gif>湖边的<img class=icon src=i.gif>柳树")
    [photo] = [image for image in parse(f"<p>湿地</p>{shown}").images if image.url == "a.jpg"]
    assert [text.text for text in photo.texts if text.kind == "caption"] == ["湖边的柳树"]


def test_a_formula_in_mathml_is_no_text_since_browsers_without_it_are_shown_another_one() -> None:
    formula = "<math><semantics><mi>N</mi><annotation encoding=application/x-tex>N</annotation></semantics></math>"
    caption = "<figure><img src=a.jpg><figcaption>误差随{}减小</figcaption></figure>"
    assert texts(caption.format(formula))["caption"] == ["误差随减小"]
    katex = f"<span class=katex><span class=katex-mathml>{formula}</span><span aria-hidden=true>N</span></span>"
    assert texts(caption.format(katex))["caption"] == ["误差随N减小"]


@pytest.mark.parametrize(
    "name", ["CopyrightRichText-richText", "with-side-bar main-content", "noresultRecommend img", "blockquote-footer"]
)
def test_a_name_that_only_contains_a_word_of_furniture_is_none(name):
    """Names of the content of four large sites, and of a caption of Bootstrap."""
    page = f"<p>正文</p><div class='{name}'><p>明洞街头</p><img src=a.jpg></div>"
    assert not parse(page).images[0].furniture
    assert parse(page.replace(name, "side-bar")).images[0].furniture


@pytest.mark.parametrize("name", ["tabbed-labels", "reward-box"])
def test_labels_of_tabs_and_boxes_for_rewards_are_furniture(name):
    page = f"<h1>图片工具</h1><div class={name}><label>重塑前</label><img src=b.jpg></div><p>正文</p><img src=a.jpg>"
    assert [image.furniture for image in parse(page).images] == [True, False]


def test_a_banner_and_a_button_are_not_furniture_for_their_names():
    images = parse("<div class=banner><img src=head.jpg alt=故宫雪景></div>").images
    assert not images[0].furniture


_NESTED = st.recursive(
    st.sampled_from(["文", "<img src=#>", "<article>正文</article>", "<h1>题</h1>"]),
    lambda inner: st.tuples(
        st.sampled_from(["<div class=sidebar>", "<section class=share>", "<p class=nav>", "<div>"]),
        st.lists(inner, max_size=4),
    ).map(lambda of: of[0] + "".join(of[1]) + f"</{of[0].strip('<>').split()[0]}>"),
    max_leaves=30,
)


@pytest.mark.slow
@given(_NESTED)
@settings(max_examples=60, deadline=None)
def test_a_named_element_is_furniture_unless_it_holds_the_article(html):
    """However deep: the three elements around all are each looked at up to the headline at the page's end."""
    numbers = itertools.count()
    html = re.sub("#", lambda _: f"{next(numbers)}.jpg", html)
    html = f"<body>{'<div class=sidebar>' * 3}{html}<h1>末</h1>{'</div>' * 3}"
    expected = {}
    for image in LexborHTMLParser(html).css("img"):
        around, node = [], image.parent
        while node is not None:
            around.append(node)
            node = node.parent
        named = [n for n in around if n.attributes.get("class")]
        expected[image.attributes["src"]] = any(n.css_first("article, h1") is None for n in named)
    assert {image.url: image.furniture for image in parse(html).images} == expected


@pytest.mark.slow
def test_elements_within_one_another_are_not_looked_at_again_and_again():
    """A hundred looks at 5,000 elements up to the article would take 20 times as many steps as the walk itself."""

    def nested(around: int) -> str:
        return '<div class="sidebar">' * around + "<p>文</p>" * 5_000 + "<article><img src=a.jpg></article>"

    assert not parse(nested(100)).images[0].furniture
    assert work(nested(100)) < 2 * work(nested(1))


@pytest.mark.slow
def test_what_is_remembered_of_tags_is_bounded():
    """8,000 tags of 20 kB are 160 MB, of which nothing may stay."""
    pages = [
        "".join(f'<div class="{"z" * 20_000}{page}_{i}" role="{"r" * 20_000}{page}_{i}">' for i in range(100))
        for page in range(8)
    ]
    parse(pages[0])
    tracemalloc.start()
    try:
        for page in pages:
            parse(page)
        assert tracemalloc.get_traced_memory()[0] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("odd", ["<?php echo 1 ?>", "6<?I>", "<?xml version='1.0'?>", "<!-- <?php -->", "<?"])
def test_unrendered_php_and_its_like_are_no_elements(odd):
    [image] = parse(f"<body><p>北京今天下雪{odd}了</p><img src=a.jpg>{odd}").images
    text = image.texts[0].text
    assert text.startswith("北京今天下雪")
    assert text.replace("6", "") == "北京今天下雪了" or odd == "<?", "which hides what comes up to the next >"
