"""Two weeks of a dataset, of which the second adds three pictures to twelve."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.publish import release
from pipeline.report import tally
from pipeline.report.section import Material
from pipeline.stages import tally as stage
from pipeline.store.build import Build

Week = tuple[str, dict[str, Any]]


@pytest.fixture(scope="package")
def grown(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> tuple[Week, Week]:
    """(index.html, report.json) of both weeks, published."""
    weeks = importlib.import_module("tests.weeks").Weeks(tmp_path_factory.mktemp("grown"), synthetic.encode)
    pages = []
    for snapshot, count in (("2026-01-01", 12), ("2026-01-08", 15)):
        build = weeks.build(snapshot, range(count))
        release.publish(build)
        folder = Path(build.out) / "report"
        report = json.loads((folder / "report.json").read_bytes())
        pages.append(((folder / "index.html").read_text("utf-8"), report))
    first, second = pages
    return first, second


@pytest.fixture
def part() -> Callable[[str, str], str]:
    """part(html, name): one section of a page, by its anchor."""
    return lambda html, name: html.partition(f'<section id="{name}"')[2].partition("</section>")[0]


@pytest.fixture
def counted(run_stage: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Callable[[Build], Material]:
    """counted(build): its material of summaries that stage `tally` has committed, each of one partition."""

    def count(build: Build) -> Material:
        monkeypatch.setattr(stage, "FEWEST", 0)
        monkeypatch.setattr(tally, "GROUP", 1)
        assert (
            len(
                run_stage(
                    build,
                )
            )
            > 4
        )
        monkeypatch.setattr(tally, "summary", lambda *_: pytest.fail("it was counted already"))
        return Material(build)

    return count
