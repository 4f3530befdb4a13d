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

Week = tuple[str, dict[str, Any]]


@pytest.fixture(scope="package")
def grown(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> tuple[Week, Week]:
    """(index.html, report.json) of both weeks, published."""
    weeks = importlib.import_module("tests.weeks").Weeks(tmp_path_factory.mktemp("grown"), synthetic.encode, "report")
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
