"""The lock of a place, and a file under a second name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_specs.storage.whole_files import exclusive, is_locked, link


def test_a_held_place_is_refused_after_the_wait_and_free_again_afterwards(tmp_path: Path) -> None:
    place = tmp_path / "made" / "_lock"
    with exclusive(place):
        with pytest.raises(BlockingIOError), exclusive(place, wait_s=0.3):
            pass
        with place.open() as file:
            assert is_locked(file)
    with place.open() as file:
        assert not is_locked(file)
    with exclusive(place, wait_s=0):
        pass


def test_where_no_link_can_be_made_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"content")
    link(source, tmp_path / "b")
    assert (tmp_path / "b").samefile(source)

    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    link(source, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"content"
    assert not (tmp_path / "c").samefile(source)
