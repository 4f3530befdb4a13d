"""_yolox: suppression and the letterbox, against torchvision and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.detectors.onnx import letterbox, nms


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.45, 0.7]))
@settings(max_examples=40, deadline=None)
def test_suppression_agrees_with_torchvision(seed: int, overlap: float) -> None:
    import torch
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 50, (40, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(40).astype(np.float32) / 40
    labels = rng.integers(0, 3, 40)
    theirs = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), overlap)
    assert nms(boxes, scores, labels, overlap).tolist() == theirs.tolist()


def test_the_letterbox_is_top_left_on_grey() -> None:
    red = np.full((50, 100, 3), (255, 0, 0), np.uint8)
    square, scale = letterbox(red, 64, 64)
    assert scale == 0.64
    assert square.shape == (64, 64, 3)
    assert square[10, 10].tolist() == [255, 0, 0]
    assert square[40, 10].tolist() == [114, 114, 114]
