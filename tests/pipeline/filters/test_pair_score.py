"""pair_score: both ends of a band are kept, and what it says of a pair is said in Chinese too."""

from __future__ import annotations

import re

import pytest

from data_specs.build import SpecError
from pipeline.filters import PairFilter
from pipeline.plugins import configure
from pipeline.report.translations import evidence_zh
from pipeline.store.pair_scores import UNSCORED


def test_both_ends_are_within_the_band() -> None:
    judge = configure("filters", "pair_score", {"min_score": 0.231, "max_score": 0.438}, PairFilter).judge
    said = {score: fault.reason.value if (fault := judge(score)) else "" for score in (0.2309, 0.231, 0.438, 0.4381)}
    assert said == {0.2309: "pair_score_low", 0.231: "", 0.438: "", 0.4381: "pair_score_high"}
    anything = configure("filters", "pair_score", {}, PairFilter)
    assert [anything.judge(score) for score in (-1, 0, 1)] == [None] * 3
    assert anything.top_share == 1


@pytest.mark.parametrize("options", [{"top_share": 0}, {"top_share": 1.5}, {"min_score": -1.1}, {"max_score": 2}])
def test_what_is_no_share_and_no_cosine_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=f"at.{next(iter(options))}: input should be"):
        configure("filters", "pair_score", options, PairFilter, "at")


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ("pair score 0.1200; at least 0.2", "图文得分 0.1200；至少 0.2"),
        ("pair score -0.0300; at least 0.2", "图文得分 -0.0300"),
        ("pair score 0.31; the best 0.5 of news have at least 0.35", "图文得分 0.31；news 最好的 0.5 不低于 0.35"),
        (UNSCORED, "未打分"),
    ],
)
def test_its_evidence_is_said_in_chinese(evidence: str, said: str) -> None:
    chinese = evidence_zh(evidence)
    assert chinese.startswith(said)
    assert not re.search(r"[a-z]{2,}", chinese.replace("news", ""))
