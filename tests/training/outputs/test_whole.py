"""Files and folders are whole or not there, and what an index vouches for is verified when it is read."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from training.errors import CheckpointError
from training.outputs.whole import INDEX, Sealed, whole_file, whole_folder


def interrupted(writing: AbstractContextManager[Path], name: str) -> None:
    with writing as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise KeyboardInterrupt


def test_a_file_appears_when_it_is_whole_and_an_interrupted_one_leaves_the_earlier(tmp_path: Path) -> None:
    out = tmp_path / "sub" / "a.txt"
    with whole_file(out) as temporary:
        temporary.write_text("first")
        assert not out.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted(whole_file(out), "")
    assert out.read_text() == "first"
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_appears_with_its_index_and_an_interrupted_one_leaves_the_earlier(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    with whole_folder(folder) as temporary:
        (temporary / "a.json").write_text('{"x": 1}')
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted(whole_folder(folder), "b.json")
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]
    assert set(json.loads((folder / INDEX).read_text())["files"]) == {"a.json"}
    assert Sealed.open(folder).object("a.json") == {"x": 1}
    with whole_folder(folder) as temporary:
        (temporary / "c.txt").write_text("红船")
    assert sorted(path.name for path in folder.iterdir()) == ["c.txt", INDEX]
    assert Sealed.open(folder).text("c.txt") == "红船"


def test_a_file_is_verified_when_it_is_read_and_only_one_that_the_index_names(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    with whole_folder(folder) as temporary:
        (temporary / "a.json").write_text('{"x": 1}')
    sealed = Sealed.open(folder)
    (folder / "a.json").write_text('{"x": 2}')
    with pytest.raises(CheckpointError, match=r"a.json: its sha256 is not the one in checkpoint.json"):
        sealed.object("a.json")
    (folder / "b.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"checkpoint.json: names no b.json"):
        sealed.object("b.json")
    (folder / "a.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a.json: 2 bytes, the checkpoint says 8"):
        Sealed.open(folder)
