"""Image tower of BriVL: CNN map, regions, encoder layers over the regions.

    pixels -> CNN -> map [B, C, h, w] -> mean over each box -> 1x1 convolution -> L2 -> encoder layers
           -> masked mean -> Linear-ReLU-Linear -> L2

The released code convolves on all 16 samples of a box and then averages; both are linear, so we average first and do a
sixteenth of the work. Embeddings of a region's box or place are options that BriVL lacks. The map may be that of any
backbone which training/towers/backbones.py knows, a ViT's included.

Source: BriVL-1.0 (arXiv 2103.06561, section 3.2, and the released inference code). `compat="brivl-1.0"` samples the
regions where the released code does (see region_pooling).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import Config, ImageTowerConfig
from training.errors import ConfigError
from training.records import Batch
from training.towers.backbones import Backbone, load_backbone
from training.towers.layers import Head, Pixels, full_precision, length_mask, unit
from training.towers.recompute import run_stage
from training.towers.region_pooling import pool_regions
from training.towers.tower import Tower


class Prefix(Pixels):
    """Normalisation and the frozen leading stages: images [B, 3, H, W] -> map."""

    def __init__(self, backbone: Backbone, frozen: int, image: ImageTowerConfig) -> None:
        super().__init__(*((image.mean, image.std) if any(image.std) else (backbone.mean, backbone.std)))
        self.backbone = nn.ModuleDict(dict(backbone.stages[:frozen]))
        self.layout = torch.channels_last
        """Memory format of pixels and so of all maps: the fastest for convolutions, on CPUs and tensor cores alike."""

    def forward(self, batch: Batch) -> Tensor:
        x = self.pixels(batch).contiguous(memory_format=self.layout)
        for stage in self.backbone.values():
            x = stage(x)
        return x


class Trunk(nn.Module):
    """The trained stages and all that is new: map -> unit features [B, D]."""

    def __init__(self, backbone: Backbone, frozen: int, config: Config) -> None:
        super().__init__()
        image = config.image
        self.backbone = nn.ModuleDict(dict(backbone.stages[frozen:]))
        for module in self.backbone.modules():
            if getattr(module, "inplace", False):
                setattr(module, "inplace", False)  # noqa: B010  autograd would copy what an activation overwrites
        self.recompute = config.run.recompute
        self.frozen_head = backbone.head if backbone.head in self.backbone and image.freeze_head else ""
        if self.frozen_head:
            self.backbone[self.frozen_head].requires_grad_(False)
        self.grid = image.grid
        self.shifted = config.compat == "brivl-1.0"
        self.project = nn.Linear(backbone.channels, image.width)  # the 1x1 convolution, after the mean
        self.boxes = nn.Linear(4, image.width, bias=False) if image.box_embedding else None
        if self.boxes is not None:
            nn.init.zeros_(self.boxes.weight)  # a model with it begins where the one without does
        self.head = Head.of(config, config.image, config.data.max_boxes + 1 if image.position_embedding else 0)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        if self.frozen_head:
            self.backbone[self.frozen_head].eval()
        return self

    def forward(self, map_BCHW: Tensor, batch: Batch) -> Tensor:
        regions_BRD = self._tokens(map_BCHW, batch)
        features_BD: Tensor = self.head(regions_BRD, length_mask(batch.n_boxes_B, regions_BRD.shape[1]))
        return features_BD

    def each_region(self, map_BCHW: Tensor, batch: Batch) -> Tensor:
        """Unit features [B, R, D] of every box by itself: those of a batch whose images have that one box only."""
        tokens_BRW = self._tokens(map_BCHW, batch)
        alone_N1W = tokens_BRW.flatten(0, 1)[:, None]  # N = B * R sets of one region
        features_ND: Tensor = self.head(alone_N1W, alone_N1W.new_ones(len(alone_N1W), 1, dtype=torch.bool))
        return features_ND.view(*tokens_BRW.shape[:2], -1)

    def seen_regions(self, map_BCHW: Tensor, batch: Batch) -> Tensor:
        """Every box as the encoder layers leave it, having seen the others: [B, R, width], what the mean is of."""
        regions_BRD = self._tokens(map_BCHW, batch)
        seen_BRD: Tensor = self.head.parts(regions_BRD, length_mask(batch.n_boxes_B, regions_BRD.shape[1]))
        return seen_BRD

    def _tokens(self, map_BCHW: Tensor, batch: Batch) -> Tensor:
        """Input of the encoder layers for every box: [B, R, width]."""
        for stage in self.backbone.values():
            map_BCHW = run_stage(stage, map_BCHW, recompute=self.recompute)
        regions_BRD = unit(self.regions(map_BCHW, batch))
        if self.boxes is not None:
            height, width = batch.images_B3HW.shape[-2:]
            sides_4 = regions_BRD.new_tensor([width, height, width, height])
            regions_BRD = regions_BRD + self.boxes(batch.boxes_BR4.to(regions_BRD.dtype) / sides_4)
        return regions_BRD

    def regions(self, map_BCHW: Tensor, batch: Batch) -> Tensor:
        """Each box's mean of the map under the 1x1 convolution: [B, R, width]."""
        size = (batch.images_B3HW.shape[-2], batch.images_B3HW.shape[-1])
        with full_precision(map_BCHW.device):  # bf16 weights would move the samples
            exact = map_BCHW if map_BCHW.dtype == torch.float64 else map_BCHW.float()
            regions_BRC = pool_regions(exact, batch.boxes_BR4, size, grid=self.grid, shifted=self.shifted)
        regions_BRD: Tensor = self.project(regions_BRC)
        return regions_BRD


def build(config: Config, load_weights: bool) -> Tower:
    """The image tower that `config.image` describes. Raises ConfigError."""
    image = config.image
    if image.patch_dropout:
        raise ConfigError("image.patch_dropout", "a region is the mean of all its patches; use clip_image")
    backbone = load_backbone(image.backbone, image.weights if load_weights else "", config.data.image_size)
    names = [name for name, _ in backbone.stages]
    if image.frozen_stages > len(names):
        raise ConfigError(
            "image.frozen_stages",
            f"{image.frozen_stages} exceeds the {len(names)} stages of {image.backbone} ({', '.join(names)})",
        )
    frozen = image.frozen_stages
    trained = [f"backbone.{name}" for name in names[frozen:]]
    tower = Tower("image", Prefix(backbone, frozen, image), Trunk(backbone, frozen, config), trained)
    tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tower
