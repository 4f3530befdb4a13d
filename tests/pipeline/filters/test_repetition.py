"""repetition: texts that repeat themselves, and Chinese words that double a character."""

from __future__ import annotations

import pytest

from pipeline.filters.repetition import Repetition
from tests.judged import reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("哈哈哈哈哈哈哈", "repetition"),
        ("啊啊啊啊啊啊好美", "repetition"),
        ("美女美女美女美女", "repetition"),
        ("小猫小猫小猫", "repetition"),
        ("高清壁纸高清壁纸高清壁纸", "repetition"),
        ("哈哈哈哈哈", ""),
        ("红红火火恍恍惚惚", ""),
        ("滴答滴答滴答雨一直下", ""),
        ("四是四，十是十，十四是十四，四十是四十", ""),
        ("人山人海的人行道", ""),
        ("1000000000 元", ""),
        ("……………………雪", ""),
    ],
)
def test_repetition(text, expected):
    assert reason(Repetition(), text) == expected
