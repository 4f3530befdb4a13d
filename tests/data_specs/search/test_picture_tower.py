"""picture_tower: towers with Chinese-CLIP's interface; test_queries has those of our own export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_specs.search.onnx_file import TowerFault
from data_specs.search.picture_tower import PictureTower, to_square
from data_specs.search.queries import TextQuery
from tests import towered
from tests.drawn import blobs

PICTURES = [blobs(1, (90, 70)), blobs(2, (64, 64)), blobs(3, (130, 200))]


SIDE, LENGTH = 32, 52


@pytest.fixture(scope="module")
def chinese_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small random Chinese-CLIP as its own exporter writes it (cn_clip/deploy/pytorch_to_onnx.py), and the model."""
    pytest.importorskip("onnxscript")
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(towered.VOCABULARY), "max_position_embeddings": LENGTH, "pad_token_id": 0}
    vision = {**small, "image_size": SIDE, "patch_size": 16}
    torch.manual_seed(0)
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()

    class Half(torch.nn.Module):
        def __init__(self, of_images: bool) -> None:
            super().__init__()
            self.model, self.of_images = model, of_images

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            if self.of_images:
                return _tensor(self.model.get_image_features(pixel_values=given))
            return _tensor(self.model.get_text_features(input_ids=given, attention_mask=given.ne(0).long()))

    padded = torch.tensor([[2, 5, 3, *[0] * (LENGTH - 3)]])
    folder = tmp_path_factory.mktemp("chinese_clip")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in towered.VOCABULARY), "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about this exporter, which is the one that cn_clip has
        for half, name, out, example, free in (
            (True, "image", "img", torch.zeros(1, 3, SIDE, SIDE), {"image": {0: "batch"}}),
            (False, "text", "txt", padded, {}),
        ):
            names = {"input_names": [name], "output_names": [f"unnorm_{name}_features"], "dynamic_axes": free}
            torch.onnx.export(
                Half(half).eval(), (example,), folder / f"{out}.onnx", opset_version=17, dynamo=False, **names
            )
    return folder, model


def _tensor(features: Any) -> Any:
    """What transformers return for features: a tensor, of version 5 on an output that has one."""
    return features if hasattr(features, "norm") else features.pooler_output


@pytest.mark.slow
def test_towers_with_chinese_clips_interface_have_the_vectors_of_transformers(chinese_clip: tuple[Path, Any]) -> None:
    import torch
    from transformers import BertTokenizer, ChineseCLIPImageProcessor

    folder, model = chinese_clip
    tower = PictureTower.foreign(folder / "img.onnx", SIDE, *_clip(), "bicubic", threads=1)
    query = TextQuery.foreign(folder / "txt.onnx", folder / "vocab.txt", LENGTH, threads=1)
    processor = ChineseCLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    prepared = processor([Image.fromarray(picture) for picture in PICTURES], return_tensors="pt")
    texts = ["红色的图一", "绿 blue 图", "长" * 90, ""]
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokens = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    with torch.no_grad():
        images = _tensor(model.get_image_features(pixel_values=prepared["pixel_values"]))
        words = _tensor(model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]))
    for features, expected in ((tower.encode(PICTURES), images), (query.encode(texts), words)):
        unit = torch.nn.functional.normalize(expected, dim=-1).numpy()
        assert (features * unit).sum(1) == pytest.approx(np.ones(len(unit)), abs=1e-4)
    assert (tower.width, query.width) == (16, 16)


def _clip() -> tuple[Any, Any]:
    from data_specs.build import PairScore

    options = PairScore(image="i.onnx", text="t.onnx")
    return options.mean, options.std


def test_a_tower_that_fixes_its_batch_gets_it_filled_up(tmp_path: Path) -> None:
    model = towered.image_tower()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    (tmp_path / "two.onnx").write_bytes(model.SerializeToString())
    towered.written(tmp_path)
    own = [
        PictureTower.foreign(tmp_path / name, 16, (0, 0, 0), (1, 1, 1), "bilinear")
        for name in ("two.onnx", "image.onnx")
    ]
    fixed, free = (tower.encode(PICTURES) for tower in own)
    assert fixed.shape == (3, 3)
    assert np.abs(fixed - free).max() < 1e-6
    assert own[0].encode([]).shape == (0, 3)


def test_a_picture_that_was_squared_before_has_the_same_inputs(tmp_path: Path) -> None:
    """Squares and numbers are those of Pillow and NumPy, wherever each of the two is done."""
    towered.written(tmp_path)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    tower = PictureTower.foreign(tmp_path / "image.onnx", towered.SIDE, mean, std, "bicubic", 1)
    made = tower.prepare([to_square(own, towered.SIDE, "bicubic") for own in PICTURES])
    assert np.array_equal(made, tower.prepare(PICTURES))
    sides = (towered.SIDE, towered.SIDE)
    pixels = np.stack([np.asarray(Image.fromarray(own).resize(sides, Image.Resampling.BICUBIC)) for own in PICTURES])
    scaled = (pixels.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(made, scaled, atol=1e-5)


@pytest.mark.parametrize(
    "about",
    [
        {"max_boxes": "-1"},
        {"max_boxes": "100000000"},
        {"image_size": "-5"},
        {"image_size": "100000"},  # 30 GB of a picture
        {"pixel_std": "[0, 0, 0]"},
        {"pixel_mean": "[" * 5_000},
    ],
)
def test_a_tower_whose_metadata_are_nonsense_is_one_line(tmp_path: Path, about: dict[str, str]) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(towered.image_tower(name="images", **towered.own_about()).SerializeToString())
    assert PictureTower.open(path).encode(PICTURES).shape == (3, 3)
    path.write_bytes(towered.image_tower(name="images", **towered.own_about() | about).SerializeToString())
    with pytest.raises(TowerFault, match=r"x.onnx: its metadata cannot be used \(") as raised:
        PictureTower.open(path)
    assert "\n" not in str(raised.value)


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    towered.written(tmp_path)
    tower = PictureTower.foreign(tmp_path / "image.onnx", 16, (0, 0, 0), (1, 1, 1), "bilinear")
    with pytest.raises(ValueError, match="features that are zero, or not finite"):
        tower.encode([np.zeros((20, 20, 3), np.uint8)])
