"""The towers against timm, torchvision and transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.backbones import stages
from training.config import Config, resolve
from training.errors import ConfigError
from training.moco import BriVL
from training.records import Batch
from training.towers import Tower, build_tower

BERT = (
    "text.encoder=bert_text",
    "text.backbone_layers=3",
    "text.frozen_layers=2",
    "text.backbone_heads=4",
    "text.backbone_ffn=48",
    "text.vocab_size=60",
)


def batch_of(images: Tensor, boxes: Tensor, n_boxes: list[int], tokens: list[list[int]]) -> Batch:
    size, length = len(images), max(len(row) for row in tokens)
    ids = torch.arange(size)
    padded = torch.tensor([row + [0] * (length - len(row)) for row in tokens])
    counts = torch.tensor([len(row) for row in tokens])
    every = torch.ones(size, dtype=torch.bool)
    return Batch(images, boxes, torch.tensor(n_boxes), padded, counts, ids, ids, ids, every)


def one_image(size: int = 64, boxes: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
    corners = torch.rand(1, boxes, 2, 2, generator=generator) * size
    boxes_BR4 = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    boxes_BR4[0, -1] = torch.tensor([0.0, 0.0, size, size])
    return batch_of(pixels, boxes_BR4, [boxes], [[2, 5, 6, 3]])


def build(modality: str, *overrides: str, load_weights: bool = True) -> tuple[Tower, Config]:
    torch.manual_seed(0)
    config = resolve("tiny", overrides)
    tower = build_tower("image" if modality == "image" else "text", config, load_weights=load_weights)
    return tower.double().eval(), config


def test_stages_in_order_are_timms_forward_features() -> None:
    import timm

    torch.manual_seed(0)
    parts, channels = stages("timm/test_efficientnet", "")
    torch.manual_seed(0)
    whole = timm.create_model("test_efficientnet", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = whole.forward_features(x)
    for _, stage in parts:
        x = stage.eval()(x)
    assert x.shape[1] == channels
    assert torch.allclose(x, expected, atol=1e-6)


def test_uint8_is_normalised_as_torchvision_does() -> None:
    from torchvision.transforms.v2.functional import normalize, to_dtype

    tower, _ = build("image")
    batch = one_image()
    floats = normalize(
        to_dtype(batch.images_B3HW, torch.float64, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    assert torch.allclose(tower(batch), tower(replace(batch, images_B3HW=floats)), atol=1e-6)


def test_the_order_of_boxes_does_not_matter() -> None:
    tower, _ = build("image")
    batch = one_image(boxes=4)
    turned = replace(batch, boxes_BR4=batch.boxes_BR4.flip(1))
    assert torch.allclose(tower(turned), tower(batch), atol=1e-10)


@pytest.mark.parametrize("encoder", [(), BERT], ids=["char_text", "bert_text"])
def test_padding_does_not_change_a_caption(encoder: tuple[str, ...]) -> None:
    tower, _ = build("text", *encoder)
    pixels, boxes = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 1, 4)
    short, long = [2, 5, 3], [2, 7, 8, 9, 10, 11, 3]
    both = tower(batch_of(pixels, boxes, [1, 1], [short, long]))
    alone = tower(batch_of(pixels[:1], boxes[:1], [1], [short]))
    assert torch.allclose(both[0], alone[0], atol=1e-10)


def test_compat_moves_the_regions_features() -> None:
    right, _ = build("image", "data.image_size=160")
    released, _ = build("image", "data.image_size=160", "compat=brivl-1.0")
    batch = one_image(160, boxes=4)
    assert not torch.allclose(right(batch), released(batch), atol=1e-4)


def test_a_bert_folder_is_read_and_is_transformers_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    theirs = BertModel(
        BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
        ),
        add_pooling_layer=False,
    ).eval()
    theirs.save_pretrained(tmp_path)
    tower, config = build("text", *BERT, f"text.weights={tmp_path}")
    tokens = [[2, 5, 6, 3], [2, 9, 3]]
    batch = batch_of(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 1, 4), [1, 1], tokens)
    seen: list[Tensor] = []
    backbone = tower.trunk.get_submodule("backbone")
    backbone.register_forward_hook(lambda _m, _i, out: seen.append(out))
    tower(batch)
    mask = batch.token_ids_BL != 0
    expected = theirs.double()(input_ids=batch.token_ids_BL, attention_mask=mask.long()).last_hidden_state
    assert torch.allclose(seen[0][mask], expected[mask], atol=1e-9)
    frozen = list(tower.prefix.parameters())
    assert len(frozen) == 5 + 2 * 16
    assert not any(p.requires_grad for p in frozen)
    with pytest.raises(ConfigError, match=r"^text\.backbone_ffn: 64, but the weights .* have 48$"):
        build_tower("text", replace(config, text=replace(config.text, backbone_ffn=64)), load_weights=True)


def test_local_cnn_weights_are_loaded_and_a_misfit_is_one_line(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(weights=None).eval()
    old = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    good = tmp_path / "mobilenet.pth"
    torch.save(old, good)
    parts, channels = stages("torchvision/mobilenet_v2", str(good))
    x = torch.randn(1, 3, 64, 64)
    ours = nn.Sequential(*(stage for _, stage in parts)).eval()
    assert channels == 1280
    assert torch.allclose(ours(x), theirs.features(x), atol=1e-6)

    with pytest.raises(ConfigError, match=rf"^{re.escape(str(good))}: does not fit the backbone: \d+ keys differ"):
        stages("timm/test_efficientnet", str(good))
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(cut))}: not a file of weights") as caught:
        stages("torchvision/mobilenet_v2", str(cut))
    assert "\n" not in str(caught.value)


def test_weights_are_not_wanted_where_a_checkpoint_follows() -> None:
    config = resolve("tiny", ["image.weights=gone/away.pth", *BERT, "text.weights=gone/away"])
    BriVL(config, load_weights=False)
    with pytest.raises(ConfigError, match=r"^gone/away.pth: no such file"):
        BriVL(config)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "image.encoder=cnn_region",
            "image.encoder: no encoder 'cnn_region'; there are bert_text, char_text, cnn_regions",
        ),
        ("image.encoder=char_text", "image.encoder: char_text encodes text"),
        ("image.backbone=timm/resnet18", "image.backbone: timm's resnet18 is no EfficientNet"),
        ("image.backbone=timm/nothing", "image.backbone: timm knows no model 'nothing'"),
        ("image.backbone=b5", "image.backbone: 'b5' is neither timm/NAME nor torchvision/mobilenet_v2"),
        ("image.frozen_stages=8", "image.frozen_stages: timm/test_efficientnet has 7 stages, not 8"),
    ],
)
def test_a_wrong_image_tower_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("image", override)
    assert str(caught.value) == line


def test_b5_base_has_the_released_sizes() -> None:
    config = resolve("brivl_b5_base", ["image.weights=", "text.weights="])
    with torch.device("meta"):
        image = build_tower("image", config, load_weights=False)
        text = build_tower("text", config, load_weights=False)
    image_backbone = sum(p.numel() for p in image.prefix.parameters()) + sum(
        p.numel() for p in image.trunk.get_submodule("backbone").parameters()
    )
    # 143.7M and 130.1M in the release, whose classifier and pooler, which BriVL does not use, we leave out
    classifier, pooler = 2048 * 1000 + 1000, 768 * 768 + 768
    assert sum(p.numel() for p in image.parameters()) + classifier == pytest.approx(143.7e6, rel=0.001)
    assert sum(p.numel() for p in text.parameters()) + pooler == pytest.approx(130.1e6, rel=0.001)
    assert image_backbone == pytest.approx(28.3e6, rel=0.01)
    assert sum(p.numel() for p in image.prefix.parameters()) == pytest.approx(0.46e6, rel=0.02)
    assert sum(p.numel() for p in text.prefix.parameters()) == pytest.approx(73.3e6, rel=0.001)
