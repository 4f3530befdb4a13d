"""personal: numbers that identify a person are recognised however they are written, and no other numbers are."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import Text
from pipeline.filters.personal_data import PersonalData
from pipeline.texts.forms import even
from pipeline.texts.personal import _MAY_HOLD, MASKS, find, is_bank_card, is_id_card, may_hold

MOBILES = st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True)
AROUND = st.sampled_from(["", "电话", "张三，", " ", "故宫", "（", "a", "<电话>"])


def masked(text: str) -> str:
    return PersonalData().rewrite(Text("alt", text)).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("张三 13800138000", "张三 <电话>"),
        ("１３８-0013-8000 找我", "<电话> 找我"),
        ("1️⃣3️⃣8️⃣0️⃣0️⃣1️⃣3️⃣8️⃣0️⃣0️⃣0️⃣", "<电话>"),
        ("①③⑧00138000", "<电话>"),
        ("电话一三八〇〇一三八〇〇〇！", "电话<电话>！"),
        ("壹叁捌零零壹叁捌零零零", "<电话>"),
        ("+86 138 0013 8000", "<电话>"),
        ("1 3 8 0 0 1 3 8 0 0 0", "<电话>"),
        ("身份证11010519491231002X", "身份证<身份证号>"),
        ("110105 19491231 002x", "<身份证号>"),
        ("卡号4111 1111 1111 1111", "卡号<银行卡号>"),
        ("Li.Lei+a@mail.example.cn联系", "<邮箱>联系"),
        ("一辆京A12345", "一辆<车牌号>"),
        ("粤B·D12345", "<车牌号>"),
        ("沪AD12345和沪A12345F", "<车牌号>和<车牌号>"),
        ("川A8888学", "<车牌号>"),
        ("新A·12345", "<车牌号>"),
        ("010-62345678 或 (0571)88886666", "<电话> 或 <电话>"),
        ("电话：62345678", "电话：<电话>"),
    ],
)
def test_masked(text, expected):
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "110105194912310021",  # wrong check digit
        "11010519490231002X",  # 31 February
        "00010519491231002X",  # no such province
        "4111 1111 1111 1112",  # Luhn
        "订单号 202001021345678901",
        "第13800138000001张",
        "1 3 5 7 9 11 13 15 17 19",
        "2020-01-02 13:45:10",
        "ISBN 978-7-111-12345-6",
        "1920x1080高清壁纸",
        "新BMW320",
        "全新 RTX3080 显卡",
        "一九九八年到二〇〇三年",
        "a@b",
        "圆周率3.14159265358979",
        "故宫雪景",
    ],
)
def test_left_alone(text):
    assert masked(text) == text


@given(st.dates(datetime.date(1900, 1, 1), datetime.date(2020, 1, 1)), st.integers(0, 999))
def test_id_cards_by_a_check_digit_computed_another_way(born, sequence):
    """ISO 7064 mod 11-2: the number, its check character as 10 for X, is 1 modulo 11 in powers of two."""
    body = f"110105{born:%Y%m%d}{sequence:03d}"
    valid = [
        c
        for c in "0123456789X"
        if sum((10 if d == "X" else int(d)) * 2**i for i, d in enumerate(reversed(body + c))) % 11 == 1
    ]
    assert [c for c in "0123456789X" if is_id_card(body + c)] == valid
    assert len(valid) == 1


@pytest.mark.slow
@given(st.from_regex("62[0-9]{13,16}", fullmatch=True))
def test_bank_cards_by_luhn_s_own_table(body):
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    total = sum(doubled[int(d)] if i % 2 == 0 else int(d) for i, d in enumerate(reversed(body)))
    assert [c for c in "0123456789" if is_bank_card(body + c)] == [str(-total % 10)]


@pytest.mark.slow
@given(st.lists(st.tuples(AROUND, MOBILES), min_size=1, max_size=4), AROUND)
def test_no_mobile_number_is_left(parts, end):
    text = "".join(before + number for before, number in parts) + end
    assert re.search(r"(?<![0-9])1[3-9][0-9]{9}(?![0-9])", masked(text)) is None
    assert masked(masked(text)) == masked(text)


@given(MOBILES, st.sampled_from([" ", "-", ".", "*", "\u200b", "\ufe0f\u20e3", "—"]))
def test_marks_between_all_digits_hide_no_number(number, marks):
    assert masked(f"找我{marks.join(number)}吧") == "找我<电话>吧"


@given(st.text(st.sampled_from("0123456789xX -@.a京A电话：一〇"), max_size=30))
def test_masking_ends_and_twice_is_once(text):
    once = masked(text)
    assert masked(once) == once
    for kind in MASKS:
        assert find(once, kind) == []


DISGUISED = st.sampled_from("0123456789０①⑨一二三四五六七八九零〇幺拐洞aＡz@＠京新é -.*\ufe0f\u20e3故宫")


@given(st.just("@") | st.text(DISGUISED, max_size=24))
def test_what_may_hold_nothing_holds_nothing(text):
    assert may_hold(text) == (_MAY_HOLD.search(even(text)) is not None)
    assert may_hold(text) or not any(find(text, kind) for kind in MASKS)
