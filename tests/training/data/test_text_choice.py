"""Which text of a sample an epoch takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from training.data.batch_maker import choose_text, is_boilerplate
from training.data.index import RowText, SampleRow
from training.errors import ConfigError
from training.resolve import resolve

CONFIG = replace(resolve("tiny").data, window_shards=2)


def _row(key: str, *kinds: str) -> SampleRow:
    texts = tuple(RowText(kind, f"{kind}{i}", "") for i, kind in enumerate(kinds))
    return SampleRow("x.tar", key, "", "news", 0, 0, texts, "", 0, 0, None)


@pytest.mark.slow
def test_texts_are_taken_by_the_probabilities_of_the_source_kind() -> None:
    kinds = {"news": {"alt": 1.0, "surrounding": 3.0, "title": 5.0}, "wechat": {"alt": 1.0}}
    config = replace(CONFIG, text_kinds=kinds)
    rows = [_row(str(i), "alt", "surrounding", "surrounding", "content") for i in range(4000)]
    found = Counter(choose_text(row, config, 0, 0).text for row in rows)
    assert set(found) == {"alt0", "surrounding1", "surrounding2"}
    assert abs(found["alt0"] / 4000 - 0.25) < 0.03
    assert abs(found["surrounding1"] / 4000 - 0.375) < 0.03
    again = [choose_text(row, config, 0, 0) for row in rows]
    assert again == [choose_text(row, config, 0, 0) for row in rows]
    assert again != [choose_text(row, config, 0, 1) for row in rows]


@pytest.mark.parametrize("kinds", ["primary", {}, {"news": {"content": 1.0}}, {"wechat": {"title": 1.0}}])
def test_the_primary_text_is_taken_where_no_kind_fits(kinds: str | dict[str, dict[str, float]]) -> None:
    assert choose_text(_row("k", "alt", "title"), replace(CONFIG, text_kinds=kinds), 0, 0).text == "alt0"


def test_easy_and_first_are_made_of_the_surrounding_text() -> None:
    texts = (RowText("alt", "红船", "a"), RowText("surrounding", "山下有湖。" + "水" * 200, "s"))
    row = replace(_row("k"), texts=texts)

    def chosen(kind: str) -> RowText:
        return choose_text(row, replace(CONFIG, text_kinds={"news": {kind: 1.0}}), 0, 0)

    assert chosen("easy") == RowText("easy", "山下有湖。" + "水" * 123, "s")
    assert chosen("first") == RowText("first", "山下有湖", "s")
    with pytest.raises(ConfigError, match=r"data.text_kinds: unknown kind 'esay'; did you mean easy"):
        resolve("tiny", ['data.text_kinds={"news": {"esay": 1}}'])
    with pytest.raises(ConfigError, match=r"data.text_kinds: unknown kind 'new'; did you mean news"):
        resolve("tiny", ['data.text_kinds={"new": {"alt": 1}}'])


@pytest.mark.parametrize(
    "text", ["查看源网页", "图片来自网络", " 点击查看大图！", "IMG_1234.jpg", "000.jpg", "20240102", "…"]
)
def test_what_stands_under_any_picture_is_boilerplate(text: str) -> None:
    assert is_boilerplate(text)


@pytest.mark.parametrize("text", ["图片里的红船", "第3号展厅", "2008年奥运会", "IMG 海边的猫", "查看地图的游客"])
def test_what_tells_of_a_picture_is_not(text: str) -> None:
    assert not is_boilerplate(text)


def test_boilerplate_is_left_out_by_its_probability_unless_there_is_nothing_else() -> None:
    texts = (RowText("alt", "查看源网页", "a"), RowText("surrounding", "山下有湖", "s"))
    rows = [replace(_row(str(i)), texts=texts) for i in range(1000)]

    def share(dropout: float) -> float:
        found = [choose_text(row, replace(CONFIG, boilerplate_dropout=dropout), 0, 0).kind for row in rows]
        return found.count("surrounding") / 1000

    assert (share(0.0), share(1.0)) == (0.0, 1.0)
    assert abs(share(0.3) - 0.3) < 0.05
    assert choose_text(replace(rows[0], texts=texts[:1]), CONFIG, 0, 0).text == "查看源网页"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("marks", ["-", "_", ".", "图片 - ", "—1"])
def test_a_long_line_of_marks_before_words_is_judged_at_once(marks: str) -> None:
    assert not is_boilerplate(marks * 5_000 + "红船")
    assert not is_boilerplate("IMG" + "-_" * 5_000 + "红船")
