"""The two engines of the towers, and what they read, against `wenlan-train embed`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.serve.conftest import PICTURES
from training.data.transforms import UnreadableImage, sides
from training.errors import ConfigError
from training.outputs.checkpoint import Checkpoint, open_checkpoint
from training.serve import towers
from training.serve.towers import Features, InputReader, open_towers

TEXTS = ["红", "一张绿色的图片，远处有山", "blue", "山水" * 40]


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return open_checkpoint(tiny)


@pytest.mark.drill(15)
@pytest.mark.timeout(600)
def test_both_engines_compute_the_features_of_embed(
    checkpoint: Checkpoint, features: Callable[[str | bytes], Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InputReader(checkpoint, 1_000_000)
    pictures = [*(reader.picture(content) for content in PICTURES[:5]), *reader.region(PICTURES[5], [4, 4, 30, 30])]
    tokens = [reader.tokens(text) for text in TEXTS]
    wanted = np.stack([features(content) for content in PICTURES[:5]])
    by_torch, by_onnx = (open_towers(checkpoint, engine, "cpu") for engine in ("torch", "onnx"))  # type: ignore[arg-type]
    for engine in (by_torch, by_onnx):
        np.testing.assert_allclose(engine.encode_images(pictures)[:5], wanted, atol=1e-5)
        np.testing.assert_allclose(engine.encode_texts(tokens), np.stack([features(t) for t in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(by_onnx.encode_images(pictures), by_torch.encode_images(pictures), atol=1e-5)

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("exported twice")

    monkeypatch.setattr(towers.subprocess, "run", again)
    assert open_towers(checkpoint, "onnx", "cpu").encode_texts(tokens[:1]).shape == (1, 32)


def test_a_tower_without_regions_is_asked_by_the_crop(tmp_path: Path) -> None:
    from tests.training.conftest import moved_checkpoint

    reader = InputReader(open_checkpoint(moved_checkpoint(tmp_path, "data.max_boxes=0")), 1_000_000)
    [whole], [part] = reader.region(PICTURES[0], [0, 0, 48, 36]), reader.region(PICTURES[0], [0, 0, 24, 18])
    assert whole.boxes_R4.tolist() == part.boxes_R4.tolist() == [[0, 0, 64, 64]]
    assert np.abs(whole.pixels_3SS.astype(int) - part.pixels_3SS).max() > 10


def test_the_sides_of_a_picture_are_those_of_its_header_and_bounded() -> None:
    assert sides(PICTURES[0], 48 * 36) == (48, 36)
    with pytest.raises(UnreadableImage, match="48 x 36 pixels, more than the 1,727 allowed"):
        sides(PICTURES[0], 48 * 36 - 1)
    for content in (b"", b"%!PS-Adobe-3.0", PICTURES[0][:3]):
        with pytest.raises(UnreadableImage):
            sides(content, 10_000)


def test_an_engine_that_is_not_installed_is_named(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install .*\[onnx\]"):
        open_towers(checkpoint, "onnx", "cpu")
    assert isinstance(open_towers(checkpoint, "auto", "cpu"), towers.TorchTowers)
