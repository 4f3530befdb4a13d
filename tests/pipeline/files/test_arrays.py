"""arrays: what was written is what is read, on a disk and behind a URL; a file that is not whole is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.files import arrays as arrays_module
from pipeline.files.arrays import Arrays, ArrayWriter
from pipeline.files.folder import Folder

WRITTEN: dict[str, Any] = {
    "words": np.arange(1_000, dtype=np.uint64) << np.uint64(40),
    "one byte": np.array([7], np.uint8),
    "digests": np.arange(96, dtype=np.uint8).reshape(3, 32),
    "nothing": np.zeros((0, 26), np.uint32),
}


def write(folder: Folder) -> None:
    with folder.making("some.bin") as file:
        writer = ArrayWriter(file)
        for name, array in WRITTEN.items():
            writer.add(name, array)
        writer.finish()


@pytest.mark.parametrize("url", ["{}", "memory:/{}"])
def test_what_was_written_is_read_with_its_type_and_shape(tmp_path: Path, url: str) -> None:
    folder = Folder(url.format(tmp_path))
    write(folder)
    for again in range(2):
        with Arrays(folder, "some.bin") as arrays:
            for name, array in WRITTEN.items():
                assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
                assert arrays[name].tolist() == array.tolist()
                if again:
                    arrays.give_back()


def test_no_more_is_read_of_a_url_than_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = Folder(f"memory:/{tmp_path}"), list[int]()
    write(folder)
    monkeypatch.setattr(arrays_module, "SMALL", 100)
    ranged = Folder.read_range
    monkeypatch.setattr(Folder, "read_range", lambda *of: asked.append(of[3]) or ranged(*of))
    with Arrays(folder, "some.bin") as arrays:
        before = sum(asked)
        assert arrays["digests"][2, 31] == arrays["digests"].max() == 95
        assert sum(asked) - before == 96


def test_a_small_file_behind_a_url_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = Folder(f"memory:/{tmp_path}"), list[int]()
    write(folder)
    ranged = Folder.read_range
    monkeypatch.setattr(Folder, "read_range", lambda *of: asked.append(of[3]) or ranged(*of))
    with Arrays(folder, "some.bin") as arrays:
        assert all(arrays[name].tolist() == array.tolist() for name, array in WRITTEN.items())
    assert len(asked) == 1


def test_a_map_may_be_given_back_and_looked_at_again(tmp_path: Path) -> None:
    write(Folder(str(tmp_path)))
    with Arrays(Folder(str(tmp_path)), "some.bin") as arrays:
        words = arrays["words"]
        arrays.give_back()
        assert words.tolist() == WRITTEN["words"].tolist(), "pages are read again"
        assert not words.flags.writeable


@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, left: int) -> None:
    folder = Folder(str(tmp_path))
    write(folder)
    path = tmp_path / "some.bin"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(StoreError, match=f"{path}.*missing or incomplete; delete it"), Arrays(folder, "some.bin"):
        pass
    with pytest.raises(StoreError, match="missing or incomplete"), Arrays(folder, "other.bin"):
        pass


@pytest.mark.parametrize("place", [slice(-40, -30), slice(-16, -8)])
def test_a_file_whose_list_of_arrays_is_damaged_is_named(tmp_path: Path, place: slice) -> None:
    write(Folder(str(tmp_path)))
    path = tmp_path / "some.bin"
    data = bytearray(path.read_bytes())
    data[place] = b"\xff" * (place.stop - place.start)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="missing or incomplete"), Arrays(Folder(str(tmp_path)), "some.bin"):
        pass


def test_an_array_that_has_become_shorter_behind_a_url_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays_module, "SMALL", 100)
    folder = Folder(f"memory:/{tmp_path}")
    write(folder)
    with Arrays(folder, "some.bin") as arrays:
        folder.write("some.bin", folder.read("some.bin")[:100])
        with pytest.raises(StoreError, match=r"some\.bin: missing or incomplete"):
            arrays["words"]
