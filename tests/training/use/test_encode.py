"""A checkpoint as an object: its features are those of `wenlan-train embed`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from training.errors import InputError
from training.outputs.progress import Progress
from training.use.embed import embed_files
from training.use.encode import Encoder, open_encoder

TEXTS = ["红船", "山水相连。白云飞", "一只小猫在睡觉"]


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return open_encoder(checkpoint, "cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """20 pictures, more than a batch, in three formats and of different sizes."""
    generator, paths = np.random.default_rng(0), []
    for i in range(20):
        paths.append(tmp_path / f"{i}.{('png', 'jpg', 'webp')[i % 3]}")
        pixels = generator.integers(0, 256, (40 + i, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.slow
def test_features_are_those_of_embed_to_the_bit(
    checkpoint: Path, encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    out = tmp_path / "features.safetensors"
    embed_files(checkpoint, [str(path) for path in pictures], None, texts, out, device="cpu")
    tensors = load_file(out)
    assert (encoder.encode_image(pictures) == tensors["image_features"].numpy()).all()
    assert (encoder.encode_text(TEXTS) == tensors["text_features"].numpy()).all()
    cosines = encoder.similarity(pictures, TEXTS)
    assert np.allclose(cosines, (tensors["image_features"] @ tensors["text_features"].T).numpy(), atol=1e-6)
    assert cosines.shape == (20, 3)


def test_boxes_are_those_of_a_regions_file(
    checkpoint: Path, encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    boxes = [[[4, 2, 30, 40], [0, 0, 20, 20]], [[1, 1, 60, 30]]]
    rows = [{"image_id": path.name, "bbox": own} for path, own in zip(pictures, boxes, strict=False)]
    regions = tmp_path / "regions.jsonl"
    regions.write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "features.safetensors"
    embed_files(checkpoint, [str(path) for path in pictures[:2]], regions, None, out, device="cpu")
    with_boxes = encoder.encode_image(pictures[:2], boxes)
    assert (with_boxes == load_file(out)["image_features"].numpy()).all()
    assert not np.allclose(with_boxes, encoder.encode_image(pictures[:2]))


def test_a_picture_may_be_a_path_its_bytes_or_itself(encoder: Encoder, pictures: list[Path]) -> None:
    png = pictures[0]
    given = [png, str(png), png.read_bytes(), Image.open(png)]
    features = encoder.encode_image(given)
    assert (features == features[0]).all()
    assert encoder.encode_image(png).shape == encoder.encode_text(TEXTS[0]).shape == (1, encoder.width)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    cmyk = Image.open(png).convert("CMYK")
    assert encoder.encode_image([cmyk]).shape == (1, encoder.width)


def test_many_go_in_batches_under_a_bar(
    encoder: Encoder, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, int]] = []

    class Bar(Progress):
        def add(self, count: int) -> None:
            counted.append((self._what, count))
            super().add(count)

    monkeypatch.setattr("training.use.encode.Progress", Bar)
    images = encoder.encode_image(pictures, batch_size=7, progress=True)
    texts = encoder.encode_text(TEXTS, batch_size=2, progress=True)
    assert counted == [("pictures", 7), ("pictures", 7), ("pictures", 6), ("texts", 2), ("texts", 1)]
    assert np.allclose(images, encoder.encode_image(pictures), atol=1e-6)
    assert np.allclose(texts, encoder.encode_text(TEXTS), atol=1e-6)
    assert len(counted) == 5, "no bar where none is asked for"
    with pytest.raises(InputError, match=r"^batch_size: 0 is out of range"):
        encoder.encode_text(TEXTS, batch_size=0)


def test_a_model_says_in_five_lines_what_it_is(encoder: Encoder) -> None:
    first, *others = str(encoder).splitlines()
    assert first.startswith("<wenlan.Encoder: recipe tiny, ")
    assert len(others) == 4
    assert "64 x 64, 4 boxes of " in others[0]


def test_nothing_gives_no_rows(encoder: Encoder) -> None:
    assert encoder.encode_image([]).shape == encoder.encode_text([]).shape == (0, encoder.width)
    assert encoder.similarity([], TEXTS).shape == (0, 3)


def test_what_cannot_be_read_is_named(encoder: Encoder, pictures: list[Path], tmp_path: Path) -> None:
    broken = io.BytesIO(b"no picture").getvalue()
    with pytest.raises(InputError, match=r"^images\[1\]: "):
        encoder.encode_image([pictures[0], broken])
    with pytest.raises(InputError, match=r"gone\.jpg: No such file"):
        encoder.encode_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match=r"images\[0\]: got a int; give a path"):
        encoder.encode_image([7])  # type: ignore[list-item]
    with pytest.raises(InputError, match="boxes: 1 lists of boxes for 2 images"):
        encoder.encode_image(pictures[:2], [None])
