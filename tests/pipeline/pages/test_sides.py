"""sides: which of the texts around it is an image's, by what repeats on its page."""

from __future__ import annotations

import pytest

from tests.parsed import first_of, texts

BIRDS = ("翠鸟在水边觅食", "白鹭在浅水里走", "戴胜在草地上找虫", "黑水鸡带着幼鸟")
INTRO = "<p>这里介绍我们在湿地公园拍摄到的几种鸟，照片都是今年春天拍的。</p>"


def beside(html: str) -> list[str]:
    return [text for _, text in first_of(f"<h1>湿地鸟类</h1>{html}")]


def page(form: str) -> str:
    return "".join(form.format(row=row, bird=bird) for row, bird in enumerate(BIRDS))


def test_a_heading_in_another_language_ends_what_stands_before_it() -> None:
    html = "<p>翠鸟站在水边的树枝上。</p><p><img src=1.jpg></p><h2>Results</h2><p><img src=2.jpg></p><p>黑水鸡</p>"
    assert "翠鸟站在水边的树枝上。" not in beside(html)[1]
    bold = html.replace("<h2>Results</h2>", "<p><b>Kyoto</b></p>").replace("<p>黑水鸡</p>", "<p>黑水鸡带着幼鸟。</p>")
    assert beside(bold)[1] == "黑水鸡带着幼鸟。", "the first text of its section"
    assert "翠鸟站在水边的树枝上。" in beside(html.replace("<h2>Results</h2>", "<p>Results</p>"))[1]


def test_a_section_behind_the_last_image_of_an_article_is_about_no_image() -> None:
    part = "<h3>{bird}</h3><p>我们在岸边等了一个早上，终于拍到了。</p><p><img src={row}.jpg></p>"
    more = "<h2>讨论</h2><p>这些照片说明了什么？</p><p>还有很多问题没有回答。</p>"
    said = beside("<p>序言</p><p>天气很好。</p><p><img src=9.jpg></p>" + page(part) + more)
    assert said[1:] == list(BIRDS), "the heading of its own section, since four have that paragraph"


def test_headings_with_the_number_of_a_section_begin_what_follows() -> None:
    form = "<p><img src={row}.jpg></p><h3>{number}{bird}</h3><p>它在这里住了很久，每年都来。</p>"
    said = beside("".join(form.format(row=row, bird=bird, number=f"3.{row}. ") for row, bird in enumerate(BIRDS)))
    assert said[1:] == list(BIRDS[:-1])
    assert beside("".join(form.format(row=row, bird=bird, number="") for row, bird in enumerate(BIRDS))) == list(BIRDS)


def test_short_lines_below_images_are_captions_on_a_page_of_paragraphs_and_not_among_verses() -> None:
    lead = "<p>到了第{row}个观鸟台，我们又等了很久，天快黑的时候它才来。</p>"
    shown = "<p><img src={row}.jpg></p><p>{bird}</p>"
    assert first_of("<h1>湿地鸟类</h1>" + page(lead + shown)) == [("caption", bird) for bird in BIRDS]
    assert beside(page(lead + shown + "<p>拍完以后，我们往下一个地方走。</p>")) == list(BIRDS)
    assert beside(page("<p>海上明月共潮生</p><p>{row}波随千里万里</p>" + shown)) != list(BIRDS), "verses"


def test_paragraphs_that_begin_with_a_name_in_bold_are_about_the_image_above_however_many_follow() -> None:
    told = "<p>它每天清晨来，先在石头上站一会儿。</p>"
    form = "<p><img src={row}.jpg></p><p><strong>{bird}</strong>，体长约{row}0厘米。</p>"
    texts_of_birds = "".join(form.format(row=row, bird=bird) + told * (1 + row % 3) for row, bird in enumerate(BIRDS))
    assert [text[: len(bird)] for text, bird in zip(beside(texts_of_birds), BIRDS, strict=True)] == list(BIRDS)


def test_paragraphs_that_define_a_name_are_about_the_image_above_unless_one_stands_before_the_first() -> None:
    names = ("铜雀台", "响堂山石窟", "邯郸丛台", "娲皇宫", "广府古城", "赵王城遗址")
    image, told = "<p><img src={0}.jpg></p>", "<p>它始建于北齐年间，后来修葺过{0}次。</p>"
    texts_of_places = [
        f"<p>{name}位于河北省邯郸市。</p>" + told.format(row) * (1 + row % 2) for row, name in enumerate(names)
    ]
    behind = beside("".join(image.format(row) + text for row, text in enumerate(texts_of_places)))
    assert [text.partition("位于")[0] for text in behind] == list(names)
    before = beside("".join(text + image.format(row) for row, text in enumerate(texts_of_places)))
    assert not any("位于" in text for text in before), "that of the next image"


@pytest.mark.parametrize("intro", ["", INTRO])
@pytest.mark.parametrize(
    "form",
    [
        "<p><img src={row}.jpg></p><p>{bird}</p>",
        "<img src={row}.jpg><br>{bird}<br>",
        "<div class=b{row}><img src={row}.jpg><p>{bird}</p></div>",
        "<div class=b{row}><div><img src={row}.jpg></div><div><h3>{bird}</h3><p>常见的水鸟，体型较小</p></div></div>",
        "<dt><img src={row}.jpg></dt><dd>{bird}</dd>",
        "<p><img src={row}.jpg></p><p>{bird}</p><p>拍摄于湿地公园第{row}号观鸟台附近</p>",
    ],
)
def test_texts_stand_behind_their_images_if_one_stands_behind_the_last(form: str, intro: str) -> None:
    assert beside(intro + page(form)) == list(BIRDS)


@pytest.mark.parametrize("end", ["", INTRO])
@pytest.mark.parametrize(
    "form",
    [
        "<p>{bird}</p><p><img src={row}.jpg></p>",
        "<h3>{bird}</h3><img src={row}.jpg>",
        "{bird}<br><img src={row}.jpg><br>",
    ],
)
def test_texts_stand_before_their_images_if_one_stands_before_the_first(form: str, end: str) -> None:
    assert beside(page(form) + end) == list(BIRDS)


def test_words_that_point_say_which_image_a_row_of_texts_is_about() -> None:
    texts = [f"<p>{bird}，有些模糊。</p>" for bird in BIRDS]
    images = [f"<p><img src={row}.jpg></p>" for row in range(3)]
    between = [part for pair in zip(texts, images, strict=False) for part in pair]
    assert beside("".join([*between, texts[3]]))[0].startswith(BIRDS[0])
    assert beside("".join([*between, texts[3].replace("，", "，如上图，")]))[0].startswith(BIRDS[1])
    assert beside("".join([texts[0].replace("。", "："), *between[1:], texts[3].replace("，", "，如上图，")]))[
        0
    ].startswith(BIRDS[0])


@pytest.mark.parametrize("above", [False, True])
def test_the_names_in_a_row_of_cells_are_those_of_the_images_in_the_row_beside_it(above: bool) -> None:
    images = "".join(f"<td><img src={row}.jpg></td>" for row in range(len(BIRDS)))
    names = "".join(f"<td>{bird}</td>" for bird in BIRDS)
    rows = [f"<tr>{cells}</tr>" for cells in ((names, images) if above else (images, names))]
    assert beside(f"{INTRO}<table>{''.join(rows)}</table>{INTRO}") == list(BIRDS)
    assert beside(f"<table>{''.join(rows * 2)}</table>") == list(BIRDS) * 2


def test_a_line_of_caption_counts_for_the_column_that_it_stands_in_and_for_the_image_right_before_it() -> None:
    table = "<table><tr><td><img src=a.jpg><td><img src=b.jpg><tr><td>图：翠鸟<td>图：白鹭<br>拍摄于湿地</table>"
    assert beside(table) == ["翠鸟", "白鹭"]
    lines = "".join(
        f"<p>第{row}天去看鸟。</p><p><img src={row}.jpg></p><p>▲ {bird}</p>" for row, bird in enumerate(BIRDS)
    )
    assert beside(lines) == list(BIRDS)
    numbered = "".join(
        f"<p><img src={row}.jpg></p><p>图 {row} {bird}</p><p>又看了一天。</p>" for row, bird in enumerate(BIRDS)
    )
    assert beside(numbered) == list(BIRDS)


def test_a_page_that_is_laid_out_by_a_table_has_no_cards_but_in_its_cells() -> None:
    menu = "<td><a>首页</a><br><img src=ad.gif alt=广告></td>"
    rows = "".join(
        f"<tr><td>{bird}</td></tr><tr><td><img src={row}.jpg></td></tr><tr><td>&nbsp;" for row, bird in enumerate(BIRDS)
    )
    assert beside(f"<table><tr>{menu}<td><table>{rows}</table></td></tr></table>")[1:] == list(BIRDS)


def test_the_first_paragraph_of_a_card_is_no_abstract_of_its_page() -> None:
    cards = "".join(
        f"<li><img src={row}.jpg><b>{bird}</b><br>{bird}，常见于水边，体型较小，不太怕人。"
        for row, bird in enumerate(BIRDS)
    )
    assert [texts(f"<h1>湿地鸟类</h1><ul>{cards}</ul>", row).get("abstract") for row in range(4)] == [None] * 4


def test_an_image_elsewhere_on_the_page_is_none_of_a_row() -> None:
    row = page("<p><img src={row}.jpg></p><p>{bird}</p>")
    byline, share = (
        "<div>2019-06-12 10:23 来源：本站</div>",
        "<div class=b><img src=ad.gif></div>",
    )
    assert beside(f"{byline}<div class=a>{row}</div>{share}")[:4] == list(BIRDS)


@pytest.mark.parametrize(
    "form", ["<p><img src={row}.jpg></p><h3>{bird}</h3><p>它常来。</p>", "<img src={row}.jpg><p>{bird}</p>"]
)
def test_a_text_outside_the_element_that_holds_a_row_is_no_end_of_it(form: str) -> None:
    row, text = "".join(form.format(row=row, bird=bird) for row, bird in enumerate(BIRDS[:2])), "<p>清晨的湿地公园</p>"
    assert beside(f"<div>{row}</div>{text}") == list(BIRDS[:2])
    assert beside(f"{text}<div>{row}</div>") == list(BIRDS[:2])


def test_what_stands_before_another_image_is_no_end_of_a_row() -> None:
    before = "<p>从湿地公园出发</p><p><img src=map.jpg>旁边的一张地图。</p>"
    assert beside(before + page("<p><img src={row}.jpg></p><p>{bird}</p>"))[1:] == list(BIRDS)


def test_copies_for_readers_without_scripts_are_no_images_of_a_row_of_cells() -> None:
    cells = "".join(f"<td><img data-src={n}.jpg><noscript><img src={n}.jpg></noscript>" for n in range(len(BIRDS)))
    names = "".join(f"<td>{bird}" for bird in BIRDS)
    assert beside(f"<table><tr>{cells}<tr>{names}</table>")[::2] == list(BIRDS)


def test_who_wrote_a_page_leads_to_no_image() -> None:
    texts = "<p>清晨的湿地公园。</p><p>鸟儿还没有醒。</p>"
    html = f"<div>撰文：阿远 摄影：阿远</div><p><img src=a.jpg></p>{texts}<p><img src=b.jpg></p>"
    assert beside(html) == ["湿地鸟类", "鸟儿还没有醒。"]
