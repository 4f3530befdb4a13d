"""onnx_file: what a file may refer to, and that its digest covers it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from data_specs.search import onnx_file
from data_specs.search.onnx_file import TowerFault, check_onnx_file, open_onnx_file
from tests import towered


def saved_beside(path: Path, name: str) -> None:
    """A tower whose weights lie in another file, as exporters write it (onnx.save_model)."""
    model = towered.image_tower(width=64)
    onnx.save_model(model, path, save_as_external_data=True, location=name, size_threshold=0)


@pytest.mark.parametrize("suffix", onnx_file.BESIDE)
def test_weights_may_lie_in_the_one_file_beside_and_count_in_the_digest(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "m.img.fp16.onnx"
    saved_beside(path, f"{path.name}{suffix}")
    file = check_onnx_file(path)
    model = open_onnx_file(file, threads=1)
    given = np.ones((2, 3, towered.SIDE, towered.SIDE), np.float32)
    assert model.session.run(None, {"image": given})[0].shape == (2, 64)
    assert model.inputs == {"image": ("tensor(float)", (0, 3, towered.SIDE, towered.SIDE))}
    beside = tmp_path / f"{path.name}{suffix}"
    beside.write_bytes(beside.read_bytes()[:-4] + b"\0\0\x80?")
    assert check_onnx_file(path).sha256 != file.sha256
    beside.unlink()
    with pytest.raises(TowerFault, match=rf"{beside.name}: cannot be read \(No such file"):
        check_onnx_file(path)


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    saved_beside(tmp_path / "m.onnx", "other.bin")
    with pytest.raises(TowerFault, match=r"m.onnx: keeps weights in 'other.bin'; only m.onnx.extra_file or m"):
        check_onnx_file(tmp_path / "m.onnx")


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    saved_beside(path, "m.onnx.data")
    monkeypatch.setattr(onnx_file, "MOST_BESIDE", 8)
    with pytest.raises(TowerFault, match=r"m.onnx.data: is larger than"):
        check_onnx_file(path)
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 8)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it is read"))
    with pytest.raises(TowerFault, match=r"m.onnx: is larger than"):
        check_onnx_file(path)
