"""Funnels of papers: the ready ones are those that were published; a file that cannot be used is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.build import SpecError
from pipeline.report.published import read, ready


def test_danqing_s_is_that_of_the_paper() -> None:
    paper = read("danqing", "")
    assert ready() == ["danqing"]
    assert (paper.start, len(paper.steps) + 1, paper.steps[-1].left) == (1_047_085_609, 18, 99_892_381)
    downloaded = paper.steps[2]
    assert downloaded.left / paper.steps[1].left == pytest.approx(0.6729, abs=5e-5)  # as the paper says itself


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
