"""page: images of a page with their texts, in the forms that real sites use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages.page import image_url, parse
from pipeline.pages.site_rules import SiteRule
from tests.parsed import first_of, texts, work


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


@pytest.mark.parametrize(
    "html",
    [
        "<figure><img src=a.jpg><figcaption>图 1.2：<b>故宫</b>雪景</figcaption></figure>",
        "<div class=figure><div class=mediaobject><img src=a.jpg></div><p class=title>图 4.1. 故宫雪景</p></div>",
        "<div class=imageblock><div class=content><img src=a.jpg></div><div class=title>图 3. 故宫雪景</div></div>",
        "<div class=wp-caption><a href=x><img src=a.jpg></a><p class=wp-caption-text>故宫雪景</p></div>",
        "<p><img src=a.jpg></p><p class=pic-desc>故宫雪景</p>",
        "<p align=center><img src=a.jpg></p><p>▲ 故宫雪景</p>",
        "<p align=center><img src=a.jpg></p><p>图 1-2 故宫雪景</p>",
        "<div class=image-package><img src=a.jpg><br><div class=image-caption>故宫雪景</div></div>",
        "<div class=pgc-img><img src=a.jpg><p class=pgc-img-caption>故宫雪景</p></div>",
    ],
)
def test_captions_are_found_and_their_numbers_taken_off(html):
    page = f"<h1>标题</h1><p>前面的一段话。</p>{html}<p>后面的一段话。</p>"
    by_kind = texts(page)
    assert by_kind["caption"] == ["故宫雪景"]
    assert by_kind["surrounding"] == ["前面的一段话。", "后面的一段话。"]


def test_a_line_below_an_image_that_names_its_photographer_is_its_caption() -> None:
    html = "<h1>标题</h1><p>前面的一段话。</p><p><img src=a.jpg></p><p>{}</p><p>后面的一段话。</p>"
    for line in ("雪后的故宫。新华社记者张三 摄", "故宫雪景（资料图）", "故宫雪景 图源：视觉中国"):
        assert texts(html.format(line))["caption"] == [line]
    for line in ("这张照片用手机拍摄", "图 2 显示的是故宫雪景。", "我们去看了摄影展"):
        assert "caption" not in texts(html.format(line))


def test_images_of_one_figure_take_their_captions_in_order():
    html = "<figure>" + "".join(f"<img src={i}.jpg><figcaption>图注{i}</figcaption>" for i in range(3)) + "</figure>"
    assert [texts(html, i)["caption"] for i in range(3)] == [["图注0"], ["图注1"], ["图注2"]]


def test_a_caption_goes_to_the_image_right_before_it_only():
    html = "<p><img src=a.jpg></p><p><img src=b.jpg></p><p class=caption>第二张</p>"
    assert "caption" not in texts(html, 0)
    assert texts(html, 1)["caption"] == ["第二张"]


STEPS = """<h1>酸辣土豆丝</h1><p>介绍。</p><ol>
<li>把土豆切成细丝。泡在水里洗掉淀粉：<img src=a.jpg></li><li>热锅凉油，下花椒。<p><img src=b.jpg></p></li>
<li><img src=c.jpg>出锅装盘即可。再放香菜</li></ol>"""


STEPS_OF = ("牛腩切成大块", "冷水下锅焯水", "小火炖两小时")


def first_kinds(html: str, row: int) -> list[tuple[str, str]]:
    return [(t.kind, t.text) for t in parse(html).images[row].texts][:2]


def test_the_text_beside_an_image_comes_before_a_title_that_several_images_share():
    title = ("title", "酸辣土豆丝")
    beside = ["把土豆切成细丝。泡在水里洗掉淀粉：", "热锅凉油，下花椒。", "出锅装盘即可。再放香菜"]
    for row, said in enumerate(beside):
        assert first_kinds(STEPS, row) == [("surrounding", said), title]


def test_beside_its_only_image_a_page_has_a_title_unless_what_is_said_there_leads_to_it() -> None:
    for said in ("把土豆切成细丝。", "因此要先泡水，见第三节。"):
        assert first_kinds(f"<h1>酸辣土豆丝</h1><p>{said}</p><img src=a.jpg>", 0)[0] == ("title", "酸辣土豆丝")
    for said in ("这是切成细丝的土豆", "炒好的土豆丝冒着热气：", "下图是切成细丝的土豆。"):
        assert first_kinds(f"<h1>酸辣土豆丝</h1><p>{said}</p><img src=a.jpg>", 0)[0] == ("surrounding", said)


@pytest.mark.parametrize(
    "beside",
    [
        "如下图所示：",
        "最终效果如图",
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


def test_a_text_that_speaks_of_what_was_said_before_gives_way_to_a_heading_and_to_no_title() -> None:
    step = "<p>这样就切好了土豆丝。</p><p><img src=a.jpg></p>"
    html = f"<h1>酸辣土豆丝</h1>{step}<h2>切成细丝</h2><p>洗净。</p>{step.replace('土豆', '细')}"
    assert [first_kinds(html, row)[0][1] for row in (0, 1)] == ["这样就切好了土豆丝。", "切成细丝"]


@pytest.mark.parametrize("behind", ["", "</p><p>", "</p><pre>cut --fine</pre><p>", " "])
def test_a_text_leads_to_few_images_that_stand_together_and_is_about_the_page_of_many(behind: str) -> None:
    def first(count: int, heading: str = "") -> list[tuple[str, str]]:
        images = behind.join(f"<img src={row}.jpg>" for row in range(count))
        html = f"<h1>酸辣土豆丝</h1>{heading}<p>把土豆切成细丝。</p><p>{images}</p><p>再看别的。<img src=z.jpg>"
        return [first_kinds(html, row)[0] for row in range(count)]

    assert first(3) == first(3, "<h2>切成细丝</h2>") == [("surrounding", "把土豆切成细丝。")] * 3
    assert first(9) == [("title", "酸辣土豆丝")] * 9
    images = behind.join("<img src=a.jpg>" for _ in range(9))
    assert texts(f"<h1>酸辣土豆丝</h1><p>把土豆切成细丝。</p><p>{images}</p>")["abstract"] == ["把土豆切成细丝。"]
    html = "<h1>酸辣土豆丝</h1><p>把土豆切成细丝。<img src=a.jpg>热锅凉油，下花椒。<img src=b.jpg>出锅装盘即可。</p>"
    assert [first_kinds(html, row)[0][1] for row in (0, 1)] == ["把土豆切成细丝。", "热锅凉油，下花椒。"]


def test_a_long_paragraph_that_points_to_nothing_is_about_no_image_of_many() -> None:
    story = "下了火车，我们先去吃饭，饭后困得很，回旅店睡了一觉，醒来天已经黑了，只好明天再去。"
    html = "<h1>三天游记</h1>" + "".join(f"<p>{story[:-1]}{at}。</p><img src={at}.jpg>" for at in range(4))
    assert [first_kinds(html, row)[:2] for row in range(4)] == [
        [("title", "三天游记"), ("abstract", f"{story[:-1]}{row}。")] for row in range(4)
    ]
    assert first_kinds(html.replace("困得很", "看到海"), 1)[0][0] == "surrounding"
    assert first_kinds(html.replace("，饭后困得很，回旅店睡了一觉", ""), 1)[0][0] == "surrounding"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/a/明洞街头的夜景.jpg?w=3", "明洞街头的夜景"),
        ("%E6%98%8E%E6%B4%9E_%E5%A4%9C%E6%99%AF.png", "明洞 夜景"),
        ("220px-明洞夜景.svg.png", "明洞夜景 svg"),
        ("%C3%F7%B6%B4.jpg", ""),  # not UTF-8
        ("dsc_0012.jpg", ""),
        ("图.jpg", ""),
    ],
)
def test_the_chinese_name_of_its_file_is_a_word_of_an_image_behind_its_alt(url: str, name: str) -> None:
    assert texts(f"<img src='{url}'>").get("alt", [""]) == [name]
    assert texts(f"<img src='{url}' alt=夜景>")["alt"] == ["夜景", name][: 1 + bool(name)]


def test_the_name_of_a_file_in_a_series_is_a_title_behind_what_is_said_beside_the_image() -> None:
    html = "<h1>安装手册</h1><p>选择安装的语言</p><img src=用户安装2.png><p>选择键盘的布局</p><img src=用户安装3.png>"
    assert texts(html, 1) == {"caption": ["选择键盘的布局"], "title": ["用户安装", "安装手册"]}


def test_the_heading_of_its_section_stands_for_an_image_without_a_sentence_unless_the_section_has_many():
    picture = "<p><img src=a.jpg></p><pre>English code.</pre>"
    html = "<h1>编辑器手册</h1>" + "".join(f"<h2>{name}</h2>{picture}" for name in ("测量工具", "简介"))
    html += (
        f"<h2 class=title>网络类的属性</h2><p>Before.</p>{picture * 3}<h3>批量编辑文本</h3><p>Before.</p>{picture * 4}"
    )
    firsts = [first_kinds(html, row)[0] for row in range(9)]
    assert firsts[:2] == [("caption", "测量工具"), ("caption", "简介")], "of a row each has its heading"
    assert firsts[2:] == [("surrounding", "网络类的属性")] * 3 + [("title", "编辑器手册")] * 4


@pytest.mark.parametrize(
    "form",
    [
        "<center><img src=a.jpg></center><center><b>{}</b></center>",
        "<p align=center><img src=a.jpg><br>{}</p>",
        "<p style='text-align: center'><img src=a.jpg></p><p style='text-align:center'>{}</p>",
    ],
)
def test_a_centred_line_behind_an_image_is_its_caption_unless_all_is_centred(form: str) -> None:
    html = f"<h1>湿地鸟类</h1><p>我们等了很久。</p>{form.format('翠鸟捕鱼')}"
    after = "<p>后来它飞走了。</p>"
    assert first_kinds(html, 0)[0] == first_kinds(html + after, 0)[0] == ("caption", "翠鸟捕鱼")
    title = ("title", "湿地鸟类")
    assert first_kinds(f"<center>{html}{after}</center>", 0)[0] == title
    assert first_kinds(html.replace("捕鱼", "捕鱼的时候要这样：") + after, 0)[0] == title, "leads to what follows"


def test_a_line_behind_an_image_in_its_own_block_is_its_caption_and_a_sentence_is_not() -> None:
    html = "<h1>湿地鸟类</h1><p>我们等了很久。</p><p>{}<img src=a.jpg>{}<br>图片来自网络</p>"
    assert texts(html.format("", "图 1-1 翠鸟捕鱼"))["caption"] == ["翠鸟捕鱼"]
    assert "图 1-1 翠鸟捕鱼" not in texts(html.format("", "图 1-1 翠鸟捕鱼"))["surrounding"]
    assert "caption" not in texts(html.format("", "翠鸟捕鱼以后飞走了。")) | texts(html.format("看", "翠鸟捕鱼"))
    html = "<h1>湿地鸟类</h1><p>我们等了很久。</p><p><img src=a.jpg>翠鸟捕鱼<img src=b.jpg>白鹭涉水</p>"
    assert [first_kinds(html, row)[0] for row in (0, 1)] == [("caption", "翠鸟捕鱼"), ("caption", "白鹭涉水")]
    card = "<article><a><img src={0}.jpg></a><span>爱好</span><a><h2>翠鸟捕鱼</h2></a></article>"
    assert first_kinds(card + card, 0)[0][1] == "翠鸟捕鱼"


INLINE = ("acronym", "abbr", "b", "kbd", "sup", "ruby", "mark", "font", "x-term", "time", "cite")


@given(st.lists(st.tuples(st.sampled_from(INLINE), st.integers(0, 11), st.integers(0, 11)), max_size=4))
def test_a_caption_is_one_text_whatever_element_stands_in_its_lines(elements: list[tuple[str, int, int]]) -> None:
    caption = "当您在菜单里选择保存时出现的对话框"
    cuts = sorted((min(a, b), max(a, b), name) for name, a, b in elements)
    written, at = "", 0
    for low, high, name in cuts:
        if low >= at:
            written += f"{caption[at:low]}<{name}>{caption[low:high]}</{name}>"
            at = high
    html = f"<figure><img src=a.jpg><figcaption>{written}{caption[at:]}</figcaption></figure>"
    assert texts(html)["caption"] == [caption]


def test_the_lines_and_paragraphs_of_a_caption_are_one_text_and_readings_of_characters_are_none() -> None:
    html = "<figure><img src=a.jpg><figcaption><p>第一行</p><p>第二行<br>第三行</p></figcaption></figure>"
    assert texts(html)["caption"] == ["第一行 第二行 第三行"]
    assert texts("<figure><img src=a.jpg><figcaption><ruby>漢<rt>hàn</rt></ruby>字</figcaption></figure>")[
        "caption"
    ] == ["漢字"]


def test_links_beside_headings_and_numbers_of_sections_are_no_words_of_theirs() -> None:
    picture = "<p><img src=a.jpg></p>"
    html = "<h1>第 9 章 文本管理<a class=headerlink href=#x>¶</a></h1>"
    html += f"<h2>4.2.3. 测量工具<a href=#y>#</a></h2>{picture}<h2>编辑工具</h2>{picture}"
    assert texts(html) == {"caption": ["测量工具"], "title": ["文本管理"]}
    html = f"<h1>104- 文本管理</h1><h2>3、测量工具</h2>{picture}<h2>3 天游</h2>{picture}"
    assert [texts(html, row) for row in (0, 1)] == [
        {"caption": [heading], "title": ["文本管理"]} for heading in ("测量工具", "3 天游")
    ]
    assert texts("<h1>004-数组</h1><img src=a.jpg>") == {"title": ["004-数组"]}, "too short without it"


def test_what_is_escaped_twice_is_written_plainly() -> None:
    assert texts("<img src=a.jpg alt='猫 &amp;amp; 狗 AT&amp;T'>") == {"alt": ["猫 & 狗 AT&T"]}


@pytest.mark.parametrize("alt", ["這是一張有關標題為 {} 的圖片", "{}", "《{}》配图"])
def test_an_alt_that_wraps_the_title_of_its_page_is_that_title(alt: str) -> None:
    title = "湿地里的翠鸟"
    html = f'<h1>{title}</h1><p><img src=1.jpg alt="{alt.format(title)}"></p><p>它站在水边的树枝上，盯着水面。</p>'
    assert first_kinds(html, 0)[:2] == [("alt", title), ("surrounding", "它站在水边的树枝上，盯着水面。")]
    other = html.replace(f'alt="{alt.format(title)}"', f'alt="{title}的窝"')
    assert first_kinds(other, 0)[0] == ("alt", f"{title}的窝")


def test_an_alt_that_others_have_as_well_is_a_title_where_something_is_said_beside_the_picture() -> None:
    html = "<h1>云南之旅</h1><p>船上看到的洱海</p><img src=a.jpg alt=云南之旅><p>三塔</p><img src=b.jpg alt=云南之旅>"
    assert texts(html) == {"caption": ["船上看到的洱海"], "title": ["云南之旅"], "surrounding": ["三塔"]}
    assert texts("<h1>翠鸟</h1><img src=a.jpg alt=翠鸟><img src=b.jpg alt=翠鸟>") == {"alt": ["翠鸟"]}
    steps = "".join(
        f"<li><p>{step}</p><img src={n}.jpg alt='炖牛腩的做法 步骤{n}'></li>" for n, step in enumerate(STEPS_OF)
    )
    html = f"<h1>炖牛腩的做法</h1><ol>{steps}</ol>"
    assert [first_kinds(html, row)[:2] for row in range(3)] == [
        [("caption", step), ("alt", f"炖牛腩的做法 步骤{n}")] for n, step in enumerate(STEPS_OF)
    ]
    html = "<h1>炖牛腩</h1><p>牛腩切成大块。</p><img src=a.jpg alt=完成><p>冷水下锅焯水。</p><img src=b.jpg alt=焯水>"
    assert [first_kinds(html, row)[0] for row in (0, 1)] == [("surrounding", "牛腩切成大块。"), ("alt", "焯水")]


def test_what_leads_to_a_picture_without_a_word_about_it_gives_way_to_the_heading() -> None:
    for line in ("如果你跟着这个教程正确地做完了，你会看到下面的图像：", "复制如下代码：", "最后的结果如下图所示："):
        html = f"<h1>图形编程</h1><h2>应用纹理</h2><p>{line}</p><img src=a.jpg><h2>变换</h2><p>说明</p><img src=b.jpg>"
        assert first_kinds(html, 0)[0] == ("surrounding", "应用纹理")


def test_a_sentence_that_points_up_is_about_the_picture_above_it() -> None:
    html = "<h1>句法分析</h1><p><img src=a.jpg></p><p>如上图所示，箭头连着中心词。</p><p><img src=b.jpg></p>"
    assert [first_kinds(html, row)[0] for row in (0, 1)] == [
        ("surrounding", "如上图所示，箭头连着中心词。"),
        ("title", "句法分析"),
    ]


def test_a_formula_of_a_few_letters_is_written_plainly_and_prices_stay() -> None:
    assert texts("<img src=a.jpg alt='边$(w_0,w_1)$的长度是$N$'>") == {"alt": ["边(w_0,w_1)的长度是N"]}
    assert texts("<img src=a.jpg alt='$5 和 $6 的书'>") == {"alt": ["$5 和 $6 的书"]}


def test_a_text_begins_with_a_sentence_also_where_it_is_cut_or_the_picture_stands_within_one() -> None:
    html = f"<h1>标题</h1><p>{'很长的句子没有意义。' * 30}最后一句话。</p><p><img src=a.jpg></p>"
    html += f"<p>{'后面的句子也很长。' * 30}"
    before, after = texts(html)["surrounding"]
    assert before.startswith("很长的句子没有意义。")
    assert after.endswith("后面的句子也很长。")
    html = "<h1>标题</h1><p>角楼的屋顶<img src=a.jpg>所示的结果。下一句话说别的。</p>"
    assert texts(html)["surrounding"] == ["角楼的屋顶", "下一句话说别的。"]
    html = "<h1>标题</h1><p>角楼的屋顶<div><img src=a.jpg></div>。而窗口很小。</p>"
    assert texts(html)["surrounding"] == ["角楼的屋顶", "而窗口很小。"]


@pytest.mark.parametrize("words", ["运行结果如下图：", "结果如下：", "效果图"])
def test_words_without_content_beside_an_image_are_no_text_of_it(words: str) -> None:
    photo = "<p>雪后的角楼。</p><img src={}.jpg>"
    for html in (photo.format(1), "".join(map(photo.format, range(5)))):
        page = parse(f"<h1>故宫</h1>{html}<p>{words}</p>")
        assert not any(words in text.text for image in page.images for text in image.texts)


@pytest.mark.parametrize("words", ["运行结果", "效果图", "如图所示", "步骤 3"])
def test_an_alt_of_words_without_content_is_no_text_and_one_with_a_name_is(words: str) -> None:
    photo = "<img src={}.jpg alt='{}'>"
    for html in (photo.format(1, words), "".join(photo.format(n, words) + "<p>雪后的角楼。</p>" for n in range(5))):
        page = parse(f"<h1>故宫</h1>{html}")
        assert not any(words in text.text for image in page.images for text in image.texts)
    assert first_of(f"<h1>故宫</h1>{photo.format(1, 'top命令')}") == [("alt", "top命令")]


def test_the_last_of_images_with_their_texts_behind_them_has_the_text_behind_it() -> None:
    row = "<div><img src=1.jpg>积雪盖住角楼屋顶。<img src=2.jpg></div><div>雨水顺着城墙流下。</div>"
    assert first_of(f"<h1>故宫</h1>{row}") == [
        ("surrounding", "积雪盖住角楼屋顶。"),
        ("surrounding", "雨水顺着城墙流下。"),
    ]
    for html in (f"<p>广场上午后没有游客。</p>{row}", row.replace("屋顶。", "屋顶：")):
        _, (_, of_last) = first_of(f"<h1>故宫</h1>{html}")
        assert of_last.startswith("积雪盖住角楼屋顶"), "texts stand before their images there"


def test_a_loading_image_in_srcset_is_not_the_picture() -> None:
    html = '<img src="/img/1.jpg" srcset="/img/loading.gif" lazyload><img src=/img/placeholder.png srcset=/img/2.jpg>'
    assert [image.url for image in parse(html).images] == ["/img/1.jpg", "/img/2.jpg"]


def test_equal_texts_are_kept_once_under_the_closest_kind():
    assert texts("<h1>故宫</h1><img src=a.jpg alt=故宫 title=故宫>") == {"alt": ["故宫"]}


def test_texts_are_folded_and_composed():
    assert texts("<img src=a.jpg alt=' e\u0301\u200b \n 云\ufeff '>")["alt"] == ["\xe9 云"]


@given(st.text(alphabet="<>/=\"' abimgsrcfurep\n云", max_size=200))
def test_no_markup_raises(html):
    parse(html)


@pytest.mark.slow
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
    work(page_of(20))
    small, large = work(page_of(150)), work(page_of(300))
    assert small > 0
    assert large < 2.5 * small


def test_the_abstract_is_the_first_paragraph_where_the_head_gives_none():
    text = "苏州园林是中国古典园林的代表，其中拙政园、留园最为有名，每年有许多人来参观。"
    menu = "<nav>首页 新闻 图片 视频 财经 体育 娱乐 汽车 房产 教育 健康</nav>"
    keywords = f'<meta name="keywords" content="园林，苏州,{"很长的标签" * 5}">'
    body = f'{menu}<h1>拙政园</h1><p>短</p><p>{text}</p><p>中间的一段文字。</p><img src="/a.jpg">'
    [image] = parse(f"{keywords}<body>{body}").images
    assert [t.text for t in image.texts if t.kind == "abstract"] == [text]
    assert [t.text for t in image.texts if t.kind == "tag"] == ["园林", "苏州"]


def test_images_that_the_rule_of_a_site_leaves_out_are_counted():
    rule = SiteRule(hosts=("a.cn",), content="article", remove=(".ad",))
    html = "<img src=1.jpg><article><p>山<img src=2.jpg><p class=ad><img src=3.jpg></article>"
    page = parse(html, rule)
    assert ([image.url for image in page.images], page.elements, page.outside) == (["2.jpg"], 3, 2)
    assert (parse(html).elements, parse(html).outside) == (3, 0)
