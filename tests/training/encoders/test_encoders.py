"""The towers against timm, torchvision and transformers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.config import Config
from training.encoders import build_tower
from training.errors import ConfigError
from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.towers.backbones import load_backbone
from training.towers.tower import Tower

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


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_efficientnet", "stem blocks_0 blocks_1 blocks_2 blocks_3 blocks_4 head"),
        ("mobilenetv3_small_050", "stem blocks_0 blocks_1 blocks_2 blocks_3 blocks_4 blocks_5"),
        ("test_resnet", "stem layer1 layer2 layer3 layer4"),
        ("regnetx_002", "stem s1 s2 s3 s4 final_conv"),
        ("test_convnext", "stem stages_0 stages_1 stages_2 stages_3"),
        ("test_vit", "stem block_0 block_1 block_2 block_3 block_4 block_5 norm"),
        (
            "test_vit4",
            "stem block_0 block_1 block_2 block_3 block_4 block_5 block_6 block_7 block_8 norm",
        ),  # with register tokens
        ("test_mambaout", "whole"),  # channels last
        ("test_vit_relpos", "whole"),  # tokens, none of them for a class
        ("test_nfnet", "whole"),
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


def small_model(model_type: str, folder: Path, **options: object) -> nn.Module:
    """A model of transformers in the sizes of BERT above, saved as a user would find it on the hub."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    for name, value in (sizes | options).items():
        setattr(config, name, value)
    model: nn.Module = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def states_of(tower: Tower, batch: Batch) -> Tensor:
    """What the tower's backbone says of each token."""
    seen: list[Tensor] = []
    hook = tower.trunk.get_submodule("backbone").register_forward_hook(lambda _m, _i, out: seen.append(out))
    tower(batch)
    hook.remove()
    return seen[0]


def text_batch(*tokens: list[int]) -> Batch:
    count = len(tokens)
    images = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    return batch_of(images, torch.zeros(count, 1, 4), [1] * count, list(tokens))


@pytest.mark.parametrize(
    ("model_type", "options", "frozen"),
    [
        ("bert", {}, 2),
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-5}, 0),
        ("roberta", {"type_vocab_size": 1}, 2),
        ("ernie", {}, 1),
        ("electra", {"embedding_size": 16}, 3),
        ("distilbert", {"hidden_dim": 40}, 1),
        ("albert", {"embedding_size": 16}, 0),  # its layers are one layer: whole
        ("deberta-v2", {}, 3),  # relative positions: whole, here frozen
    ],
)
def test_a_folder_of_transformers_is_read_and_computes_what_transformers_does(
    tmp_path: Path, model_type: str, options: dict[str, object], frozen: int
) -> None:
    theirs = small_model(model_type, tmp_path, **options).double()
    overrides = [*BERT, f"text.backbone={model_type}", f"text.weights={tmp_path}", f"text.frozen_layers={frozen}"]
    if options:
        overrides.append(f"text.backbone_options={json.dumps(options)}")
    tower, _ = build("text", *overrides)
    batch = text_batch([2, 5, 6, 7], [2, 9, 7])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    expected = theirs(input_ids=batch.token_ids_BL, attention_mask=mask.long()).last_hidden_state
    assert torch.allclose(states_of(tower, batch)[mask], expected[mask], atol=1e-9)
    assert any(True for _ in tower.prefix.parameters()) == (frozen > 0)
    assert not any(p.requires_grad for p in tower.prefix.parameters())


def test_a_frozen_bert_is_its_embeddings_and_leading_layers(tmp_path: Path) -> None:
    small_model("bert", tmp_path)
    tower, _ = build("text", *BERT, f"text.weights={tmp_path}")
    assert len(list(tower.prefix.parameters())) == 5 + 2 * 16
    assert tower.stages == ("backbone.layer.0",)


def test_weights_of_another_architecture_say_which_overrides_fit(tmp_path: Path) -> None:
    small_model("electra", tmp_path, embedding_size=16, hidden_act="relu")
    asked = [*BERT, f"text.weights={tmp_path}", "text.backbone_ffn=64"]
    with pytest.raises(ConfigError) as caught:
        build("text", *asked)
    assert str(caught.value) == (
        f"text.weights: {tmp_path} is of another architecture; add --set text.backbone=electra "
        """--set text.backbone_ffn=48 --set 'text.backbone_options={"embedding_size": 16, "hidden_act": "relu"}'"""
    )
    added = re.findall(r"--set (?:'([^']+)'|(\S+))", str(caught.value))
    build("text", *asked, *(quoted or bare for quoted, bare in added))


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small_model("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 tensors, first encoder\.layer\.1\.output\.dense\.weight$"):
        build("text", *BERT, f"text.weights={tmp_path}")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("text.backbone=brt", "text.backbone: transformers knows no model type 'brt'; did you mean b"),
        ("text.backbone=vit", "text.backbone: vit is no text encoder"),
        ("text.backbone=t5", "text.backbone: t5 is no text encoder"),
        ('text.backbone_options={"hidden_akt": "relu"}', "text.backbone_options.hidden_akt: bert has no such option; "),
        ("text.backbone=albert", "text.frozen_layers: albert cannot be cut into layers here: 0, or 3 to freeze it"),
        ("text.frozen_layers=4", "text.frozen_layers: 4 of 3 layers"),
        ("text.backbone_heads=5", "text.backbone_heads: the width 32 is not a multiple of 5 heads"),
        ("text.weights=gone/away", "text.weights: gone/away: no model could be loaded from there ("),
    ],
)
def test_a_wrong_text_tower_is_one_line(override: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError) as caught:
        build("text", *BERT, override)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


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

    with pytest.raises(ConfigError, match=rf"^{re.escape(str(good))}: does not fit the backbone: \d+ keys differ"):
        load_backbone("timm/test_efficientnet", str(good), 64)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(cut))}: not a file of weights") as caught:
        load_backbone("torchvision/mobilenet_v2", str(cut), 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit"])
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
    assert nn.Sequential(*(stage for _, stage in smaller.stages)).eval()(x[..., ::2, ::2]).isfinite().all()


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r": a folder without model.safetensors or pytorch_model.bin"):
        load_backbone("timm/test_vit", str(tmp_path), 64)


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
        (
            "image.backbone=timm/resnet_18",
            "image.backbone: timm knows no model 'resnet_18'; did you mean resnet18 or resnetv2_18 or resnet18d?",
        ),
        ("image.backbone=timm/nothing", "image.backbone: timm knows no model 'nothing'"),
        ("image.backbone=b5", "image.backbone: 'b5' is neither timm/NAME nor torchvision/mobilenet_v2"),
        (
            "image.frozen_stages=8",
            "image.frozen_stages: timm/test_efficientnet has 7 "
            "(stem, blocks_0, blocks_1, blocks_2, blocks_3, blocks_4, head), not 8",
        ),
    ],
)
def test_a_wrong_image_tower_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("image", override)
    assert str(caught.value) == line


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
