"""boilerplate: phrases that say nothing of the picture, and captions that only contain one."""

from __future__ import annotations

import pytest

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
