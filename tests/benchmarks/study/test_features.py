"""Features are made of the drawings once, and made again when what they are made of changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.study import features
from tests.benchmarks.study.drawings import STYLES, Drawings
from tests.benchmarks.study.runs import tarballs_of


@pytest.mark.slow
def test_features_are_the_backbones_map_over_grid_and_whole(study_folder: Path, weights: Path, tmp_path: Path) -> None:
    style, tarballs = STYLES[0], tarballs_of(study_folder)
    drawings, backbone = Drawings(tarballs), features.Backbone(weights)
    key = features.key_of(style, tarballs, weights)
    assert features.load(tmp_path, style, key) is None
    features.make(tmp_path, style, key, drawings, {"1f400", "1f401", "1f402"}, backbone)
    made = features.load(tmp_path, style, key)
    assert made is not None
    assert made.codes == ("1f400", "1f401", "1f402")
    assert made.regions_NRC.shape == (3, features.REGIONS, features.CHANNELS)
    # The whole picture's region is close to the mean of the cells': both sample the same map evenly.
    whole, cells = made.regions_NRC[:, -1].astype(float), made.regions_NRC[:, :-1].astype(float).mean(1)
    assert np.corrcoef(whole.ravel(), cells.ravel())[0, 1] > 0.95
    for other in (weights.with_name("other.pth"), tmp_path / weights.name):  # another name; another content
        other.write_bytes(weights.read_bytes() + (b"" if other.name == "other.pth" else b"0"))
        assert features.load(tmp_path, style, features.key_of(style, tarballs, other)) is None
