"""personal_data: each kind of number is masked, dropped or kept, as its option says."""

from __future__ import annotations

from data_specs.shard import Text
from pipeline.filters.personal_data import PersonalData
from pipeline.texts.personal import mask


def test_each_kind_is_masked_dropped_or_kept_by_option():
    text = Text("alt", "张三 13800138000 a@b.cn")
    assert PersonalData(mobile="keep").rewrite(text).text == "张三 13800138000 <邮箱>"
    dropping = PersonalData(mobile="drop")
    drop = dropping.check(text)
    assert (drop.reason.value, drop.evidence) == ("personal_data", "mobile")
    assert "138" not in dropping.rewrite(text).text, "a Decision shows the text"
    assert PersonalData().check(text) is None
    assert mask("a@b.cn", "mobile") == "a@b.cn"


def test_what_a_rewrite_before_has_kept_is_masked_too():
    text = PersonalData().rewrite(Text("alt", "电话 13800138000", original="電話 13800138000"))
    assert (text.text, text.original) == ("电话 <电话>", "電話 <电话>")
