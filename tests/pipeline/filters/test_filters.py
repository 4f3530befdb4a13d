"""Text filters: which texts each of them keeps, and the reasons for those it drops."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec, SourceRef, SpecError
from data_specs.shard import Text, TextKind
from pipeline.errors import SourceError
from pipeline.filters import TextFilter
from pipeline.filters.ads import Ads
from pipeline.filters.boilerplate import Boilerplate
from pipeline.filters.han_share import HanShare
from pipeline.filters.language import Language
from pipeline.filters.lexicon import Lexicon
from pipeline.filters.personal_data import PersonalData
from pipeline.filters.repetition import Repetition
from pipeline.filters.text_length import TextLength
from pipeline.filters.to_simplified import ToSimplified
from pipeline.plugins import check, find, names
from pipeline.texts.forms import bare
from pipeline.texts.words import weight
from tests.places import CORPUS, needs_corpus


def reason(f: TextFilter, text: str, kind: TextKind = "alt") -> str:
    found = f.check(Text(kind, text))
    return found.reason.value if found else ""


@pytest.mark.parametrize(
    ("options", "text", "kind", "expected"),
    [
        ({}, "故宫雪景图", "alt", ""),
        ({}, "故宫 雪 景", "alt", ""),
        ({}, "故宫 雪 景", "abstract", "text_too_short"),
        ({}, "戚风蛋糕", "title", ""),
        ({}, "首页", "title", "text_too_short"),
        ({}, "正阳门", "alt", ""),
        ({}, "门", "caption", "text_too_short"),
        ({}, "在 Visual Studio Code 里远程调试 Kubernetes 集群中运行的应用程序", "title", ""),
        (
            {"max_chars": 50},
            "在 Visual Studio Code 里远程调试 Kubernetes 集群中运行的应用程序" * 2,
            "title",
            "text_too_long",
        ),
        ({"min_chars": 5}, "正阳门", "alt", "text_too_short"),
        ({"min_chars": {"alt": 4}}, "正阳门", "alt", "text_too_short"),
        ({"min_chars": {"alt": 4}}, "正阳门", "caption", ""),
        ({"max_chars": {"surrounding": 60}}, "云" * 61, "surrounding", "text_too_long"),
        ({}, "云" * 50, "caption", ""),
        ({}, "云" * 51, "caption", "text_too_long"),
        ({}, "云" * 51, "surrounding", ""),
        ({}, "云" * 1001, "surrounding", "text_too_long"),
        ({"min_chars": 2}, "故宫", "alt", ""),
        ({"min_words": 3}, "清晨的第一缕阳光", "alt", ""),
        ({"min_words": 3}, "哈哈哈哈哈！！！", "alt", "text_too_short"),
        ({"max_words": 2}, "清晨的第一缕阳光", "alt", "text_too_long"),
        ({"max_words": 2}, "清晨的第一缕阳光", "content", ""),
        ({"min_words": 2, "min_chars": 2}, "故宫", "alt", "text_too_short"),
        ({"min_words": 2}, "故宫的雪景", "alt", ""),
    ],
)
def test_length(options, text, kind, expected):
    assert reason(TextLength(**options), text, kind) == expected


@given(st.text(st.sampled_from("云abc1 -é，"), max_size=30))
def test_a_text_weighs_its_characters_at_most_and_a_latin_word_as_much_as_a_third_of_four(text):
    assert 0 <= weight(text) <= sum(map(len, text.split()))
    assert weight("three English words") == pytest.approx(4)
    assert weight("云" + text) == pytest.approx(1 + weight(text))


def source(source_kind: str = "news", kind: str = "site", **options: Any) -> SourceRef:
    return SourceRef(name="s", kind=kind, source_kind=source_kind, **options)


def test_a_collection_has_no_threshold_of_the_web_unless_the_spec_states_one():
    for collection in (source("library", "url_table"), source(kind="folder"), source(kind="webdataset")):
        assert reason(TextLength().for_source(collection), "门") == ""
        assert reason(TextLength().for_source(collection), "云" * 51) == ""
        assert reason(TextLength(min_chars=2, max_chars=50).for_source(collection), "门") == "text_too_short"
        assert reason(HanShare().for_source(collection), "GNU Image Manipulation Program 图") == ""
        assert reason(HanShare(min_share=0.5).for_source(collection), "Chrome 调试") == "low_han_share"
        assert reason(Boilerplate().for_source(collection), "按钮。") == ""  # a picture of a button
        assert reason(Boilerplate(words=True).for_source(collection), "按钮。") == "boilerplate"
        assert reason(Boilerplate().for_source(collection), "点击查看大图") == "boilerplate"
    assert reason(Boilerplate().for_source(source()), "按钮。") == "boilerplate"
    assert reason(TextLength().for_source(source()), "门") == "text_too_short"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("故宫雪景", ""),
        ("高清壁纸 1920x1080", ""),
        ("iPhone手机", ""),
        ("Chrome 调试", ""),
        ("Installing the GRUB boot loader on a disk 图", "low_han_share"),
        ("2024年Q3财报", ""),
        ("列夫・托尔斯泰", ""),
        ("桜の花", "not_chinese"),
        ("東京タワー", "not_chinese"),
        ("서울 漢字漢字漢字", "not_chinese"),
        ("hello world", "low_han_share"),
        ("12345", "low_han_share"),
        ("𠮷野家", ""),
        ("", "low_han_share"),
    ],
)
def test_han_share(text, expected):
    assert reason(HanShare(), text) == expected


def test_a_stated_share_is_one_of_letters_and_a_title_needs_more_han_than_a_caption():
    assert reason(HanShare(min_share=0.5), "iPhone手机") == "low_han_share"
    assert reason(HanShare(), "VS Code 与 Docker Compose 图", "caption") == ""
    assert reason(HanShare(), "VS Code 与 Docker Compose 图", "title") == "low_han_share"
    assert reason(HanShare(min_share={"title": 0.1}), "VS Code 与 Docker Compose 图", "title") == ""


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
公众号后台数据图|1920x1080高清壁纸|故宫雪景|微信windows版"""


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


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "unwanted.txt"
    path.write_text("# a comment\n违禁词\nav\n舞女\nbad-site.cn\nSM俱乐部\n禁\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("含有违禁词的标题", "unwanted: 违禁词"),
        ("含有違禁詞的標題", "unwanted: 违禁词"),
        ("违*禁 词", "unwanted: 违禁词"),
        ("违，禁，词", "unwanted: 违禁词"),
        ("违禁\u200b词", "unwanted: 违禁词"),
        ("不要违禁。词典在此", ""),
        ("ＡＶ画质", "unwanted: av"),
        ("a.v 画质", "unwanted: av"),
        ("java 与 save", ""),
        ("my AV!", "unwanted: av"),
        ("见 BAD-SITE.CN 网", "unwanted: bad-site.cn"),
        ("见 b a d - s i t e . c n", "unwanted: bad-site.cn"),
        ("not-abad-site.cn", ""),
        ("sm俱乐部", "unwanted: SM俱乐部"),
        ("xsm俱乐部", ""),
        ("跳舞女孩", "unwanted: 舞女"),
        ("禁止通行", ""),
    ],
)
def test_lexicon(words, text, expected):
    found = Lexicon(lists={"unwanted": str(words)}).check(Text("alt", text))
    assert (found.evidence if found else "") == expected


def test_an_allowed_word_holds_a_listed_one_innocently(words):
    allowing = Lexicon(lists={"unwanted": str(words)}, allow=("跳舞女",))
    assert reason(allowing, "一个跳舞女孩") == ""
    assert reason(allowing, "跳 舞 女孩") == ""
    assert reason(allowing, "跳舞女孩和舞女") == "listed_word"
    assert reason(Lexicon(lists={"unwanted": str(words)}, min_letters=1), "禁止通行") == "listed_word"


@given(data=st.data())
def test_stray_marks_hide_no_chinese_word(words, data):
    stray = st.text(st.sampled_from(" *·_~-+|/^\u200b\ufe0f❄"), max_size=2)
    text = "雪景" + "".join(c + data.draw(stray) for c in "违禁词") + "雪景"
    assert reason(Lexicon(lists={"unwanted": str(words)}), text) == "listed_word"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "holds no word"),
        (b"# none\n\n", "holds no word"),
        ("违禁".encode("gb18030"), "UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_with_its_place_and_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    filters = [{"name": "han_share"}, {"name": "lexicon", "lists": {"a": "words.txt"}}]
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.test/"]}
    values = {"name": "t", "contact": "mailto:x@example.org", "sources": [source], "filters": filters}
    with pytest.raises(SpecError) as raised:
        check(BuildSpec.model_validate({**values, "base": str(tmp_path)}), "t.yaml")
    [line] = raised.value.problems
    assert re.fullmatch(rf"t\.yaml: filters\[1\]: {re.escape(str(tmp_path))}/words\.txt: .*{message}.*", line)


def test_a_list_counts_by_what_it_holds_not_by_where_it_lies(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.txt").write_text("违禁词\n", encoding="utf-8")
    a, b = (Lexicon(lists={"l": "words.txt"}, base=str(tmp_path / folder)) for folder in ("a", "b"))
    assert a.identity() == b.identity()
    (tmp_path / "b" / "words.txt").write_text("违禁词\n别的词\n", encoding="utf-8")
    assert Lexicon(lists={"l": "words.txt"}, base=str(tmp_path / "b")).identity() != a.identity()
    with pytest.raises(SourceError, match=r"words\.txt: list l has changed since the build was planned"):
        b.check(Text("alt", "故宫"))


LISTS = CORPUS / "lexicon"


@needs_corpus("lexicon")
def test_published_lists_find_their_own_words_and_spare_captions():
    paths = {path.stem: str(path) for path in sorted(LISTS.glob("*.txt"))}
    lexicon = Lexicon(lists=paths)
    listed = [w for path in paths.values() for w in Path(path).read_text("utf-8").split("\n") if len(bare(w)) >= 2]
    assert [w for w in listed if not lexicon.check(Text("alt", f"……{w.strip()}！"))] == []
    captions = "青蛙。 葱烧海参 番茄炒蛋的做法 故宫雪景 黄山云海 一只穿着红色毛衣的猫 桌上的宫保鸡丁 骑自行车的人"
    assert [c for c in captions.split() if lexicon.check(Text("alt", c))] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("故宫雪景", ""),
        ("故宮雪景", ""),
        ("國立故宮博物院典藏清代瓷器展覽", ""),
        ("一個中世紀的城市和它的城牆", ""),
        ("国立西洋美術館常設展示作品一覧", "not_chinese"),
        ("株式会社日本経済新聞社東京本社編集局", "not_chinese"),
        ("東京都千代田区丸内一丁目九番一号", "not_chinese"),
        ("日本国憲法第九条戦争放棄条項全文", "not_chinese"),
        ("口感嫩滑微苦回甘然后撒上香菜即可", ""),
        ("台灣歷史与文化研究中心", ""),
        ("东京国立博物馆收藏的中国古代青铜器展览", ""),
        ("", ""),
    ],
)
def test_language_is_asked_only_where_script_leaves_a_doubt(text, expected):
    assert reason(Language(), text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "故宫雪景",
        "一個中世紀的城市和它的城牆",
        "东京国立博物馆收藏的中国古代青铜器展览",
        "東京タワーの夜景写真集全巻",
        "展覽",
    ],
)
def test_script_decides_without_a_model(text):
    assert not Language().is_doubtful(text)


def test_simplified_keeps_the_original_if_asked_to():
    text = Text("alt", "臺灣的軟體")
    assert ToSimplified().rewrite(text) == Text("alt", "台湾的软体", "臺灣的軟體")
    assert ToSimplified(config="tw2sp").rewrite(text).text == "台湾的软件"
    assert ToSimplified(keep_original=False).rewrite(text) == Text("alt", "台湾的软体")
    once = ToSimplified().rewrite(text)
    assert ToSimplified().rewrite(once) is once


JUDGES: list[TextFilter] = [TextLength(), HanShare(), Boilerplate(), Repetition(), Ads(), Language()]
REWRITES: list[TextFilter] = [PersonalData(), ToSimplified()]


@given(st.text(max_size=80))
def test_no_text_raises_and_judging_twice_says_the_same(text):
    for f in (*JUDGES, *REWRITES):
        assert f.check(Text("alt", text)) == f.check(Text("alt", text))


@given(st.text(max_size=40))
def test_rewriting_twice_is_rewriting_once(text):
    for f in REWRITES:
        once = f.rewrite(Text("alt", text))
        assert f.rewrite(once) is once


def test_a_text_filter_judges_or_rewrites():
    for name in names("filters"):
        plugin = find("filters", name)
        if issubclass(plugin, TextFilter):
            assert plugin.check is not TextFilter.check or plugin.rewrite is not TextFilter.rewrite, name
