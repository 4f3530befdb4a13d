"""lexicon: listed words, whatever stands between their characters, and the files they are listed in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import BuildSpec, SpecError
from data_specs.shard import Text
from pipeline.errors import SourceError
from pipeline.filters.lexicon import Lexicon
from pipeline.plugins import check
from pipeline.texts.forms import bare
from tests.judged import reason
from tests.places import CORPUS, needs_corpus


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
    drop = Lexicon(lists={"unwanted": str(words)}).check(Text("alt", text))
    assert (drop.evidence if drop else "") == expected


def test_an_allowed_word_holds_a_listed_one_innocently(words):
    allowing = Lexicon(lists={"unwanted": str(words)}, allow=("跳舞女",))
    assert reason(allowing, "一个跳舞女孩") == ""
    assert reason(allowing, "跳 舞 女孩") == ""
    assert reason(allowing, "跳舞女孩和舞女") == "listed_word"
    assert reason(Lexicon(lists={"unwanted": str(words)}, min_letters=1), "禁止通行") == "listed_word"


@pytest.mark.slow
@given(data=st.data())
def test_stray_marks_hide_no_chinese_word(words, data):
    stray = st.text(st.sampled_from(" *·_~-+|/^\u200b\ufe0f❄"), max_size=2)
    text = "雪景" + "".join(c + data.draw(stray) for c in "违禁词") + "雪景"
    assert reason(Lexicon(lists={"unwanted": str(words)}), text) == "listed_word"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "contains no word"),
        (b"# none\n\n", "contains no word"),
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
    with pytest.raises(SourceError, match=r"words\.txt: list l has changed since the build was opened"):
        b.check(Text("alt", "故宫"))


LISTS = CORPUS / "lexicon"


@pytest.mark.slow
@needs_corpus("lexicon")
def test_published_lists_find_their_own_words_and_spare_captions():
    paths = {path.stem: str(path) for path in sorted(LISTS.glob("*.txt"))}
    lexicon = Lexicon(lists=paths)
    listed = [w for path in paths.values() for w in Path(path).read_text("utf-8").split("\n") if len(bare(w)) >= 2]
    assert [w for w in listed if not lexicon.check(Text("alt", f"……{w.strip()}！"))] == []
    captions = "青蛙。 葱烧海参 番茄炒蛋的做法 故宫雪景 黄山云海 一只穿着红色毛衣的猫 桌上的宫保鸡丁 骑自行车的人"
    assert [c for c in captions.split() if lexicon.check(Text("alt", c))] == []
