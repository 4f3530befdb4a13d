"""SECTIONS: one file each, one line each; a section more is one object that report.json and index.html show."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import sections
from pipeline.report.section import Material, Section
from pipeline.report.sections import SECTIONS
from pipeline.store.build import Build

Run = Callable[..., list[str]]


def longest(material: Material, inputs: dict[str, Any]) -> dict[str, Any]:
    """The whole of the toy section's figures, from the build and from another section that is below it on the page."""
    [characters] = [h for h in inputs["histograms"] if h["name"] == "characters"]
    bins = [b["label"] for b in characters["bins"] if b["count"]]
    return {"longest_text": {"characters": bins[-1], "shards": len(material.build.packed()), "evil": "<b>"}}


TOY = Section(
    name="longest",
    html="""
<section id="longest">
  <h2>{{ t("Longest text", "最长文本") }}</h2>
  <p>{{ longest_text.characters }} of {{ totals.kept | n }} {{ longest_text.evil }}</p>
</section>
""",
    figures=longest,
    inputs=("shapes",),
    title="Longest",
    title_zh="最长",
)


def test_every_file_is_one_section_and_has_one_line() -> None:
    files = {path.stem for path in Path(sections.__file__).parent.glob("[!_]*.py")}
    assert len(SECTIONS) == len(files)
    assert {section.name for section in SECTIONS} == files
    for section in SECTIONS:
        assert section.figures.__module__ == f"pipeline.report.sections.{section.name}"
        assert bool(section.title) == bool(section.title_zh) == (f'<section id="{section.name}">' in section.html)


@pytest.mark.drill(1)
def test_one_more_section_is_one_object_and_one_line(
    synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(synthetic_build.out) / "report"
    run_stage(synthetic_build, "shard", "report")
    before = json.loads((folder / "report.json").read_bytes())
    page = (folder / "index.html").read_text("utf-8")

    shutil.rmtree(folder)
    monkeypatch.setattr("pipeline.report.page.SECTIONS", (TOY, *SECTIONS))
    run_stage(synthetic_build, "report")

    report = json.loads((folder / "report.json").read_bytes())
    expected = {"characters": "10–14", "shards": sum(split["shards"] for split in report["splits"]), "evil": "<b>"}
    assert report == {**before, "longest_text": expected}

    with_toy = (folder / "index.html").read_text("utf-8")
    link = '<a href="#longest"><span data-zh="最长">Longest</span></a>'
    part = (
        '\n<section id="longest">\n  <h2><span data-zh="最长文本">Longest text</span></h2>\n'
        "  <p>10–14 of 30 &lt;b&gt;</p>\n</section>\n"
    )
    assert with_toy.count(link) == with_toy.count(part) == 1
    assert with_toy.replace(link, "").replace(part, "") == page


@pytest.mark.slow
def test_the_page_shows_the_sections_in_their_order_and_links_to_those_with_a_title(
    written: tuple[str, dict[str, Any]],
) -> None:
    html, _ = written
    # nothing was before, scored, merged, balanced, or looked at for marks
    absent = ("dataset", "drift", "watermark", "pair_scores", "semantic_duplicates", "balance")
    titled = [section.name for section in SECTIONS if section.title and section.name not in absent]
    assert re.findall('<section id="([^"]+)"', html) == titled
    assert re.findall('<a href="#([^"]+)">', html.partition("<nav")[2].partition("</nav>")[0]) == titled
