"""The index over the builds in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.report import index as report_index
from pipeline.store.build import Build

Run = Callable[[Build, str], None]


def test_an_index_over_many_builds_links_to_each_and_shows_trends(two: list[Build], tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for build in two:
        shutil.copytree(build.out, folder / build.build_id)
    path, count = report_index.write(str(folder))
    page = Path(path).read_text("utf-8")
    assert count == 2
    for build in two:
        assert f'href="{build.build_id}/report/index.html"' in page
    assert page.count("<circle") == 2 * 5
    assert "default-src 'none'" in page
    with pytest.raises(SourceError, match="contains no build with a report"):
        report_index.write(str(tmp_path / "nothing"))
