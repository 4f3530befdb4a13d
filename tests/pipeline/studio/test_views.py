"""Saved views: kept beside the build, bounded, and no reader of theirs is hurt by a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.build import SpecError
from pipeline.studio import views
from pipeline.studio.views import Views


def test_views_are_kept_replaced_and_deleted(tmp_path: Path) -> None:
    own = Views(tmp_path / "studio")
    own.save("  小图  ", "reason=image_too_small&q=小猫")
    own.save("b", "stage=dedup")
    own.save("b", "stage=filter")
    expected = [
        {"name": "b", "query": "stage=filter"},
        {"name": "小图", "query": "reason=image_too_small&q=%E5%B0%8F%E7%8C%AB"},
    ]
    assert own.all() == Views(tmp_path / "studio").all() == expected
    own.delete("b")
    own.delete("none of that name")
    assert [view["name"] for view in Views(tmp_path / "studio").all()] == ["小图"]


def test_they_are_bounded(tmp_path: Path) -> None:
    own = Views(tmp_path)
    for name, query in (("", "a=b"), ("x" * 81, "a=b"), ("x", "q=" + "长" * 2_000)):
        with pytest.raises(SpecError):
            own.save(name, query)
    for number in range(views.MOST):
        own.save(str(number), "a=b")
    with pytest.raises(SpecError, match="delete one"):
        own.save("one more", "a=b")
    own.save("7", "stage=dedup")


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"a": ' + b"9" * 2_000_000 + b"}"])
def test_a_damaged_file_is_no_views(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "views.json").write_bytes(content)
    assert Views(tmp_path).all() == []


def test_a_place_without_a_folder_keeps_them_while_it_is_open() -> None:
    own = Views(None)
    own.save("a", "q=b")
    assert own.all() == [{"name": "a", "query": "q=b"}]
    assert Views(None).all() == []


def test_two_studios_of_one_build_see_each_other_s_views(tmp_path: Path) -> None:
    mine, yours = Views(tmp_path), Views(tmp_path)
    mine.save("a", "q=1")
    yours.save("b", "q=2")
    assert [view["name"] for view in mine.all()] == ["a", "b"]
    yours.delete("a")
    mine.save("c", "q=3")
    assert [view["name"] for view in yours.all()] == ["b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["views.json"]
