"""Image tower of CLIP's kind (CLIP, Chinese-CLIP, SigLIP, SigLIP 2), with BriVL's regions as an addition to it.

    pixels -> patches -> layers -> pool and projection --------------------------------> + -> L2
                               \\-> map -> mean over each box -> 1x1 convolution -> L2    /
                                   -> encoder layers -> masked mean -> Linear-ReLU-Linear

What the regions add begins at zero, so that a tower that was initialised from a checkpoint gives that checkpoint's
features at its first step, whatever the boxes, and learns what its regions are good for. With `data.max_boxes=0` there
are not among these layers: the tower stays what transformers calls by its name, and can be exported as such.

Sources: CLIP (arXiv 2103.00020), Chinese-CLIP (arXiv 2211.01335), SigLIP (arXiv 2303.15343), SigLIP 2 (arXiv
2502.14786); the addition is ours.
"""

from __future__ import annotations

import torch
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn

from training.config import Config
from training.errors import ConfigError
from training.records import Batch
from training.towers.layers import Head, Pixels, full_precision, length_mask, unit
from training.towers.recompute import Recompute, run_block
from training.towers.region_pooling import pool_regions
from training.towers.tower import Tower
from training.towers.two_tower_parts import ImagePool, image_stages

_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's pixels, where the config names none."""


class Prefix(Pixels):
    """Normalisation and the frozen leading stages: images [B, 3, S, S] -> pixels or tokens."""

    def __init__(self, stages: dict[str, nn.Module], config: Config) -> None:
        super().__init__(*((config.image.mean, config.image.std) if any(config.image.std) else _CLIP))
        self.backbone = nn.ModuleDict(stages)

    def forward(self, batch: Batch) -> Tensor:
        x = self.pixels(batch)
        for stage in self.backbone.values():
            x = stage(x)
        return x


class Regions(nn.Module):
    """Contribution of an image's boxes to its feature: tokens [B, N, C] -> [B, D], zero at the beginning."""

    def __init__(self, channels: int, extra: int, config: Config) -> None:
        super().__init__()
        image = config.image
        self.extra, self.grid = extra, image.grid
        self.project = nn.Linear(channels, image.width)
        self.head = Head.of(config, config.image)
        nn.init.zeros_(self.head.fc2.weight)
        nn.init.zeros_(self.head.fc2.bias)

    def forward(self, tokens_BNC: Tensor, batch: Batch) -> Tensor:
        tokens_BNC = tokens_BNC[:, self.extra :]
        side = round(tokens_BNC.shape[1] ** 0.5)
        # shape[0], not len(): to the ONNX exporter that is a number, and every batch would be of two pictures
        map_BCHW = tokens_BNC.transpose(1, 2).reshape(tokens_BNC.shape[0], -1, side, side)
        size = (batch.images_B3HW.shape[-2], batch.images_B3HW.shape[-1])
        with full_precision(map_BCHW.device):  # bf16 weights would move the samples
            exact = map_BCHW if map_BCHW.dtype == torch.float64 else map_BCHW.float()
            regions_BRC = pool_regions(exact, batch.boxes_BR4, size, grid=self.grid)
        regions_BRD = unit(self.project(regions_BRC))
        return self.head.unnormalised(regions_BRD, length_mask(batch.n_boxes_B, regions_BRD.shape[1]))


class Trunk(nn.Module):
    """The trained stages: pixels or tokens -> unit features [B, D]."""

    def __init__(
        self,
        stages: dict[str, nn.Module],
        pool: ImagePool,
        regions: Regions | None,
        drop: PatchDropout,
        recompute: Recompute,
    ) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({**stages, "pool": pool})
        self.regions, self.drop = regions, drop
        self.recompute: Recompute = "blocks" if recompute == "blocks" else "nothing"

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        if "embeddings" not in self.backbone:  # the prefix is shared with the key towers, which see every patch
            x = self.drop(x)
        for name, stage in self.backbone.items():
            if name != "pool":
                x = run_block(stage, x, recompute=self.recompute)
            if name == "embeddings":
                x = self.drop(x)
        feature_BD = unit(self.backbone["pool"](x))
        if self.regions is None:
            return feature_BD
        pool = self.backbone["pool"]
        assert isinstance(pool, ImagePool)
        added_BD = self.regions(pool.norm(x), batch)
        return unit(feature_BD + added_BD.to(feature_BD.dtype))


def build(config: Config, load_weights: bool) -> Tower:
    """The image tower that `config.image` describes. Raises ConfigError: its weights come by --init."""
    image = config.image
    if load_weights and image.weights:
        raise ConfigError("image.weights", "clip_image loads both towers from a transformers folder; use --init FOLDER")
    stages, pool, (channels, extra) = image_stages(config)
    if image.frozen_stages > len(stages):
        names = ", ".join(name for name, _ in stages)
        raise ConfigError(
            "image.frozen_stages",
            f"{image.frozen_stages} exceeds the {len(stages)} stages of {image.backbone} ({names})",
        )
    if image.patch_dropout and config.data.max_boxes:
        raise ConfigError("image.patch_dropout", "a region is the mean of all its patches; use data.max_boxes=0")
    frozen, trained = dict(stages[: image.frozen_stages]), dict(stages[image.frozen_stages :])
    regions = Regions(channels, extra, config) if config.data.max_boxes else None
    drop = PatchDropout(image.patch_dropout, num_prefix_tokens=extra)
    trunk = Trunk(trained, pool, regions, drop, config.run.recompute)
    return Tower("image", Prefix(frozen, config), trunk, [f"backbone.{name}" for name in trained])
