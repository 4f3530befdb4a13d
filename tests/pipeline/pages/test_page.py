"""page: images of a page with their texts, in the forms that real sites use."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages import page, walk
from pipeline.pages.page import image_url, parse
from pipeline.texts.cleaning import clean


def texts(html: str, row: int = 0) -> dict[str, list[str]]:
    """Texts by kind of one image of a page."""
    found: dict[str, list[str]] = {}
    for text in parse(html).images[row].texts:
        found.setdefault(text.kind, []).append(text.text)
    return found


@pytest.mark.parametrize(
    ("attributes", "url"),
    [
        ({"src": "a.jpg"}, "a.jpg"),
        ({"src": "data:image/gif;base64,R0", "data-src": "/b.jpg"}, "/b.jpg"),
        ({"src": "loading.gif", "data-original": "//cdn/c.jpg"}, "//cdn/c.jpg"),
        ({"src": "x.jpg", "data-actualsrc": "https://pic.zhimg.com/d.jpg"}, "https://pic.zhimg.com/d.jpg"),
        ({"src": "none.gif", "zoomfile": "forum/e.jpg"}, "forum/e.jpg"),
        ({"src": "s.jpg", "srcset": "s.jpg 300w, m.jpg 600w, l.jpg 1200w"}, "l.jpg"),
        ({"src": "s.jpg", "srcset": "s.jpg, b.jpg 2x"}, "b.jpg"),
        ({"srcset": "/w_100,h_50/s.jpg 100w, /w_200,h_100/l.jpg 200w"}, "/w_200,h_100/l.jpg"),
        ({"src": "a.jpg", "data-lazy": "true"}, "a.jpg"),
        ({"src": "data:image/png;base64,AA"}, "data:image/png;base64,AA"),
        ({"src": "a.jpg", "data-src": "{{item.url}}"}, "a.jpg"),
        ({}, ""),
    ],
)
def test_the_best_copy_of_an_image(attributes, url):
    assert image_url(attributes) == url


def test_picture_sources_stand_in_where_img_has_no_address():
    page = parse(
        '<picture><source srcset="a.avif 1x"><source srcset="s.webp 1x, l.webp 2x"><img alt="云"></picture><img>'
    )
    assert [image.url for image in page.images] == ["l.webp", ""]


def test_an_image_in_noscript_is_a_fallback():
    page = parse('<img src="x.gif" data-src="a.jpg"><noscript><img src="a.jpg"></noscript>')
    assert [(image.url, image.fallback) for image in page.images] == [("a.jpg", False), ("a.jpg", True)]


@pytest.mark.parametrize(
    "html",
    [
        "<figure><img src=a.jpg><figcaption>图 1.2：<b>故宫</b>雪景</figcaption></figure>",
        "<div class=figure><div class=mediaobject><img src=a.jpg></div><p class=title>图 4.1. 故宫雪景</p></div>",
        "<div class=imageblock><div class=content><img src=a.jpg></div><div class=title>图 3. 故宫雪景</div></div>",
        "<div class=wp-caption><a href=x><img src=a.jpg></a><p class=wp-caption-text>故宫雪景</p></div>",
        "<p><img src=a.jpg></p><p class=pic-desc>故宫雪景</p>",
        "<p align=center><img src=a.jpg></p><p>▲ 故宫雪景</p>",
        "<div class=image-package><img src=a.jpg><br><div class=image-caption>故宫雪景</div></div>",
        "<div class=pgc-img><img src=a.jpg><p class=pgc-img-caption>故宫雪景</p></div>",
    ],
)
def test_captions_are_found_and_their_numbers_taken_off(html):
    page = f"<h1>标题</h1><p>前面的一段话。</p>{html}<p>后面的一段话。</p>"
    found = texts(page)
    assert found["caption"] == ["故宫雪景"]
    assert found["surrounding"] == ["前面的一段话。", "后面的一段话。"]


def test_images_of_one_figure_take_their_captions_in_order():
    html = "<figure>" + "".join(f"<img src={i}.jpg><figcaption>图注{i}</figcaption>" for i in range(3)) + "</figure>"
    assert [texts(html, i)["caption"] for i in range(3)] == [["图注0"], ["图注1"], ["图注2"]]


def test_a_caption_goes_to_the_image_right_before_it_only():
    html = "<p><img src=a.jpg></p><p><img src=b.jpg></p><p class=caption>第二张</p>"
    assert "caption" not in texts(html, 0)
    assert texts(html, 1)["caption"] == ["第二张"]


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


def test_the_headline_is_the_title_else_what_the_head_says_without_the_name_of_the_site():
    assert texts("<title>网站</title><header><h1>网站名</h1></header><h1>正文标题</h1><img src=a.jpg>")["title"] == [
        "正文标题"
    ]
    assert texts("<title>故宫雪景_新浪新闻</title><img src=a.jpg>")["title"] == ["故宫雪景"]
    assert texts("<meta property=og:title content=题><title>x</title><img src=a.jpg>")["title"] == ["题"]


def title(html: str) -> str:
    return "".join(texts(f"{html}<img src=a.jpg>").get("title", []))


def test_of_several_headlines_the_title_is_the_one_that_the_head_names():
    sections = "<h1>准备工作</h1><p>一</p><h1>用 Docker 部署博客</h1><p>二</p><h1>小结</h1>"
    assert title(f"<title>用 Docker 部署博客 - 某人的博客</title>{sections}") == "用 Docker 部署博客"
    assert title(f"<meta property=og:title content='用 Docker 部署博客 | 某站'>{sections}") == "用 Docker 部署博客"
    assert title(f"<title>容器入门 - 某人的博客</title>{sections}") == "容器入门", "no section is the article"
    assert title(f"<title>某站 - 用 Docker 部署博客</title>{sections}") == "用 Docker 部署博客"
    assert title("<title>安装说明书 - 某站</title><h1>安装</h1><h1>使用</h1>") == "安装说明书", "安装 is a word of many"
    assert title(sections) == "准备工作", "there is nothing else to go by"


def test_the_name_of_the_site_is_no_title_though_it_be_the_only_headline():
    head = "<meta property=og:site_name content=某站><title>故宫雪景 - 某站</title>"
    assert title(f"{head}<h1>某站</h1>") == "故宫雪景"
    assert title(f"{head}<h1>某站</h1><h1>故宫雪景</h1>") == "故宫雪景"
    assert title("<meta property=og:site_name content=某站><title>某站</title><h1>某站</h1>") == "某站"
    assert title("<title>某站 - 首页</title><h1>雪后的故宫</h1>") == "雪后的故宫", "one headline that is not the site's"


STEPS = """<h1>酸辣土豆丝</h1><p>介绍。</p><ol>
<li>把土豆切成细丝。泡在水里洗掉淀粉：<img src=a.jpg></li><li>热锅凉油，下花椒。<p><img src=b.jpg></p></li>
<li><img src=c.jpg>出锅装盘即可。再放香菜</li></ol>"""


def first_kinds(html: str, row: int) -> list[tuple[str, str]]:
    return [(t.kind, t.text) for t in parse(html).images[row].texts][:2]


def test_the_sentence_beside_an_image_comes_before_a_title_that_several_images_share():
    title = ("title", "酸辣土豆丝")
    for row, sentence in enumerate(["泡在水里洗掉淀粉：", "热锅凉油，下花椒。", "出锅装盘即可。"]):
        assert first_kinds(STEPS, row) == [("surrounding", sentence), title]
    assert first_kinds("<h1>酸辣土豆丝</h1><p>把土豆切成细丝。</p><img src=a.jpg>", 0)[0] == title, "its only image"


@pytest.mark.parametrize(
    "beside",
    [
        "如下图所示：",
        "最终效果如图",
        "这样就切好了土豆丝。",
        "切法详见第三节。",
        "切丝",
        "Slice the potatoes.",
        "<img src=x.jpg>",
        "<nav>把土豆切成细丝</nav>",
    ],
)
def test_a_sentence_that_points_refers_or_is_not_right_beside_stays_behind_the_title(beside):
    html = f"{STEPS}<div>{beside}</div><p><img src=d.jpg></p>"
    assert first_kinds(html, len(parse(html).images) - 1)[0] == ("title", "酸辣土豆丝")


def test_a_sentence_beside_two_images_is_the_text_of_neither():
    step = "<p>把土豆切成细丝。</p><p><img src=a.jpg></p>"
    html = f"<h1>酸辣土豆丝</h1>{step}<h2>又来</h2>{step}"
    assert [first_kinds(html, row)[0][0] for row in (0, 1)] == ["title", "title"]


def test_the_heading_of_its_section_stands_for_an_image_without_a_sentence_unless_the_section_has_many():
    picture = "<p><img src=a.jpg></p><pre>English code.</pre>"
    html = "<h1>编辑器手册</h1>" + "".join(f"<h2>{name}</h2>{picture}" for name in ("测量工具", "简介"))
    html += (
        f"<h2 class=title>网络类的属性</h2><p>Before.</p>{picture * 3}<h3>批量编辑文本</h3><p>Before.</p>{picture * 4}"
    )
    firsts = [first_kinds(html, row)[0] for row in range(9)]
    title = ("title", "编辑器手册")
    assert firsts[:2] == [("surrounding", "测量工具"), title], "简介 is a section of many pages"
    assert firsts[2:] == [("surrounding", "网络类的属性")] * 3 + [title] * 4


def test_a_banner_and_a_button_are_not_furniture_for_their_names():
    found = parse("<div class=banner><img src=head.jpg alt=故宫雪景></div>").images
    assert not found[0].furniture


def test_head_gives_abstract_robots_base_and_the_page_image():
    page = parse(
        "<html lang=zh-CN><head><base href='/b/'><meta name=robots content=noai><meta name=googlebot content=noindex>"
        "<meta name=description content='一段 摘要'><meta property=og:image content=/o.jpg></head><img src=a.jpg>"
    )
    assert (page.base, page.robots, page.language) == ("/b/", ("noai", "googlebot: noindex"), "zh-cn")
    assert [(image.row, image.url) for image in page.images] == [(0, "a.jpg"), (-1, "/o.jpg")]
    assert [t.text for t in page.images[1].texts if t.kind == "abstract"] == ["一段 摘要"]


def test_equal_texts_are_kept_once_under_the_closest_kind():
    assert texts("<h1>故宫</h1><img src=a.jpg alt=故宫 title=故宫>") == {"alt": ["故宫"]}


def test_texts_are_folded_and_composed():
    assert texts("<img src=a.jpg alt=' e\u0301\u200b \n 云\ufeff '>")["alt"] == ["\xe9 云"]


@given(st.text(alphabet="<>/=\"' abimgsrcfurep\n云", max_size=200))
def test_no_markup_raises(html):
    parse(html)


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


@pytest.mark.parametrize(
    "page_of",
    [
        lambda n: "<div class=figure>" * n + "<img src=a.jpg>" * (n // 10),
        lambda n: "<p>!</p><img src=a.jpg>" * n,
        lambda n: "<div class=nav>" * n + "<h1>x</h1><img src=a.jpg>",
        lambda n: "<figure>" + "<img src=a.jpg>" * n + "<figcaption>云</figcaption>" * n + "</figure>",
        lambda n: "<img srcset='" + "a.jpg 1w," * n + "'>",
        lambda n: "<p>" + "云" * 50 * n + "<img src=a.jpg>" * n,
    ],
    ids=["figures in figures", "images", "navigation", "captions", "srcset", "text"],
)
def test_a_hostile_page_costs_no_more_than_its_size(page_of):
    """Twice the page is about twice the work; what looks at everything for everything would be four times."""
    work(page_of(500))
    small, large = work(page_of(2000)), work(page_of(4000))
    assert small > 0
    assert large < 2.5 * small


def test_linked_data_gives_images_with_captions_tags_and_what_the_head_does_not_say():
    data = [
        {"@type": "NewsArticle", "headline": "标题", "description": "摘要", "keywords": ["园林", "苏州"],
         "image": ["/1.jpg", {"@type": "ImageObject", "contentUrl": "/2.jpg", "caption": "拙政园的荷花"}]},
        "no object", {"@graph": [[{"image": "/3.jpg"}]]},
    ]  # fmt: skip
    scripts = [json.dumps(data), "{broken", "[" * 100_000]
    page = parse("".join(f'<script type="application/ld+json">{text}</script>' for text in scripts))
    found = {image.url: {(t.kind, t.text) for t in image.texts} for image in page.images}
    whole = {("title", "标题"), ("abstract", "摘要"), ("tag", "园林"), ("tag", "苏州")}
    assert found == {"/1.jpg": whole, "/2.jpg": {("caption", "拙政园的荷花"), *whole}, "/3.jpg": whole}


def test_the_abstract_is_the_first_paragraph_where_the_head_gives_none():
    text = "苏州园林是中国古典园林的代表，其中拙政园、留园最为有名，每年有许多人来参观。"
    menu = "<nav>首页 新闻 图片 视频 财经 体育 娱乐 汽车 房产 教育 健康</nav>"
    keywords = f'<meta name="keywords" content="园林，苏州,{"很长的标签" * 5}">'
    body = f'{menu}<h1>拙政园</h1><p>短</p><p>{text}</p><p>中间的一段文字。</p><img src="/a.jpg">'
    [image] = parse(f"{keywords}<body>{body}").images
    assert [t.text for t in image.texts if t.kind == "abstract"] == [text]
    assert [t.text for t in image.texts if t.kind == "tag"] == ["园林", "苏州"]


def test_a_site_rule_says_where_article_title_and_captions_are():
    from pipeline.pages.site_rules import rule_of, rules

    page = """<title>公众号</title><h1 id=activity-name> 春天的苏州 </h1><div id=js_content>
        <p>园中一景</p><img data-src=/a.jpg><div class=qr_code_pc>扫码<img src=/qr.jpg></div></div>
        <p>猜你喜欢</p><img src=/other.jpg>"""
    rule = rule_of("https://mp.weixin.qq.com/s/abc")
    assert rule is not None
    [image] = parse(page, rule).images
    assert (image.url, {t.text for t in image.texts if t.kind == "title"}) == ("/a.jpg", {"春天的苏州"})
    assert len(parse(page).images) == 3
    assert len(parse("<p>别的页面<img src=/b.jpg>", rule).images) == 1, "a rule that does not fit changes nothing"
    caption = '<div class="lemma-picture"><img src=/c.jpg><span class="description">留园冠云峰</span></div>'
    [image] = parse(caption, rule_of("https://baike.baidu.com/item/x")).images
    assert ("caption", "留园冠云峰") in {(t.kind, t.text) for t in image.texts}
    assert rule_of("https://news.sina.com.cn/x") is rules()["sina.com.cn"]
    assert rule_of("https://notsina.com.cn/x") is None
    for known in set(rules().values()):
        parse("<body><p>字</p>", known)  # every selector is one


@pytest.mark.parametrize("odd", ["<?php echo 1 ?>", "6<?I>", "<?xml version='1.0'?>", "<!-- <?php -->", "<?"])
def test_unrendered_php_and_its_like_are_no_elements(odd):
    [image] = parse(f"<body><p>北京今天下雪{odd}了</p><img src=a.jpg>{odd}").images
    text = image.texts[0].text
    assert text.startswith("北京今天下雪")
    assert text.replace("6", "") == "北京今天下雪了" or odd == "<?", "which hides what comes up to the next >"


def test_half_characters_in_linked_data_are_replaced():
    """JSON may hold a lone surrogate; UTF-8, and so every file of ours, cannot."""
    data = r'{"@type":"ImageObject","url":"http://a.test/\ud83d.jpg","caption":"雪\ud83d","headline":"题\udc00"}'
    page = parse(f'<body><p>文</p><script type="application/ld+json">{data}</script>')
    assert page.images[0].url == "http://a.test/\ufffd.jpg"
    texts = {t.kind: t.text for t in page.images[0].texts}
    assert (texts["caption"], texts["title"]) == ("雪\ufffd", "题\ufffd")
