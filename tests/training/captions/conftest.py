"""A tiny checkpoint, pictures whose captions name their colour, and a small captioner's settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.conftest import moved_checkpoint

COLOURS = {"红": (200, 20, 20), "绿": (20, 180, 20), "蓝": (20, 20, 200), "黄": (220, 220, 20)}


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of recipe tiny with random weights."""
    return moved_checkpoint(tmp_path_factory.mktemp("towers"), detector="grid")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `test`: plain pictures with one or two captions that name the colour."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 44), ("test", 8)):
        (root / split).mkdir()
        for number in range(count):
            name, colour = list(COLOURS.items())[number % 4]
            pixels = np.clip(np.array(colour) + generator.integers(-20, 21, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number:02d}.jpg", quality=95)
            captions = (
                [f"一面{name}色的墙。", f"{name}色"] if split == "test" or number % 8 < 4 else [f"一面{name}色的墙。"]
            )
            (root / split / f"{number:02d}.txt").write_text("\n".join(captions), encoding="utf-8")
    return root
