"""Section `sources`: seen = kept + dropped + known, of each source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.report.sections.sources import figures
from pipeline.rows.records import Capture
from pipeline.web.frontier import record_of
from tests.stages import run_noted

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


@pytest.mark.slow
def test_a_source_has_a_column_for_what_is_known(grown: Weeks, part: Callable[[str, str], str]) -> None:
    (first, _), (second, report) = grown
    [source] = report["sources"]
    assert (source["candidates"], source["kept"], source["dropped"], source["known"]) == (15, 3, 0, 12)
    assert "known" not in part(first, "sources")
    html = part(second, "sources")
    assert html.count(">known</span></th>") == 1
    columns = html.partition("<thead>")[2].partition("</thead>")[0].count("<th ")
    for row in html.partition("<tbody>")[2].split("</tr>")[:2]:
        assert row.count("<th ") + row.count("<td") == columns


def test_pages_without_candidates_are_counted_by_reason(make_build: Any, material: Any, tmp_path: Any) -> None:
    pages = {"zh": "<h1>雪后的黄山</h1><img src=/1.jpg alt=黄山>", "en": "<h1>Snow</h1><img src=/1.jpg alt=peak>"}
    headers = (("Content-Type", "text/html"),)
    captures = [
        Capture(f"http://a.test/{name}", 200, "2026-01-01T00:00:00Z", "text/html", page.encode(), headers)
        for name, page in pages.items()
    ]
    (tmp_path / "1.warc.gz").write_bytes(b"".join(map(record_of, captures)))
    source = {"kind": "warc", "name": "w", "source_kind": "news", "path": str(tmp_path / "1.warc.gz")}
    build = make_build(sources=[source])
    run_noted(build, "extract")
    found = figures(material(build), {})
    assert found["captures"] == [{"name": "not_chinese", "count": 1}]
