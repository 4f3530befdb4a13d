"""Ready arrays that are not as they must be are refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.tokenizer import load_tokenizer
from training.errors import InputError
from training.moco import BriVL
from training.outputs.checkpoint import RunState, save
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.use.embed import embed_arrays

BOXES = [[4, 2, 30, 40], [0, 0, 20, 20], [30, 10, 60, 50], [8, 8, 16, 16], [1, 2, 3, 4], [9, 9, 50, 60]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, 4 boxes at most, 64 x 64 pixels, that was trained on a detector's boxes."""
    torch.manual_seed(0)
    config = resolve("tiny")
    model = BriVL(config)
    state = RunState(1, 8, 0, (), (), "onnx-x")
    folder = tmp_path_factory.mktemp("run")
    return save(folder, model, build_optimizer(model, config.optim), config, load_tokenizer("gb2312"), state, 1)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """64 x 64 PNG files: no resize, no loss."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{i}.png" for i in range(3)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


def arrays_of(pictures: list[Path], boxes: list[list[int]], text: str) -> dict[str, Any]:
    pixels = np.stack([np.asarray(Image.open(p), dtype=np.float64).transpose(2, 0, 1) / 255 for p in pictures])
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    count = len(pictures)
    given = np.zeros((count, len(boxes) + 3, 4), dtype=np.float32)
    given[:, : len(boxes) + 1] = [*boxes, [0, 0, 64, 64]]
    ids = load_tokenizer("gb2312").encode(text, 16)
    return {
        "images": ((pixels - mean) / std).astype(np.float32),
        "boxes": given,
        "n_boxes": np.full(count, len(boxes) + 1),
        "input_ids": np.array([[*ids, 0, 0]] * count),
        "n_tokens": np.full(count, len(ids)),
    }


def _with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {**arrays, **changes}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: {"pictures": a["images"]}, "none of the arrays images, boxes"),
        (lambda a: {k: v for k, v in a.items() if k != "boxes"}, "lacks the array boxes"),
        (lambda a: {k: v for k, v in a.items() if k != "n_tokens"}, "lacks the array n_tokens"),
        (lambda a: {**a, "images": a["images"][:, :, :5]}, r"images: \[3, 3, 5, 64\] is not \[B, 3, S, S\]"),
        (lambda a: {**a, "images": a["images"] * np.nan}, "images: NaN or infinity in it"),
        (lambda a: {**a, "boxes": a["boxes"][:2]}, r"boxes: .* is not \[3, R, 4\]"),
        (_with(images=np.zeros((3, 3, 64, 64), np.uint8)), "images: uint8 are not normalised floats"),
        (_with(n_boxes=np.array([0, 1, 1])), "n_boxes: 0 to 1 is not within 1 to 4"),
        (_with(n_tokens=np.array([1, 2, 9])), "n_tokens: 1 to 9 is not within 1 to 5"),
        (_with(n_tokens=np.array([1.0, 2, 3])), "n_tokens: float64 are not whole numbers"),
        (_with(input_ids=np.full((3, 5), 9999)), "input_ids: 9999 is beyond the 8192 tokens"),
        (_with(input_ids=np.full((3, 65), 1)), "input_ids: 65 tokens, the tower has 64 positions"),
        (_with(input_ids=np.full((3, 5), -1)), "input_ids: a number below 0"),
        (_with(images=np.array([object()])), r"not an .npz file of plain arrays \(Object arrays"),
    ],
)
def test_wrong_arrays_are_refused_in_one_sentence(
    checkpoint: Path,
    pictures: list[Path],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    sentence: str,
) -> None:
    file = tmp_path / "in.npz"
    np.savez(file, **change(arrays_of(pictures, BOXES[:1], "红")), allow_pickle=True)
    with pytest.raises(InputError, match=sentence) as caught:
        embed_arrays(checkpoint, file, tmp_path / "out.npz")
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_refused_in_one_sentence(checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"in.npz: not an .npz file of plain arrays"):
        embed_arrays(checkpoint, tmp_path / "in.npz", tmp_path / "out.npz")
