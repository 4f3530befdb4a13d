"""torchvision: a local file of weights, boxes that do not depend on the batch, and messages for wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.detectors.torchvision import TorchVision, _on_threads
from pipeline.errors import DetectorError


@pytest.mark.drill(14)
def test_torchvision_takes_a_local_file_and_names_a_wrong_one(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    wrong = tmp_path / "wrong.safetensors"
    save_file({"other.weight": torch.zeros(2)}, wrong)
    with pytest.raises(DetectorError, match=r"wrong\.safetensors: contains no weights of this model .*Missing key"):
        TorchVision(weights=str(wrong)).load()
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DetectorError, match=r"code\.pth: contains no weights of this model"):
        TorchVision(weights=str(tmp_path / "code.pth")).load()
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    detector = TorchVision(weights=str(tmp_path / "w.safetensors"), labels=2, side=64, longest=96)
    state = detector.load()
    rng = np.random.default_rng(0)
    shown = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((60, 90), (90, 60))]
    together = detector.detect(state, shown)
    model.eval()
    with torch.inference_mode(), _on_threads(1):
        theirs = model([torch.from_numpy(shown[1]).permute(2, 0, 1).float() / 255])[0]
    assert len(together[1][0]) > 0
    assert together[1][0] == pytest.approx(theirs["boxes"].numpy(), abs=1e-3)
    assert detector.detect(state, shown[1:])[0][0] == pytest.approx(together[1][0], abs=1e-3)
    assert detector.detector_id != TorchVision().detector_id
