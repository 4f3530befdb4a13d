"""ads: texts that solicit, and captions of pictures that show such things."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.ads import Ads
from tests.judged import reason

SOLICITING = """\
加微信：abc12345|加.V.信 了解更多|ＶＸ：ａｂｃ１２３４|薇❤abc12345|威信号：hello_888|➕微 13800138000
V同号13800138000|微信同号|关注微信公众号：美食天下|QQ群：123456789|加入QQ群获取资料|扣扣12345678
长按识别二维码关注|扫码领取优惠券|扫描下方二维码|识别图中二维码|http://www.abc.com/x|看更多图片 www.abc.com
美图网meitu.com|abc点com|特价9.9元包邮|新款连衣裙 ¥129 天猫旗舰店|厂家直销羽绒服|订购热线：400-820-8888
电话：010-62345678|咨询电话13912345678|加 微 信 领 资 料|诚 招 加 盟|全国*包*邮|加微信領取資料"""


SUBJECTS = """\
微信支付界面|手机微信聊天界面截图|二维码图案|超市里的特价商品|顾客正在扫描二维码支付|参加群众文化活动的演员
增加群众收入|ASP.NET 入门教程封面|一枚五元硬币|元素周期表 118 元素|100元人民币正面|2019年1月1日元旦晚会
天猫双十一晚会现场|微信8.0版本|一群企鹅|QQ音乐2020年度盛典|批发市场里的商贩|如何添加微信好友|Node.js 架构图
公众号后台数据图|1920x1080高清壁纸|故宫雪景|微信windows版|打开 http://127.0.0.1:8000/admin 登录页面
访问 http://localhost:3000 看到首页"""


@pytest.mark.parametrize("text", re.split(r"[|\n]", SOLICITING))
def test_ads_and_solicitations_go(text):
    assert reason(Ads(), text) == "advertisement"


@pytest.mark.parametrize("text", re.split(r"[|\n]", SUBJECTS))
def test_what_only_speaks_of_such_things_stays(text):
    assert reason(Ads(), text) == ""


def test_running_text_goes_only_if_it_solicits_all_along():
    article = "雪后的故宫角楼，红墙白雪。" * 20
    assert reason(Ads(), article + "订阅请加微信abc12345", "content") == ""
    assert reason(Ads(), article + "订阅请加微信abc12345", "alt") == "advertisement"
    assert reason(Ads(), "加微信abc12345，扫码领取。" * 20, "content") == "advertisement"


def test_kinds_of_solicitation_and_phrases_are_options():
    assert reason(Ads(urls=False), "看更多图片 www.abc.com") == ""
    assert reason(Ads(phones=False), "订购电话 400-820-8888") == ""
    assert reason(Ads(), "本店新款到货") == ""
    assert reason(Ads(phrases=("新款到货",)), "本店新*款*到*货") == "advertisement"


@given(st.sampled_from(["加微信", "长按识别二维码", "厂家直销", "全国包邮", "加入QQ群"]), st.data())
def test_inserted_marks_do_not_save_an_ad(phrase, data):
    marks = [data.draw(st.sampled_from(["", " ", "*", "·", "_", "~", "\u200b", "。"])) for _ in phrase]
    assert reason(Ads(), "".join(c + m for c, m in zip(phrase, marks, strict=True))) == "advertisement"
