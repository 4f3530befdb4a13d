"""Text filters: which texts each of them keeps, and the reasons for those it drops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import Text
from pipeline.filters import TextFilter
from pipeline.filters.ads import Ads
from pipeline.filters.boilerplate import Boilerplate
from pipeline.filters.han_share import HanShare
from pipeline.filters.language import Language
from pipeline.filters.personal_data import PersonalData
from pipeline.filters.repetition import Repetition
from pipeline.filters.text_length import TextLength
from pipeline.filters.to_simplified import ToSimplified
from pipeline.plugins import find, names
from tests.judged import reason, source


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


JUDGES: list[TextFilter] = [TextLength(), HanShare(), Boilerplate(), Repetition(), Ads(), Language()]
REWRITES: list[TextFilter] = [PersonalData(), ToSimplified()]


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("options", "width", "height", "size", "blankness", "reason"),
    [
        ({"name": "image_sides"}, 200, 199, 9_000, 0.1, "image_too_small"),
        ({"name": "image_sides"}, 200, 200, 9_000, 0.1, None),
        ({"name": "image_sides", "max_side": 1000}, 1001, 200, 9_000, 0.1, "image_too_large"),
        ({"name": "image_aspect"}, 300, 100, 9_000, 0.1, None),
        ({"name": "image_aspect"}, 100, 301, 9_000, 0.1, "image_aspect"),
        ({"name": "image_blank"}, 100, 100, 9_000, 0.99, "image_blank"),
        ({"name": "image_blank", "max_blankness": 0.99}, 100, 100, 9_000, 0.99, None),
        ({"name": "image_bytes"}, 100, 100, 4_999, 0.1, "image_too_small"),
        ({"name": "image_bytes", "max_bytes": 8_000}, 100, 100, 9_000, 0.1, "image_too_large"),
        ({"name": "image_bytes"}, 100, 100, 5_000, 0.1, None),
    ],
)
def test_thresholds(
    options: dict[str, Any], width: int, height: int, size: int, blankness: float, reason: str | None
) -> None:
    from pipeline.filters import ImageFilter
    from pipeline.plugins import configure
    from pipeline.rows.records import Features

    options = dict(options)
    judge = configure("filters", options.pop("name"), options, ImageFilter)
    features = Features("0" * 64, "png", width, height, size, 1, False, 1, blankness, (1, 2, 3), b"")
    dropped = judge.check(features)
    assert (dropped and dropped.reason.value) == reason
    assert dropped is None or any(c.isdigit() for c in dropped.evidence)


@pytest.mark.parametrize(
    ("options", "seen", "reason"),
    [
        ({"name": "image_sharpness"}, {"sharpness": 49.0}, "image_blurred"),
        ({"name": "image_sharpness"}, {"sharpness": 50.0}, None),
        ({"name": "image_sharpness", "min_sharpness": 0}, {"sharpness": 0.0}, None),
        ({"name": "image_entropy"}, {"entropy": 0.9}, "image_entropy"),
        ({"name": "image_entropy"}, {"entropy": 1.0}, None),
        ({"name": "image_frames"}, {"frames": 2}, "image_animated"),
        ({"name": "image_frames", "max_frames": 2}, {"frames": 2}, None),
    ],
)
def test_thresholds_of_what_pixels_tell(options: dict[str, Any], seen: dict[str, Any], reason: str | None) -> None:
    from pipeline.filters import ImageFilter
    from pipeline.plugins import configure
    from pipeline.rows.records import Features

    options = dict(options)
    judge = configure("filters", options.pop("name"), options, ImageFilter)
    dropped = judge.check(replace(Features("0" * 64, "gif", 100, 100, 9_000, 1, False, 1, 0.1, (1, 2, 3), b""), **seen))
    assert (dropped and dropped.reason.value) == reason
    assert dropped is None or any(c.isdigit() for c in dropped.evidence)
