"""The index over the builds in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import GateError, NothingNew, SourceError
from pipeline.publish import release
from pipeline.report import index as report_index
from pipeline.store.build import Build

Run = Callable[[Build, str], None]


@pytest.mark.drill(2)
def test_an_index_over_many_builds_links_to_each(two: list[Build], tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for build in two:
        shutil.copytree(build.out, folder / build.build_id)
    path, count = report_index.write(str(folder))
    page = Path(path).read_text("utf-8")
    assert count == 2
    for build in two:
        assert f'href="{build.build_id}/report/index.html"' in page
    assert "default-src 'none'" in page
    with pytest.raises(SourceError, match="contains no build with a report"):
        report_index.write(str(tmp_path / "nothing"))


@pytest.mark.drill(4)
def test_an_index_lists_releases_and_says_what_became_of_each_build(weeks: Any, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    release.publish(weeks.build("2026-01-01", range(12)))
    release.publish(weeks.build("2026-01-08", range(15)))
    with pytest.raises(NothingNew):
        release.publish(weeks.build("2026-01-15", range(15)))
    refused = weeks.build("2026-01-22", range(16), publish={"min_samples": 99})
    with pytest.raises(GateError):
        release.publish(refused)
    weeks.build("2026-01-29", range(17), publish={"approve": "manual"})
    for number in (1, 8, 15, 22, 29):
        shutil.copytree(weeks.folder / f"2026-01-{number:02d}", folder / f"{number:02d}")
    page = Path(report_index.write(str(folder))[0]).read_text("utf-8")
    rows = page.partition("<tbody>")[2].partition("</tbody>")[0].split("</tr>")[:5]
    said = ("waiting for approval", "refused", "nothing new", "release</span> 2<", "release</span> 1<")
    totals = ("–", "–", "–", "<b>15</b>", "<b>12</b>")
    for row, words, total in zip(rows, said, totals, strict=True):
        assert words in row
        assert f'<td class="num">{total}</td>' in row
    assert "min_samples" in rows[1]
    assert "Latest release:</span> <b>2</b> · 15" in page
    release.publish(refused, accept=["min_samples"], because="a trial")
    shutil.rmtree(folder / "22")
    shutil.copytree(weeks.folder / "2026-01-22", folder / "22")
    page = Path(report_index.write(str(folder))[0]).read_text("utf-8")
    assert '<td class="num"><b>16</b></td>' in page
    assert "accepted:</span> min_samples" in page


@pytest.mark.slow
def test_a_report_of_another_tool_is_no_build(two: list[Build], tmp_path: Path) -> None:
    shutil.copytree(two[0].out, tmp_path / "all/ours")
    (tmp_path / "all/web/report").mkdir(parents=True)
    for foreign in ('{"tests": 3}', "[1]", '{"build": 1}'):
        (tmp_path / "all/web/report/report.json").write_text(foreign, encoding="utf-8")
        assert report_index.write(str(tmp_path / "all"))[1] == 1
