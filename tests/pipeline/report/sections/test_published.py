"""Section `published`: a paper's funnel beside a build's own, each step's share on both sides, nothing left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import DropReason
from pipeline.report.funnel import Funnel
from pipeline.report.page import environment
from pipeline.report.published import PublishedFunnel, Step, read
from pipeline.report.sections.published import SECTION, beside, figures
from pipeline.stages import STAGES
from pipeline.store.build import Build

PAPER = PublishedFunnel(
    name="Paper",
    source="arXiv 0000.00000",
    start=1_000,
    steps=(
        Step(name="short", left=800, reasons=(DropReason.TEXT_TOO_SHORT,)),
        Step(name="by a model", left=400),
        Step(name="seen", left=300, reasons=(DropReason.NEAR_IMAGE, DropReason.KNOWN)),
    ),
)


def test_each_step_has_the_share_of_what_entered_it_on_both_sides() -> None:
    counts = {
        ("a", "shard", ""): 30,
        ("a", "admit", "text_too_short"): 40,
        ("b", "admit", "text_too_short"): 10,
        ("a", "dedup", "near_image"): 5,
        ("a", "dedup", "known"): 5,
        ("b", "admit", "advertisement"): 10,
    }
    said = beside(PAPER, Funnel(counts))
    assert [(s["share"], s["own_share"], s["own_left"]) for s in said["steps"]] == [
        (0.2, 0.5, 50),
        (0.5, None, 50),
        (0.25, 0.2, 40),
    ]
    assert said["others"] == [{"name": "advertisement", "count": 10}]
    assert (said["own_start"], said["own_kept"]) == (100, 30)


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.just("any"), st.sampled_from(["", *DropReason])), st.integers(0, 99)
    )
)
def test_what_is_kept_is_what_the_build_kept(drawn: dict[tuple[str, str, str], int]) -> None:
    counts = {(source, stage, str(getattr(reason, "value", reason))): n for (source, stage, reason), n in drawn.items()}
    for paper in (PAPER, read("danqing", "")):
        said = beside(paper, Funnel(counts))
        assert said["own_kept"] == sum(n for (_, _, reason), n in counts.items() if not reason)


def test_a_build_that_asks_has_the_section_and_a_file_of_ones_own_is_read(
    fetched_build: Callable[..., Build], material: Any, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("name: <b>\nsource: us\nstart: 10\nsteps: [{name: all, left: 4}]\n")
    build = fetched_build([], report={"published": "own.yaml"}, base=str(tmp_path))
    said = figures(material(build), {})
    assert said["published"]["steps"][0]["share"] == 0.6
    html = environment(STAGES).from_string(SECTION.html).render(**said)
    assert "&lt;b&gt;" in html
    assert "60.0%" in html
    assert "not done here" in html


def test_a_build_that_does_not_ask_has_none(synthetic_build: Build, material: Any) -> None:
    assert figures(material(synthetic_build), {}) == {"published": None}
    assert environment(STAGES).from_string(SECTION.html).render(published=None).strip() == ""
    assert "published" not in synthetic_build.spec.report.model_dump()
