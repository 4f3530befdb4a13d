"""Section `published`: a paper's funnel beside a build's own, each step's share on both sides, nothing left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import SpecError
from pipeline.records import DropReason
from pipeline.report.funnel import Funnel
from pipeline.report.page import environment
from pipeline.report.published import PublishedFunnel, Step, read, ready
from pipeline.report.section import Material
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


def test_danqing_s_is_that_of_the_paper() -> None:
    paper = read("danqing", "")
    assert ready() == ["danqing"]
    assert (paper.start, len(paper.steps) + 1, paper.steps[-1].left) == (1_047_085_609, 18, 99_892_381)
    downloaded = paper.steps[2]
    assert downloaded.left / paper.steps[1].left == pytest.approx(0.6729, abs=5e-5)  # as the paper says itself


def test_a_build_that_asks_has_the_section_and_a_file_of_ones_own_is_read(
    fetched_build: Callable[..., Build], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("name: <b>\nsource: us\nstart: 10\nsteps: [{name: all, left: 4}]\n")
    build = fetched_build([], report={"published": "own.yaml"}, base=str(tmp_path))
    said = figures(Material(build), {})
    assert said["published"]["steps"][0]["share"] == 0.6
    html = environment(STAGES).from_string(SECTION.html).render(**said)
    assert "&lt;b&gt;" in html
    assert "60.0%" in html
    assert "not done here" in html


def test_a_build_that_does_not_ask_has_none(synthetic_build: Build) -> None:
    assert figures(Material(synthetic_build), {}) == {"published": None}
    assert environment(STAGES).from_string(SECTION.html).render(published=None).strip() == ""
    assert "published" not in synthetic_build.spec.report.model_dump()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory); ready ones: danqing"),
        ("- 1\n", "is no mapping with name, source, start and steps"),
        ("name: [\n", "is not YAML"),
        ("name: a\nsource: b\nstart: 5\nsteps: [{name: x, left: 6}]\n", "step 'x' leaves 6 of 5"),
        ("name: a\nsource: b\nstart: 5\nsteps: [{name: x, left: 1, reasons: [nonsense]}]\n", "steps[0].reasons[0]: "),
        (
            "name: a\nsource: b\nstart: 5\nsteps: [{name: x, left: 1, reasons: [known, known]}]\n",
            "reason 'known' stands twice",
        ),
        ("x" * 100_001, "is larger than 100,000 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "own.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SpecError) as fault:
        read("own.yaml", str(tmp_path))
    [line] = fault.value.problems
    assert line.startswith(f"report.published: {file}: ")
    assert said in line
