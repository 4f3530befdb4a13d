"""The released BriVL-1.0, written plainly from its description: the oracle of the compat tests and the baseline of the
training-step benchmark.

Nothing of `training` is used but the records that describe sizes and carry a batch, so that an error there cannot hide
here. Everything is done the way the release does it, faults included: regions are pooled image by image through a
sampling grid made for `align_corners=True` and read with `align_corners=False`; the 1x1 convolution sees all 16 samples
of a box; BERT gets no attention mask; key towers are whole second towers in train mode (dropout on) whose parameters,
and not their buffers, follow one tensor at a time before the keys are computed; queues begin as random unit vectors;
nothing is shared between query and key towers. State-dict names are the release's: `model.learnable` is what its
checkpoints hold.

Limits: one process (shuffle-BN needs several), queue sizes that the batch divides.
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from training.config import Config, TextTowerConfig
from training.records import Batch

TRAINED_BLOCKS = ("blocks.3.", "blocks.4.", "blocks.5.", "blocks.6.")


class _Mlp(nn.Module):
    def __init__(self, wide: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(wide, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


def _attention(width: int, heads: int, ffn: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, heads, ffn, dropout)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _lengths_mask(counts_B: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=counts_B.device)[None, :] < counts_B[:, None]


def _closing(parts_BLD: Tensor, mask_BL: Tensor, attention: nn.Module, mlp: nn.Module) -> Tensor:
    """L2, encoder layers over the parts, mean over those that exist, MLP, L2."""
    parts_BLD = F.normalize(parts_BLD, dim=-1)
    parts_BLD = attention(parts_BLD.transpose(0, 1), src_key_padding_mask=~mask_BL).transpose(0, 1)
    weight_BL1 = mask_BL.to(parts_BLD.dtype)[..., None]
    return F.normalize(mlp((parts_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)), dim=-1)


class ImageEncoder(nn.Module):
    """EfficientNet map -> boxes -> one feature."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        image = config.image
        self.size, self.grid = config.data.image_size, image.grid
        self.backbone = timm.create_model(image.backbone.removeprefix("timm/"), pretrained=False)
        channels = self.backbone.num_features
        self.learnable = nn.ModuleDict(
            {
                "imgFC": _Mlp(image.width, image.hidden, config.moco.feature_dim),
                "imgAtt": _attention(image.width, image.heads, image.ffn, image.layers, image.dropout),
                "max_pool": nn.Sequential(nn.Conv2d(channels, image.width, 1), nn.AvgPool2d(image.grid, stride=1)),
            }
        )
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED_BLOCKS))

    def forward(self, images_B3SS: Tensor, boxes_BR4: Tensor, n_boxes_B: Tensor) -> Tensor:
        regions_BRD = self.pool(self.backbone.forward_features(images_B3SS), boxes_BR4)
        mask_BR = _lengths_mask(n_boxes_B, boxes_BR4.shape[1])
        return _closing(regions_BRD, mask_BR, self.learnable["imgAtt"], self.learnable["imgFC"])

    def pool(self, maps_BCHW: Tensor, boxes_BR4: Tensor) -> Tensor:
        """Region features [B, R, D], one image at a time, cuDNN off."""
        with torch.backends.cudnn.flags(enabled=False):
            return torch.stack([self._pool_one(m, b) for m, b in zip(maps_BCHW, boxes_BR4, strict=True)])

    def _pool_one(self, map_CHW: Tensor, boxes_R4: Tensor) -> Tensor:
        channels, height, width = map_CHW.shape
        x1, y1, x2, y2 = (boxes_R4 * (height / self.size)).unbind(1)
        nothing = torch.zeros_like(x1)
        across = torch.stack([(x2 - x1) / (width - 1), nothing, (x1 + x2) / (width - 1) - 1], dim=1)
        down = torch.stack([nothing, (y2 - y1) / (height - 1), (y1 + y2) / (height - 1) - 1], dim=1)
        shape = [len(boxes_R4), channels, self.grid, self.grid]
        where = F.affine_grid(torch.stack([across, down], dim=1), shape, align_corners=False)
        points = F.grid_sample(
            map_CHW.expand(len(boxes_R4), -1, -1, -1), where, padding_mode="zeros", align_corners=False
        )
        return self.learnable["max_pool"](points).flatten(1)


class Bert(nn.Module):
    """A BERT called without an attention mask."""

    def __init__(self, text: TextTowerConfig) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(
                vocab_size=text.vocab_size,
                hidden_size=text.backbone_width,
                num_hidden_layers=text.backbone_layers,
                num_attention_heads=text.backbone_heads,
                intermediate_size=text.backbone_ffn,
                max_position_embeddings=text.max_positions,
                hidden_dropout_prob=text.backbone_dropout,
                attention_probs_dropout_prob=text.backbone_dropout,
            )
        )

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.bert(input_ids=ids_BL).last_hidden_state


class TextEncoder(nn.Module):
    """BERT states -> one feature."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        text = config.text
        self.backbone = Bert(text)
        self.learnable = nn.ModuleDict(
            {
                "textFC": _Mlp(text.backbone_width, text.hidden, config.moco.feature_dim),
                "textAtt": _attention(text.backbone_width, text.heads, text.ffn, text.layers, text.dropout),
            }
        )
        trained = tuple(f"bert.encoder.layer.{i}." for i in range(text.frozen_layers, text.backbone_layers))
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name.startswith(trained))

    def forward(self, ids_BL: Tensor, n_tokens_B: Tensor) -> Tensor:
        mask_BL = _lengths_mask(n_tokens_B, ids_BL.shape[1])
        return _closing(self.backbone(ids_BL), mask_BL, self.learnable["textAtt"], self.learnable["textFC"])


class ReleasedBriVL(nn.Module):
    """Query and key towers, two queues, the loss: `forward(batch)` is the released training forward.

    `config` gives sizes only. `key_towers=False` leaves the key towers and queues out (extraction).
    """

    def __init__(self, config: Config, *, key_towers: bool = True) -> None:
        super().__init__()
        self.moco = config.moco
        self.learnable = nn.ModuleDict({"imgencoder": ImageEncoder(config), "textencoder": TextEncoder(config)})
        if not key_towers:
            return
        self.learnable["imgencoder_mom"] = ImageEncoder(config)
        self.learnable["textencoder_mom"] = TextEncoder(config)
        for query, key in self._pairs():
            key.load_state_dict(query.state_dict())
            key.requires_grad_(False)
        shape = config.moco.feature_dim, config.moco.queue_size
        self.register_buffer("img_queue", F.normalize(torch.randn(shape), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(shape), dim=0))
        self.at = 0

    def encode_image(self, images_B3SS: Tensor, boxes_BR4: Tensor, n_boxes_B: Tensor) -> Tensor:
        """Unit features [B, D] of normalised float images and boxes in their pixels."""
        return self.learnable["imgencoder"](images_B3SS, boxes_BR4, n_boxes_B)

    def encode_text(self, ids_BL: Tensor, n_tokens_B: Tensor) -> Tensor:
        """Unit features [B, D]; with BERT unmasked, L counts."""
        return self.learnable["textencoder"](ids_BL, n_tokens_B)

    def forward(self, batch: Batch) -> Tensor:
        """Loss of a batch whose images are normalised floats; moves key towers first, and the queues at the end."""
        image_BD = self.encode_image(batch.images_B3HW, batch.boxes_BR4, batch.n_boxes_B)
        text_BD = self.encode_text(batch.token_ids_BL, batch.n_tokens_B)
        with torch.no_grad():
            self.move_key_towers()
            image_keys_BD = self.learnable["imgencoder_mom"](batch.images_B3HW, batch.boxes_BR4, batch.n_boxes_B)
            text_keys_BD = self.learnable["textencoder_mom"](batch.token_ids_BL, batch.n_tokens_B)
        loss = self._nce(image_BD, text_keys_BD, self.text_queue) + self._nce(text_BD, image_keys_BD, self.img_queue)
        self._enqueue(image_keys_BD, text_keys_BD)
        return loss

    @torch.no_grad()
    def move_key_towers(self) -> None:
        for query, key in self._pairs():
            for q, k in zip(query.parameters(), key.parameters(), strict=True):
                k.data = k.data * self.moco.momentum + q.data * (1.0 - self.moco.momentum)

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.learnable[name], self.learnable[f"{name}_mom"]) for name in ("imgencoder", "textencoder")]

    def _nce(self, queries_BD: Tensor, keys_BD: Tensor, queue_DK: Tensor) -> Tensor:
        positive_B1 = torch.einsum("bd,bd->b", queries_BD, keys_BD)[:, None]
        negative_BK = torch.einsum("bd,dk->bk", queries_BD, queue_DK.clone())
        logits_BM = torch.cat([positive_B1, negative_BK], dim=1) / self.moco.temperature
        return F.cross_entropy(logits_BM, torch.zeros(len(logits_BM), dtype=torch.long, device=logits_BM.device))

    @torch.no_grad()
    def _enqueue(self, image_keys_BD: Tensor, text_keys_BD: Tensor) -> None:
        size = len(image_keys_BD)
        if self.moco.queue_size % size:
            raise ValueError(f"the release asserts that {size} divides the queue size {self.moco.queue_size}")
        self.img_queue[:, self.at : self.at + size] = image_keys_BD.T
        self.text_queue[:, self.at : self.at + size] = text_keys_BD.T
        self.at = (self.at + size) % self.moco.queue_size
