"""charset: bytes of Chinese pages become text, whatever charset the page declares."""

from __future__ import annotations

import codecs
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts.charset import decode

SIMPLIFIED = "这是一个关于故宫雪景的网页，里面有很多图片和文字说明。"
TRADITIONAL = "這是一個關於故宮雪景的網頁，裡面有很多圖片和文字說明。"
NEWS = "国务院总理今天在北京会见外国客人，双方就两国关系和共同关心的问题交换意见。" * 5
JAPANESE = "桜の花が咲いています。東京の写真と日本語の文章を載せたページです。"
KOREAN = "오늘은 날씨가 매우 좋습니다. 대한민국(大韓民國)의 수도는 서울이며 많은 사람들이 살고 있습니다."


def page(text: str, charset: str, says: str) -> bytes:
    meta = f'<meta charset="{says}">' if says else ""
    return f"<html><head>{meta}</head><body>".encode() + text.encode(charset)


@pytest.mark.parametrize(
    "says", ["gb2312", "gbk", "GB18030", "utf-8", "big5", "iso-8859-1", "windows-1251", "nonsense", ""]
)
@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("gb18030", SIMPLIFIED),
        ("gb18030", TRADITIONAL),
        ("big5", TRADITIONAL),
        ("utf-8", SIMPLIFIED),
        ("utf-8", TRADITIONAL),
    ],
)
def test_what_a_page_holds_decides_and_not_what_it_says(charset, text, says):
    for body, header in (
        (page(text, charset, says), "text/html"),
        (page(text, charset, ""), f"text/html; charset={says}"),
    ):
        if (charset, text, says) == ("gb18030", TRADITIONAL, "big5"):
            continue  # truly ambiguous: both readings are everyday characters
        decoded = decode(body, header)
        assert decoded is not None
        assert text in decoded[0]


def test_a_page_that_calls_itself_gb2312_may_use_all_of_gb18030():
    text, charset = decode(page("丼約調較鐘飯¼½⅛😂", "gb18030", "gb2312"), "")
    assert charset == "gb18030"
    assert "丼約調較鐘飯¼½⅛😂" in text


def test_a_short_word_that_lax_decoders_take_for_utf8_stays_gb():
    assert "联通" in decode(page("联通", "gbk", "gb2312"), "")[0]


def test_a_page_cut_off_in_the_middle_of_a_character_is_read():
    for charset in ("utf-8", "gb18030"):
        body = page(SIMPLIFIED, charset, charset)[:-1]
        assert SIMPLIFIED[:-1] in decode(body, "")[0]


def test_byte_order_marks_are_obeyed_and_taken_off():
    assert decode("中文".encode("utf-8-sig"), "text/html; charset=gbk") == ("中文", "utf-8")
    assert decode("中文".encode("utf-16"), "")[0] == "中文"


def test_noise_is_no_text():
    noise = random.Random(1).randbytes(3000)
    assert decode(noise, "") is None
    assert decode(b'<meta charset="gb2312">' + noise, "text/html; charset=utf-8") is None


def test_other_scripts_are_read_as_declared():
    assert "桜の花" in decode("桜の花が咲いています".encode("shift_jis"), "text/html; charset=shift_jis")[0]
    assert "café crème" in decode("café crème ".encode("latin-1") * 20, "text/html; charset=iso-8859-1")[0]


OTHERS = {
    "windows-1251": "В чащах юга жил бы цитрус? Да, но фальшивый экземпляр! Погода в Москве хорошая. НОВОСТИ ДНЯ",
    "koi8-r": "съешь же ещё этих мягких французских булок да выпей чаю; фотографии природы и животных",
    "iso-8859-7": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ο καιρός σήμερα στην Αθήνα είναι καλός",
    "windows-1256": "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق",
    "windows-1255": "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "tis-620": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "windows-1254": "Pijamalı hasta yağız şoföre çabucak güvendi",
    "iso-8859-2": "Příliš žluťoučký kůň úpěl ďábelské ódy",
}


@pytest.mark.parametrize("says", OTHERS)
def test_texts_in_charsets_of_one_byte_stay_what_they_declare(says):
    text = OTHERS[says]
    for size in (12, 30, len(text)):
        for start in range(0, len(text) - size + 1, 5):
            part = text[start : start + size]
            assert decode(page(part, says, says), "")[0].endswith(part)


@given(st.text(st.sampled_from(sorted(set(SIMPLIFIED + NEWS))), min_size=20))
def test_everyday_text_that_is_declared_as_gb_comes_back(text):
    assert decode(page(text, "gb18030", "gbk"), "")[0].endswith(text)


@given(st.binary(max_size=300), st.text(max_size=40))
def test_any_bytes_give_text_of_a_charset_or_none(body, header):
    decoded = decode(body, header)
    assert decoded is None or (isinstance(decoded[0], str) and codecs.lookup(decoded[1]))


@pytest.mark.parametrize("says", ["euc-kr", "ks_c_5601-1987", "cp949"])
def test_gb18030_that_calls_itself_korean_is_no_mojibake(says):
    text = "".join(ch for ch in NEWS if ch.encode("gb18030")[0] != 0xC9)  # row 0xC9 alone would give it away
    for real in (text, NEWS):
        decoded = decode(page(real, "gb18030", says), "")
        assert decoded is not None
        assert decoded[1] == "gb18030"
        assert real in decoded[0]


def test_korean_stays_korean():
    assert KOREAN in decode(page(KOREAN, "euc-kr", "euc-kr"), "")[0]


@pytest.mark.parametrize("says", ["", "gb2312"])
@pytest.mark.parametrize(
    ("charset", "text"),
    [("euc-jp", JAPANESE), ("shift_jis", JAPANESE), ("euc-kr", KOREAN), ("cp949", KOREAN), ("gb18030", SIMPLIFIED)],
)
@pytest.mark.parametrize("characters", [12, 1000])
def test_an_east_asian_page_is_read_in_its_own_charset_whatever_it_declares(charset, text, says, characters):
    text = text[:characters]
    decoded = decode(page(text, charset, says), "")
    assert decoded is not None
    assert text in decoded[0]


@pytest.mark.parametrize("charset", ["tis-620", "koi8-r", "cp1253", "cp1256"])
def test_a_page_that_no_language_explains_is_refused(charset):
    text = {
        "tis-620": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์เช่นเดียวกับภาษาจีน",
        "koi8-r": "съешь же ещё этих мягких французских булок да выпей чаю",
        "cp1253": "η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί",
        "cp1256": "اللغة العربية هي أكثر اللغات السامية تحدثا",
    }[charset]
    assert decode(page(text, charset, ""), "") is None


def test_western_pages_that_declare_nothing_are_not_chinese():
    assert decode(page("un café noir", "latin-1", ""), "")[0].endswith("un caf\ufffd noir")
    assert decode(page("une crème brûlée, s'il vous plaît, Frère", "latin-1", ""), "") is None
