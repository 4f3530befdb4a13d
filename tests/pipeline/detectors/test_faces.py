"""The detector `faces`: what its id names, and that all boxes are kept, of all pictures at which it could look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.detectors import Detector
from pipeline.errors import DetectorError
from pipeline.plugins import configure
from tests.drawn import with_faces


def faces(**options: object) -> Detector:
    return configure("detectors", "faces", dict(options), Detector)


def test_its_boxes_are_those_of_the_pictures_faces_and_never_a_whole_picture() -> None:
    detector = faces()
    state = detector.load()
    none, two, whole = detector.detect(
        state, [with_faces(), with_faces((40, 60, 120), (230, 100, 140)), with_faces((0, 0, 240), size=(240, 240))]
    )
    assert [len(scores) for _, scores, _ in (none, two, whole)] == [0, 2, 1]
    assert two[2].tolist() == [0, 0]
    assert (whole[0] < 240).all()
    assert whole[0].dtype == np.float32


def test_its_id_follows_what_finds_and_not_where_it_lies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "yunet.onnx").write_bytes(b"weights")
    ids = [faces(weights="yunet.onnx", base=str(tmp_path / folder)).detector_id for folder in ("a", "b")]
    assert ids[0] == ids[1] != faces().detector_id
    assert faces(side=640).detector_id != faces().detector_id
    with pytest.raises(DetectorError, match=r"gone\.onnx: cannot be read"):
        _ = faces(weights="gone.onnx", base=str(tmp_path)).detector_id
    with pytest.raises(DetectorError, match=r"yunet\.onnx: not a YuNet face detector"):
        faces(weights="yunet.onnx", base=str(tmp_path / "a")).load()
