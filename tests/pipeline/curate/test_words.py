"""pair_score without towers: the chance by words ranks by what a text says."""

from __future__ import annotations

from typing import Any

import pytest

from data_specs.build import BuildSpec
from pipeline.curate import _words


def chance(text: str, kind: str = "surrounding", *more: str) -> float:
    return float(_words.chances([[{"kind": kind, "text": text}, *({"kind": "title", "text": t} for t in more)]])[0])


@pytest.mark.slow
def test_texts_that_name_things_have_a_higher_chance_than_remarks_and_the_words_of_pages() -> None:
    named = chance("一只翠鸟站在水边的树枝上", "caption")
    assert named > chance("一只翠鸟站在水边的树枝上") > chance("我也不知道该怎么说才好了")
    assert chance("屏幕显示三个文件") > chance("屏幕丢失三个文件")
    lists = ["首页", "归档", "标签：随笔", "分类：杂谈", "关于"]
    assert (
        chance("一只翠鸟站在水边的树枝上", "caption", *lists)
        < named
        < chance("一只翠鸟站在水边的树枝上", "caption", "翠鸟站在水边的树枝上")
    )
    assert 0 <= chance("。", "tag") < 0.5 < named <= 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"pair_score": {"image": "a.onnx"}}, "text: missing; image names one of two towers"),
        ({"pair_score": {"text": "a.onnx"}}, "image: missing; text names one of two towers"),
        ({"pair_score": {"threads": 4}}, "threads: an option of towers; set image and text too"),
        ({"pair_score": {}, "semantic_dedup": {}}, "semantic_dedup: needs the section pair_score, with an image tower"),
    ],
)
def test_options_of_towers_need_towers(more: dict[str, Any], said: str) -> None:
    source = {"kind": "folder", "name": "f", "source_kind": "news", "path": "."}
    with pytest.raises(ValueError, match=said):
        BuildSpec.model_validate({"name": "n", "contact": "me@example.org", "sources": [source], **more})
