"""columns: what a column holds, by its cells first and by its name second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.columns import guess_columns


def test_columns_by_content_and_name():
    texts = [{"alt_text": f"图{n}的说明文字", "title": f"标题{n}", "tags": ["山", "水"], "width": n} for n in range(5)]
    urls = [{"src": f"https://a.cn/{n}.jpg", "ref": f"https://a.cn/{n}", "sample_id": f"x{n}"} for n in range(5)]
    guess = guess_columns([{**a, **b} for a, b in zip(texts, urls, strict=True)])
    assert guess.columns == {
        "image_url": "src",
        "page_url": "ref",
        "id": "sample_id",
        "texts": {"alt": "alt_text", "title": "title", "tag": "tags"},
    }
    assert guess_columns([]).columns == {}
    assert not guess_columns([{"a": None, "b": 1}]).has_images


cells = (
    st.none()
    | st.integers()
    | st.text()
    | st.sampled_from(["https://a.cn/1.jpg", "//b.cn/x", "黄山"])
    | st.lists(st.text())
)


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=8), cells, max_size=5), max_size=6))
def test_a_guess_names_columns_that_are_there_each_once(rows):
    columns = dict(guess_columns(rows).columns)
    texts = columns.pop("texts", {}).values()
    named = [*columns.values(), *(n for names in texts for n in ([names] if isinstance(names, str) else names))]
    assert len(named) == len(set(named))
    assert set(named) <= {name for row in rows for name in row}


def test_a_remark_in_most_cells_and_a_column_that_is_mostly_empty_are_no_captions():
    rows = [{"图": f"https://a.cn/{n}.jpg", "名": f"第{n}座山", "备注": "待核实；见附件", "另": ""} for n in range(12)]
    rows[3]["另"] = rows[4]["另"] = "另一段文字"
    rows[5]["备注"] = "山顶的云"
    guess = guess_columns(rows)
    assert guess.columns["texts"] == {"caption": "名"}
    remarks = ["column 备注 is not a caption: 11 of 12 cells contain the same text, 待核实；见附件"]
    remarks.append("column 另 is not a caption: 10 of 12 cells are empty")
    assert "; ".join(remarks) in guess.why
    assert not guess_columns([{"图": row["图"], "说明": "待补充"} for row in rows]).has_texts
    sparse = [{**row, "说明": row["另"]} for row in rows]
    assert guess_columns(sparse).columns["texts"] == {"caption": ["名", "说明"]}, "its name says that it is one"


def test_texts_that_are_not_chinese_are_taken_by_the_name_of_their_column():
    rows = [{"url": f"https://a.org/{n}.png", "TEXT": f"a photo of {n} dogs", "hash": f"{n:x}"} for n in range(3)]
    assert guess_columns(rows).columns == {"image_url": "url", "texts": {"caption": "TEXT"}}
