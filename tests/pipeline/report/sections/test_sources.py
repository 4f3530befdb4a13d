"""Section `sources`: seen = kept + dropped + known, of each source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


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
