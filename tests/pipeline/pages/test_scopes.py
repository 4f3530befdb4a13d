"""scopes: the text of a picture comes from its own card, article or list entry, and from no other one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages.page import parse
from tests.parsed import first_of, work

CITIES = ("明洞街头的夜景", "清水寺的红叶", "九份山城的灯笼")
CARDS = {
    "articles": "<article><header><a><img src={0}.jpg></a></header>"
    "<section><h2>{1}</h2><p>摘要{0}。</p></section></article>",
    "divs": "<div class='post n{0}'><a><img src={0}.jpg></a><h3>{1}</h3><p>摘要{0}。</p></div>",
    "entries": "<li><img src={0}.jpg><p>{1}</p></li>",
    "rows": "<tr><td><img src={0}.jpg></td><td>{1}</td></tr>",
    "links": "<a class=card href={0}><div><img src={0}.jpg></div><div>{1}</div></a>",
    "text before": "<div><p>{1}</p><img src={0}.jpg></div>",
    "figures": "<figure><img src={0}.jpg><p>{1}</p></figure>",
    "lists": "<dl><dt><img src={0}.jpg></dt><dd>{1}</dd></dl>",
    "sections": "<section><p><img src={0}.jpg></p><h2>{1}</h2><p>摘要{0}。</p></section>",
    "links in a line": "<a href={0}><img src={0}.jpg><b>{1}</b></a> ",
    "custom elements": "<my-card><a><img src={0}.jpg></a><my-title>{1}</my-title></my-card>",
}


def firsts(html: str) -> list[tuple[str, str]]:
    return [(image.texts[0].kind, image.texts[0].text) for image in parse(html).images]


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS.keys())
def test_a_picture_has_the_text_of_its_own_card(card: str) -> None:
    cards = "".join(card.format(number, city) for number, city in enumerate(CITIES))
    cards = f"<table>{cards}</table>" if card.startswith("<tr") else f"<div>{cards}</div>"
    html = f"<h1>我的博客</h1><p>欢迎来到我的博客。</p>{cards}<p>下一页的文章</p>"
    kind = "surrounding" if "<h" in card else "caption"  # a name beside the picture, or a heading
    assert firsts(html) == [(kind, city) for city in CITIES]
    for image, city in zip(parse(html).images, CITIES, strict=True):
        said = " ".join(text.text for text in image.texts)
        assert not any(other in said for other in CITIES if other != city)
        assert image.listed


def test_a_card_with_several_pictures_and_one_without_any_are_cards_as_well() -> None:
    posts = "".join(
        f"<article class='post'><h2>{city}</h2><p>{'<img src=a.jpg>' * count}</p></article>"
        for count, city in zip((1, 2, 0), CITIES, strict=True)
    )
    assert [text for _, text in firsts(f"<h1>我的博客</h1>{posts}")] == [CITIES[0], CITIES[1], CITIES[1]]


@pytest.mark.parametrize("unit", ["<article>{}</article>", "<section>{}</section>", "<div class=card>{}</div>"])
def test_a_card_without_a_text_takes_none_of_the_one_before_it(unit: str) -> None:
    card = "<p><img src={0}.jpg></p><h2>{1}</h2><p>摘要{0}。</p>"
    cards = [card.format(number, city) for number, city in enumerate(CITIES)]
    cards.insert(1, "<p><img src=9.jpg></p>")
    alone = parse(f"<h1>我的博客</h1>{''.join(map(unit.format, cards))}").images[1]
    assert [(text.kind, text.text) for text in alone.texts] == [("title", "我的博客")]


def test_a_post_has_its_own_words_and_not_the_bar_below_its_picture() -> None:
    post = "<div class=post><div class=text>{0}，我们看了很久。</div><div class=media><img src={1}.jpg></div>{2}</div>"
    bar = "<div class=bar><span>转发 2</span></div><div>其他</div>"
    feed = "".join(post.format(city, number, bar) for number, city in enumerate(CITIES))
    assert [text for _, text in firsts(f"<h1>我的首页</h1>{feed}")] == [f"{city}，我们看了很久。" for city in CITIES]


@pytest.mark.parametrize("section", ["<section id=s{0}>", "<div class=section id=s{0}>"])
def test_sections_of_a_document_are_no_cards(section: str) -> None:
    end = "</div>" if "div" in section else "</section>"
    step = section + "<h3>步骤{0}</h3><p>{1}的灯光亮起以后按下快门。</p><p><img src={0}.jpg></p>" + end
    html = "<h1>夜景的拍摄</h1>" + "".join(step.format(number, city) for number, city in enumerate(CITIES))
    assert [text for _, text in firsts(html)] == [f"{city}的灯光亮起以后按下快门。" for city in CITIES]


def test_no_text_is_taken_across_the_end_of_an_article_or_a_section_with_a_heading() -> None:
    html = "<h1>游记</h1>{}<p><img src=a.jpg></p><section><h2>后来</h2><p>我们回到了家里。</p></section>"
    before = "<p>傍晚的海边非常安静。</p>"
    assert "傍晚的海边非常安静。" in str(parse(html.format(before)).images[0].texts)
    for element in ("<article>{}</article>", "<section><h2>第一天</h2>{}</section>"):
        image = parse(html.format(element.format(before))).images[0]
        assert "傍晚的海边非常安静。" not in {text.text for text in image.texts if text.kind == "surrounding"}
    wechat = html.format(f"<section><section>{before}</section></section>")
    assert "傍晚的海边非常安静。" in str(parse(wechat).images[0].texts), "a section without a heading is a paragraph"


def test_boxes_of_a_document_with_text_between_them_are_no_cards() -> None:
    html = "<h1>部署</h1><div class='b tip'><h2>软件源</h2><p>先更新。</p><p>主节点已装好：</p><img src=a.jpg></div>"
    html += "{}<div class='b center'><p>等待一会。</p><img src=b.jpg></div>"
    assert first_of(html.format("<p>下面继续介绍。</p>"))[0][1] == "主节点已装好："
    assert first_of(html.format(""))[0][1] == "软件源", "cards"


def test_pictures_in_running_text_are_no_cards() -> None:
    html = "<h1>菜谱</h1>" + "".join(f"<p>{step}</p><p><img src={n}.jpg></p>" for n, step in enumerate(CITIES))
    assert firsts(html) == [("caption", step) for step in CITIES]
    assert not any(image.listed for image in parse(html).images)


PARTS = ["<ul><li>", "<article>", "<div class=a>", "<img src=x.jpg>", "文字", "</div>"]


@given(st.lists(st.sampled_from(PARTS), max_size=40))
def test_any_markup_has_a_scope_for_each_picture(parts: list[str]) -> None:
    assert len(parse("".join(parts)).images) == parts.count("<img src=x.jpg>")


@pytest.mark.slow
def test_many_pictures_among_many_elements_cost_in_proportion() -> None:
    def page(count: int) -> str:
        return "<article><img src=a.jpg><h2>标题</h2></article><ul><li>文字</li></ul>" * count

    assert work(page(400)) < 2.5 * work(page(200))


def test_words_that_lead_to_a_picture_come_before_what_stands_behind_it_in_its_card() -> None:
    steps = "".join(
        f"<li><p>第{n}步，打开{city}：</p><p><img src={n}.jpg></p><p>然后继续。</p>" for n, city in enumerate(CITIES)
    )
    assert [text for _, text in firsts(f"<h1>行程</h1><ol>{steps}</ol>")] == [
        f"第{n}步，打开{city}：" for n, city in enumerate(CITIES)
    ]


def test_the_text_of_a_card_is_no_price() -> None:
    cards = "".join(
        f"<li><img src={n}.jpg><em>¥ {n}8.00</em><p>成交 30 笔</p><p>{city}</p>" for n, city in enumerate(CITIES)
    )
    assert [text for _, text in firsts(f"<h1>商品</h1><ul>{cards}</ul>")] == list(CITIES)
