"""boilerplate: phrases that say nothing of the picture, and captions that only contain one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.filters import boilerplate
from pipeline.filters.boilerplate import Boilerplate
from tests.judged import reason

GONE = """查看源网页 展开全文 点击查看大图 图片来自网络 IMG_1234.jpg 000.jpg 点击查看大图>>展开全文
（图片来源：网络图片） DSC01234 mmexport1536812345678 微信图片_20200101120000 步骤①：准备米粉.jpg 图1 图片 undefined
http://a.com/b.html www.example.com 2024-01-02 d41d8cd98f00b204e9800998ecf8427e
点击查看源网页 點擊展開全文 图片来源于互联网，侵删！ 左右滑动查看更多>> 首页 [警告] 二维码2 微信公众號 封面"""


KEPT = """点击查看大图：黄山云海 葱烧海参-预览图-5 图片显示故宫雪景 照片里的小猫 故宫雪景www.example.com 广告牌下的行人
下一页的故事 2024年的第一场雪 头像雕塑 导航仪 背景墙 流程图 微信支付"""


@pytest.mark.parametrize("text", [*GONE.split(), "alt text"])
def test_boilerplate_goes(text):
    assert reason(Boilerplate(), text) == "boilerplate"


@pytest.mark.parametrize("text", KEPT.split())
def test_texts_that_only_contain_a_phrase_stay(text):
    assert reason(Boilerplate(), text) == ""


def test_phrases_of_the_spec_count_and_the_packaged_ones_can_be_left_out():
    assert reason(Boilerplate(phrases=("本站原创",)), "【本站原创】") == "boilerplate"
    assert reason(Boilerplate(packaged=False), "展开全文") == ""


NAMES = """img dsc dscf pic pict photo image picture screenshot mmexport wechatimg wx qq图片 微信截图 屏幕截图 截图 图片
圖像 照片 未标题 无标题 下载 1 0123456789ab"""


@pytest.mark.slow
def test_what_is_a_name_or_a_number_begins_like_one():
    """Of every character that may stand for the first one of a name or a number, if case does not matter."""
    rests = sorted({name[1:] for name in NAMES.split()})
    for first in map(chr, range(0, 0x20000, 3)):
        if not boilerplate._NAME_OR_NUMBER.match(first):
            for pattern in (boilerplate._CAMERA_NAME, boilerplate._NUMBER):
                assert not any(pattern.fullmatch(first + rest) for rest in rests), first


@example("一_1")
@given(st.text("a一_ 。1é", max_size=8))
def test_two_letters_are_found_where_more_than_one_is_counted(text):
    assert (boilerplate._TWO_LETTERS.search(text) is not None) == (boilerplate._letters(text) > 1)
