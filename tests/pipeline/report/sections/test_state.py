"""Section `state`: it is the first thing that the page says."""

from __future__ import annotations

from typing import Any

from pipeline.report.page import environment
from pipeline.report.sections.state import END, HTML, START
from pipeline.stages import STAGES

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


def test_the_page_begins_with_what_became_of_the_build(grown: Weeks) -> None:
    for (html, report), number in zip(grown, (1, 2), strict=True):
        main = html.partition("<main")[2]
        assert main.index(START) < main.index(END) < main.index('class="tiles"')
        assert f"Published as release</span> {number} " in main
        assert report["state"]["release"] == number
    assert "the first of the dataset" in grown[0][0]
    assert '<b>3</b> <span data-zh="个新样本，">new samples,</span> 15' in grown[1][0]


def test_samples_of_earlier_builds_that_were_left_out_are_counted(grown: Weeks) -> None:
    _, (html, report) = grown
    assert "were left out with it" not in html
    fewer = {**report, "state": {**report["state"], "total": 13}}
    said = environment(STAGES).from_string(HTML).render(**fewer)
    assert "<p>2 <span" in said
    assert "samples of earlier builds were left out with it" in said
