"""lines: what a line of a page tells by its form."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages import lines
from pipeline.pages.lines import beginning_of, ending_of, is_byline, is_caption_line, without_frame, without_number


@pytest.mark.parametrize(
    "line",
    [
        "发布于2021年8月3日由admin",
        "2019-06-12 10:23 来源：摄影 王大力 字号：大 中 小",
        "2021年8月3日",
        "撰文：阿远 摄影：阿远",
        "责任编辑：张三",
        "文/李四 图/王五",
        "张三拍摄于2022年4月7日",
        "2017-12-31 22:18:57 | 随记生活",
        "地点：操场南侧",
        "海拔：2685米",
        "使用Moto X Style拍摄。",
        "2025-11-04 2025-11-05 约 1446 字 预计阅读 7 分钟",
        "您的位置：首页-关于我们",
        "首页 » 藏品",
        "于清乐 收录于 类别 Tech 和 系列 入门",
    ],
)
def test_a_line_about_who_wrote_a_page_is_about_no_picture(line: str) -> None:
    assert is_byline(line)
    assert not is_byline(f"故宫雪景，{line}")
    assert not is_byline(line + "，" + "我们去看了故宫的雪。" * 10)


def test_a_line_that_ends_with_the_minute_is_one() -> None:
    assert is_byline("原创远方杂志2021-08-01 08:00")


@pytest.mark.parametrize(
    "line",
    [
        "2021年8月3日，我们到了青海湖。",
        "作者的家乡",
        "图：红隼",
        "来源于生活的艺术",
        "红隼，拍摄于2022年",
        "首页的样子",
        "2021年8月3日约了朋友爬山",
    ],
)
def test_a_line_that_begins_like_one_may_be_about_a_picture(line: str) -> None:
    assert not is_byline(line)


def test_lines_of_caption_have_a_mark_a_number_or_a_photographer() -> None:
    for line in ("▲ 故宫雪景", "图：红隼", "图 1-2 故宫雪景", "雪后的故宫。新华社记者张三 摄", "故宫雪景（资料图）"):
        assert is_caption_line(line)
    for line in ("故宫雪景", "图 2 显示的是故宫雪景。", "这张照片用手机拍摄", "图源：视觉中国"):
        assert not is_caption_line(line)


@given(st.text(st.sampled_from("雪夜。！？ ，aB"), max_size=400))
def test_the_end_of_a_text_is_its_end(text: str) -> None:
    end = ending_of(text)
    assert text.strip().endswith(end)
    assert len(end) <= lines.MAX_SURROUNDING
    assert end or not text.strip() or text.strip()[0] in "。！？，"


@pytest.mark.parametrize(
    "number",
    [
        "4.2.3. ",
        "A.1 ",
        "附录 A. ",
        "附錄B：",
        "（一）",
        "(2) ",
        "3）",
        "①",
        "⑴ ",
        "㈠",
        "§4.2 ",
        "§ 4 ",
        "第 9 章 ",
        "第三节：",
        "第二部分、",
    ],
)
def test_a_heading_loses_the_number_of_its_section(number: str) -> None:
    assert without_number(f"{number}角楼的屋顶") == "角楼的屋顶"


@pytest.mark.parametrize(
    "text", ["X.509 证书", "H.264 编码", "第三方库", "第一行代码", "（图）角楼", "3D 打印", "2020 年"]
)
def test_what_begins_like_the_number_of_a_section_stays(text: str) -> None:
    assert without_number(text) == text


@pytest.mark.parametrize(
    ("text", "rest"),
    [("。而窗口会打开。", "而窗口会打开。"), ("，而窗口会打开。然后关上。", "然后关上。"), ("）的窗口", "")],
)
def test_a_text_that_begins_in_the_middle_of_a_sentence_begins_with_the_next_one(text: str, rest: str) -> None:
    assert (beginning_of(text), ending_of(text)) == (rest, rest)


def test_an_alt_is_what_words_without_content_stand_around() -> None:
    for alt in (
        "這是一張有關標題為 雪後的 故宮 的圖片",
        "这是一张关于《雪後的 故宮》的图片",
        "这是一张图片：雪後的 故宮",
    ):
        assert without_frame(alt) == "雪後的 故宮"
    for alt in ("故宮 的圖片", "運行結果如下圖：", "我们的学校 正门", "result of a run"):
        assert without_frame(alt) == alt, "few words, nothing but such words, or none"


@given(st.text(st.sampled_from("雪夜。！？；.!?; \n\u3000a"), max_size=30))
def test_sentences_end_at_their_marks(text: str) -> None:
    """Oracle: a split at every place behind a mark, which looks behind itself at each character."""
    split = re.split(r"(?<=[。！？；])|(?<=[.!?;])\s", text)
    assert list(lines.sentences_of(text)) == [sentence for part in split if (sentence := part.strip())]
