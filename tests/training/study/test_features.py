"""Features are made of the drawings once, and made again when what they are made of changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.study import features
from training.study.drawings import STYLES, Drawings
from training.study.runs import tarballs_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the backbone."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    model = mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 2.5)  # without it a random network's map is all but zero
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(model.state_dict(), path)
    return path


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
    assert made.pixels_N3HW.shape == (3, 3, features.SMALL, features.SMALL)
    # The whole picture's region is close to the mean of the cells': both sample the same map evenly.
    whole, cells = made.regions_NRC[:, -1].astype(float), made.regions_NRC[:, :-1].astype(float).mean(1)
    assert np.corrcoef(whole.ravel(), cells.ravel())[0, 1] > 0.95
    for other in (weights.with_name("other.pth"), tmp_path / weights.name):  # another name; another content
        other.write_bytes(weights.read_bytes() + (b"" if other.name == "other.pth" else b"0"))
        assert features.load(tmp_path, style, features.key_of(style, tarballs, other)) is None


def test_a_file_that_was_not_finished_counts_for_nothing(study_folder: Path, tmp_path: Path) -> None:
    style, tarballs = STYLES[0], tarballs_of(study_folder)
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"w")
    key = features.key_of(style, tarballs, weights)
    (tmp_path / "noto.json").write_text(json.dumps({"key": key, "codes": ["1f400"]}))
    assert features.load(tmp_path, style, key) is None


def test_weights_that_are_named_by_their_digest_keep_the_keys_that_they_had(tmp_path: Path) -> None:
    path = tmp_path / f"net-{hashlib.sha256(b'w').hexdigest()[:8]}.pth"
    path.write_bytes(b"w")
    assert features.weights_id(path) == path.name
    assert features.weights_id(tmp_path / "none.pth") == "none.pth"


def test_the_grid_has_its_cells_in_reading_order_and_the_whole_last():
    assert features.grid_boxes(8, 2).tolist() == [[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8], [0, 0, 8, 8]]
