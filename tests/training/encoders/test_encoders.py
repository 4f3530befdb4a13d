"""What holds for every encoder: how it is found, its precision, its sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training.conftest import BERT
from training.config import Config
from training.encoders import build_tower
from training.errors import ConfigError
from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.towers.backbones import load_backbone
from training.towers.tower import Tower


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


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "image.encoder=cnn_region",
            "image.encoder: unknown encoder 'cnn_region'; "
            "available: bert_text, char_text, clip_image, clip_text, cnn_regions, "
            "or a module of another package or an entry point",
        ),
        ("image.encoder=char_text", "image.encoder: char_text is an encoder of texts"),
        (
            "image.backbone=timm/resnet_18",
            "image.backbone: unknown timm model 'resnet_18'; did you mean resnet18 or resnetv2_18 or resnet18d?",
        ),
        (
            "image.patch_dropout=0.5",
            "image.patch_dropout: a region is the mean of all its patches; use clip_image",
        ),
        ("image.backbone=timm/nothing", "image.backbone: unknown timm model 'nothing'"),
        ("image.backbone=b5", "image.backbone: 'b5' is neither timm/NAME nor torchvision/mobilenet_v2"),
        (
            "image.frozen_stages=8",
            "image.frozen_stages: 8 exceeds the 7 stages of timm/test_efficientnet "
            "(stem, blocks_0, blocks_1, blocks_2, blocks_3, blocks_4, head)",
        ),
    ],
)
def test_a_wrong_image_tower_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("image", override)
    assert str(caught.value) == line


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [(), BERT], ids=["char_text", "bert_text"])
def test_bf16_is_near_fp32_and_features_stay_float32(encoder: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = BriVL(resolve("tiny", [*encoder, "moco.queue_size=8"])).eval()
    batch = replace(one_image(boxes=4), token_ids_BL=torch.tensor([[2, 5, 6, 3]]))
    exact = model.features(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.features(batch)
        loss = model.loss(rough).loss
    for ours, theirs in ((rough.image_BD, exact.image_BD), (rough.text_BD, exact.text_BD)):
        assert ours.dtype == torch.float32
        assert (ours * theirs).sum() > 0.99
        assert not torch.equal(ours, theirs)
    assert loss.dtype == torch.float32


def test_char_text_has_positions_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"^text\.position_embedding: char_text already has position embeddings$"):
        BriVL(resolve("tiny", ["text.position_embedding=true"]))


# --- the image tower: its prefix, its boxes, its pixels


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frozen"), [("test_resnet", 2), ("test_convnext", 1), ("test_vit", 3)])
def test_frozen_stages_of_every_family_are_the_prefix_and_the_rest_trains(name: str, frozen: int) -> None:
    config = resolve("tiny", [f"image.backbone=timm/{name}", f"image.frozen_stages={frozen}"])
    model = BriVL(config).train()
    output = model(one_image(boxes=2))
    output.loss.backward()
    backbone = load_backbone(f"timm/{name}", "", 64)
    assert list(model.image_query.prefix.get_submodule("backbone")) == [n for n, _ in backbone.stages[:frozen]]
    assert not any(p.requires_grad for p in model.image_query.prefix.parameters())
    trained = [p for n, p in model.image_query.trunk.named_parameters() if n.startswith("backbone.")]
    assert trained
    assert all(p.grad is not None for p in trained)


@pytest.mark.slow
def test_a_backbone_frozen_whole_is_all_prefix() -> None:
    tower, _ = build("image", "image.backbone=timm/test_nfnet", "image.frozen_stages=1")
    assert not list(tower.trunk.get_submodule("backbone").parameters())
    assert tower(one_image(boxes=3)).shape == (1, 32)


def test_uint8_is_normalised_as_torchvision_does() -> None:
    from torchvision.transforms.v2.functional import normalize, to_dtype

    tower, _ = build("image")
    batch = one_image()
    floats = normalize(
        to_dtype(batch.images_B3HW, torch.float64, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    assert torch.allclose(tower(batch), tower(replace(batch, images_B3HW=floats)), atol=1e-6)


@pytest.mark.slow
def test_padding_boxes_send_no_gradient_into_the_map() -> None:
    tower, _ = build("image")
    trunk, batch = tower.trunk, one_image(boxes=3)
    padded = replace(batch, boxes_BR4=torch.cat([batch.boxes_BR4, torch.zeros(1, 2, 4)], dim=1))
    gradients = []
    for given in (batch, padded):
        map_BCHW = tower.prefix(given).requires_grad_()
        trunk(map_BCHW, given)[0, 0].backward()
        assert map_BCHW.grad is not None
        gradients.append(map_BCHW.grad)
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)
