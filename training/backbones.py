"""CNN backbones as lists of stages, so that a tower can freeze the leading ones and share them with its key tower.

Why stages and not whole models: what is frozen and comes first is the same in both towers and is computed once; what
is trained comes after. A stage keeps the child names of its library, so that released weights map by name.

Weights: empty for random ones, `hub` to let timm download, or a local file (.pth read with weights_only=True, or
.safetensors). A file that does not fit is one line, not a page of keys.

Limits: EfficientNets of timm and torchvision's MobileNetV2 (no network is needed for either with a local file).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import ConfigError

Stages = list[tuple[str, nn.Module]]


def stages(name: str, weights: str) -> tuple[Stages, int]:
    """The backbone's stages in order, from pixels to its last map, and that map's channels.

    `name`: `timm/NAME` or `torchvision/mobilenet_v2`. Raises ConfigError naming the key `image.backbone` or the file.
    """
    library, _, model = name.partition("/")
    if library == "timm":
        return _efficientnet(model, weights)
    if library == "torchvision" and model == "mobilenet_v2":
        return _mobilenet(weights)
    raise ConfigError("image.backbone", f"{name!r} is neither timm/NAME nor torchvision/mobilenet_v2")


def _efficientnet(name: str, weights: str) -> tuple[Stages, int]:
    import timm
    from timm.models.efficientnet import EfficientNet

    if not timm.is_model(name):
        raise ConfigError("image.backbone", f"timm knows no model {name!r}")
    try:
        model = timm.create_model(name, pretrained=weights == "hub", num_classes=0)
    except (OSError, RuntimeError) as e:
        raise ConfigError("image.weights", f"timm could not get the weights of {name} ({_line(e)})") from e
    if not isinstance(model, EfficientNet):
        raise ConfigError("image.backbone", f"timm's {name} is no EfficientNet")
    if weights not in ("", "hub"):
        _load(model, weights)
    parts: Stages = [("stem", nn.Sequential(model.conv_stem, model.bn1))]
    parts += [(f"blocks_{i}", block) for i, block in enumerate(model.blocks)]
    parts += [("head", nn.Sequential(model.conv_head, model.bn2))]
    return parts, int(model.num_features)


def _mobilenet(weights: str) -> tuple[Stages, int]:
    from torchvision.models import mobilenet_v2

    if weights == "hub":
        raise ConfigError("image.weights", "torchvision/mobilenet_v2 takes a file, not hub")
    model = mobilenet_v2(weights=None)
    if weights:
        _load(model, weights)
    return [(f"features_{i}", stage) for i, stage in enumerate(model.features)], int(model.last_channel)


def _load(model: nn.Module, path: str) -> None:
    """Fill a backbone from a file; its classifier is not wanted. Raises ConfigError that names the file."""
    if not Path(path).is_file():
        raise ConfigError(path, "no such file (image.weights; empty it to start from random weights)")
    state = {key: value for key, value in _read(path).items() if not key.startswith("classifier.")}
    ours = {key: value for key, value in model.state_dict().items() if not key.startswith("classifier.")}
    # Files older than PyTorch 0.4.1 lack the step counters, which only matter to a batch norm without momentum.
    wrong = [k for k in ours if k not in state and not k.endswith("num_batches_tracked")]
    wrong += [k for k in state if k not in ours or state[k].shape != ours[k].shape]
    if wrong:
        raise ConfigError(path, f"does not fit the backbone: {len(wrong)} keys differ, first {wrong[0]}")
    model.load_state_dict(state, strict=False)


def _read(path: str) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    try:
        loaded: Any = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except Exception as e:  # torch and safetensors raise many types on a damaged or foreign file
        raise ConfigError(path, f"not a file of weights ({_line(e)})") from e
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(path, "not a state dict of tensors")
    return loaded


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
