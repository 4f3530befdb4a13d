"""host_marks: the host of each image URL, and marks that come back as they were written."""

from __future__ import annotations

from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest

from pipeline.pictures.marks import Mark
from pipeline.store.host_marks import MARK_SCHEMA, Group, bucket_of, groups_of, mark_of, row_of, with_host


@pytest.mark.parametrize(
    "url", ["https://img.Example.org/a.jpg", "http://h:8080/x?y", "http://127.0.0.1/a", "https://h#x", "http://h"]
)
def test_the_host_is_that_of_the_url(url: str) -> None:
    rows = pa.table({"image_url": [url], "source": ["s"], "width": [3], "height": [2]})
    assert groups_of(with_host(rows)) == [Group(urlsplit(url).hostname or "", 3, 2)]


def test_a_picture_without_a_host_belongs_to_its_source() -> None:
    rows = pa.table(
        {"image_url": ["photos/a.jpg", "file:///a.jpg"], "source": ["s", "t"], "width": [3, 3], "height": [2, 2]}
    )
    assert with_host(rows)["host"].to_pylist() == ["s", "t"]


def test_a_mark_comes_back_and_hosts_are_spread() -> None:
    mark = Mark("mark", 0.25, (320, 200), np.array([3, 9]), np.array([-5, 40]), np.array([0, 7]))
    table = pa.Table.from_pylist([row_of(Group("h", 640, 400), 90, 50, mark)], schema=MARK_SCHEMA)
    again = mark_of(table.to_pylist()[0])
    assert (again.verdict, again.share, again.sides) == (mark.verdict, mark.share, mark.sides)
    for name in ("at", "across", "down"):
        assert np.array_equal(getattr(again, name), getattr(mark, name))
    assert {bucket_of(f"h{number}", 4) for number in range(50)} == {0, 1, 2, 3}
