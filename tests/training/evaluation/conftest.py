"""A tiny checkpoint with random weights, labelled images and boxes, for the tests of all tasks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation.labelled import EvaluationData
from training.evaluation.results import Result
from training.evaluation.tasks import Request, task

CLASSES = {"mountain": ["山", "高山"], "water": ["水"], "flower": ["花"], "bird": ["鸟", "小鸟"]}
COLOURS = {"mountain": (90, 70, 50), "water": (40, 90, 200), "flower": (220, 60, 120), "bird": (230, 200, 40)}

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def checkpoint(checkpoint_with_moved_keys: Path) -> Path:
    """The tiny checkpoint; tests only read it."""
    return checkpoint_with_moved_keys


def picture(name: str, number: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """A JPEG of the colour of a class, with noise that tells its number."""
    rng = np.random.default_rng([sorted(CLASSES).index(name), number])
    pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 40, (6, 6, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of four classes, 12 images each in train and 5, 4, 3 and 2 in val."""
    root = tmp_path_factory.mktemp("labelled")
    for split, first, counts in (("train", 0, (12, 12, 12, 12)), ("val", 100, (5, 4, 3, 2))):
        for name, count in zip(CLASSES, counts, strict=True):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i:02d}.jpg").write_bytes(picture(name, first + i))
    (root / "classes.json").write_text(json.dumps(CLASSES), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's JSON over six pictures with three coloured boxes each."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(3)
    (root / "images").mkdir()
    names, annotations = list(CLASSES), []
    for number in range(6):
        image = Image.new("RGB", (120, 80), (255, 255, 255))
        for slot in range(3):
            name = names[int(rng.integers(4))]
            x, y, side = slot * 40 + 3, int(rng.integers(5, 40)), int(rng.integers(18, 34))
            image.paste(COLOURS[name], (x, y, x + side, y + side))
            mark = {"image_id": number, "bbox": [x, y, side, side], "category_id": names.index(name), "iscrowd": 0}
            annotations.append(mark)
        image.save(root / "images" / f"{number}.jpg", quality=95)
    annotations.append({"image_id": 0, "bbox": [0, 0, 100, 70], "category_id": 0, "iscrowd": 1})
    described = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(6)],
        "annotations": annotations,
        "categories": [{"id": n, "name": CLASSES[name][0]} for n, name in enumerate(names)],
    }
    (root / "instances.json").write_text(json.dumps(described), encoding="utf-8")
    return root / "instances.json"


@pytest.fixture
def run(checkpoint: Path) -> Run:
    """run(task, *data, split="val", labels=None, classes=None, **more) of the tiny checkpoint."""

    def run(name: str, *data: object, split: str = "val", labels: Path | None = None, **more: object) -> Result:
        classes = more.pop("classes", None)
        assert classes is None or isinstance(classes, Path)
        source = EvaluationData(tuple(map(str, data)), labels, classes)
        return task(name).run(Request(checkpoint, source, split, **more))  # type: ignore[arg-type]

    return run
