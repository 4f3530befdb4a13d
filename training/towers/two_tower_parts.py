"""Towers of CLIP's kind from transformers, cut into stages: CLIP, Chinese-CLIP, SigLIP and SigLIP 2.

    image   embeddings, layer_0, layer_1 ..., pool      pixels [B, 3, S, S] -> tokens [B, N, C] -> feature [B, D]
    text    embeddings, layer_0, layer_1 ..., pool      token ids [B, L] -> states [B, L, C] -> feature [B, D]

                  image pools by                  text pools                        padding of a text
    clip          class token                     its end mark                      is not seen (causal)
    chinese_clip  class token                     its start mark                    is masked
    siglip        attention (no class token)      the last place, padding or not    is attended to, to `max_positions`
    siglip2       attention (no class token)      the last place, padding or not    is attended to, to `max_positions`

Layers are transformers' own; what stands around them (padding, masks, pooling) is written here, so that leading stages
can be frozen and shared with the key tower. The projection to the joint space is part of `pool`, so that a feature is
that of transformers' get_image_features or get_text_features, before L2.

Limits: pictures are square. SigLIP 2 is the model of any aspect (NaFlex); its checkpoints of one size are `siglip` in
transformers. ResNets of CLIP and Chinese-CLIP are not in transformers.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import Config
from training.errors import ConfigError, first_line
from training.records import Batch
from training.towers.layers import length_mask
from training.towers.text_backbones import architecture, quiet_transformers

FAMILIES = ("clip", "chinese_clip", "siglip", "siglip2")
"""Model types of transformers that are known here."""

Pool = Literal["class", "start", "end", "attention", "last"]


def family_of(key: str, name: str) -> str:
    """The model type in a backbone's name. Raises ConfigError naming the key."""
    family = name.removeprefix("transformers/")
    if family not in FAMILIES:
        raise ConfigError(key, f"{name!r} is not a two-tower family ({', '.join(FAMILIES)})")
    return family


def image_stages(config: Config) -> tuple[list[tuple[str, nn.Module]], ImagePool, tuple[int, int]]:
    """Stages of the image tower before its pool, the pool, and (channels, extra tokens) of the tokens.

    Raises ConfigError.
    """
    image, size = config.image, config.data.image_size
    family = family_of("image.backbone", image.backbone)
    described = architecture(f"{family}_vision_model", image.backbone_options, "image")
    patch, width = int(described.patch_size), int(described.hidden_size)
    if patch < 1 or size % patch:
        raise ConfigError("data.image_size", f"{size} is not a multiple of the patch size {patch}")
    model = _model(described, "image.backbone")
    first: nn.Module = _Patches(model, family, size, patch)
    layers = [(f"layer_{i}", _Layer(layer)) for i, layer in enumerate(model.encoder.layers)]
    extra = 0 if family.startswith("siglip") else 1
    head = getattr(model, "head", None)
    if head is not None and width != config.moco.feature_dim:
        raise ConfigError("moco.feature_dim", f"{family}'s image feature has the width of its layers, {width}")
    projection = nn.Linear(width, config.moco.feature_dim, bias=False) if head is None else None
    return [("embeddings", first), *layers], ImagePool(model.post_layernorm, head, projection), (width, extra)


def text_stages(config: Config) -> tuple[list[tuple[str, nn.Module]], TextPool]:
    """Stages of the text tower before its pool, and the pool. Raises ConfigError."""
    text = config.text
    family = family_of("text.backbone", text.backbone)
    options: Mapping[str, Any] = text.backbone_options
    if family.startswith("siglip"):
        options = {**options, "projection_size": config.moco.feature_dim}
    described = architecture(f"{family}_text_model", options, "text", text)
    model = _model(described, "text.backbone")
    pad = int(getattr(described, "pad_token_id", 0) or 0)
    additive = getattr(model.config, "_attn_implementation", "eager") == "eager"
    kind: Literal["masked", "causal", "padded"] = (
        "masked" if family == "chinese_clip" else "causal" if family == "clip" else "padded"
    )
    to = text.max_positions if kind == "padded" else 0
    encoder = model.encoder.layer if family == "chinese_clip" else model.encoder.layers
    layers = [(f"layer_{i}", _TextLayer(layer, kind, additive)) for i, layer in enumerate(encoder)]
    norm = getattr(model, "final_layer_norm", None)
    own = getattr(model, "head", None)
    projection = own if own is not None else nn.Linear(text.backbone_width, config.moco.feature_dim, bias=False)
    pool: Pool = "start" if kind == "masked" else "end" if kind == "causal" else "last"
    return [("embeddings", _Tokens(model.embeddings, pad, to)), *layers], TextPool(pool, norm, projection)


def _model(described: Any, key: str) -> Any:
    """A model of transformers without weights, its inner transformer where it has one (transformers 4)."""
    # Beside its config: transformers' table of models lacks the text towers.
    kind = type(described)
    module = importlib.import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    model_class: Any = getattr(module, kind.__name__.removesuffix("Config") + "Model")
    more = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}
    try:
        with quiet_transformers():
            model = model_class._from_config(described, attn_implementation="sdpa", **more)
    except Exception as e:  # on options of others it raises many types, KeyError on an unknown activation
        raise ConfigError(key, f"transformers could not create {described.model_type} ({first_line(e)})") from None
    return getattr(model, "vision_model", getattr(model, "text_model", model))


class _Layer(nn.Module):
    """A layer of transformers over tokens that all exist."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        causal = "causal_attention_mask" in inspect.signature(inner.forward).parameters  # transformers 4
        self.more = {"causal_attention_mask": None} if causal else {}

    def forward(self, x_BLC: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Any = self.inner(x_BLC, attention_mask=mask, **self.more)
        x: Tensor = out[0] if isinstance(out, tuple) else out
        return x


class _TextLayer(_Layer):
    """A layer of transformers over the tokens of a batch, as its family masks them."""

    def __init__(self, inner: nn.Module, kind: Literal["masked", "causal", "padded"], additive: bool) -> None:
        super().__init__(inner)
        self.kind, self.additive = kind, additive

    def forward(self, x_BLC: Tensor, batch: Any = None) -> Tensor:
        return super().forward(x_BLC, self._mask(x_BLC, batch))

    def _mask(self, x_BLC: Tensor, batch: Batch) -> Tensor | None:
        length = x_BLC.shape[1]
        if self.kind == "padded":
            return None
        if self.kind == "masked":
            seen = length_mask(batch.n_tokens_B, length)[:, None, None, :]
        else:
            places = torch.arange(length, device=x_BLC.device)
            seen = (places[:, None] >= places).expand(x_BLC.shape[0], 1, length, length)
        if not self.additive:
            return seen
        lowest = torch.finfo(x_BLC.dtype).min
        return torch.zeros_like(seen, dtype=x_BLC.dtype).masked_fill(~seen, lowest)


class _Patches(nn.Module):
    """Pixels [B, 3, S, S] to tokens [B, N, C]: patches, positions, a class token where there is one."""

    def __init__(self, model: Any, family: str, size: int, patch: int) -> None:
        super().__init__()
        self.inner = model.embeddings
        self.norm = getattr(model, "pre_layrnorm", None)  # the spelling is CLIP's
        self.naflex, self.patch = family == "siglip2", patch
        self.resample = not self.naflex and size != int(model.config.image_size)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        if self.naflex:
            return self._of_patches(pixels_B3SS)
        tokens_BNC: Tensor = self.inner(pixels_B3SS, interpolate_pos_encoding=self.resample)
        return tokens_BNC if self.norm is None else self.norm(tokens_BNC)

    def _of_patches(self, pixels_B3SS: Tensor) -> Tensor:
        """SigLIP 2's embeddings: patches as rows (their own pixels in the order y, x, colour), positions resized."""
        height, width = (side // self.patch for side in pixels_B3SS.shape[2:])
        rows = pixels_B3SS.reshape(*pixels_B3SS.shape[:2], height, self.patch, width, self.patch)
        patches_BNP = rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        table: Tensor = self.inner.position_embedding.weight
        side = math.isqrt(len(table))
        square = table.reshape(side, side, -1).permute(2, 0, 1)[None].float()
        resized = F.interpolate(square, (height, width), mode="bilinear", align_corners=False, antialias=True)
        positions_NC = resized[0].flatten(1).T.to(table.dtype)
        embedded: Tensor = self.inner.patch_embedding(patches_BNP.to(self.inner.patch_embedding.weight.dtype))
        return embedded + positions_NC


class ImagePool(nn.Module):
    """Tokens [B, N, C] to a feature [B, D] that is not of length 1."""

    def __init__(self, norm: nn.Module, head: nn.Module | None, projection: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.head, self.projection = norm, head, projection

    def forward(self, x_BNC: Tensor) -> Tensor:
        if self.projection is not None:
            feature: Tensor = self.projection(self.norm(x_BNC[:, 0]))
        else:
            assert self.head is not None
            feature = self.head(self.norm(x_BNC))
        return feature


class _Tokens(nn.Module):
    """Token ids [B, L] to states; where padding is attended to, [B, to] with the family's own padding."""

    def __init__(self, inner: nn.Module, pad: int, to: int) -> None:
        super().__init__()
        self.inner, self.pad, self.to_length = inner, pad, to

    def forward(self, batch: Batch) -> Tensor:
        ids_BL = batch.token_ids_BL
        if self.to_length:
            ids_BL = ids_BL.masked_fill(~length_mask(batch.n_tokens_B, ids_BL.shape[1]), self.pad)
            ids_BL = F.pad(ids_BL, (0, self.to_length - ids_BL.shape[1]), value=self.pad)
        states_BLC: Tensor = self.inner(input_ids=ids_BL)
        return states_BLC


class TextPool(nn.Module):
    """States [B, L, C] to a feature [B, D] that is not of length 1."""

    def __init__(self, pool: Pool, norm: nn.Module | None, projection: nn.Module) -> None:
        super().__init__()
        self.pool, self.norm, self.projection = pool, norm, projection

    def forward(self, x_BLC: Tensor, batch: Batch) -> Tensor:
        if self.pool == "start":
            pooled_BC = x_BLC[:, 0]
        elif self.pool == "last":
            pooled_BC = x_BLC[:, -1]
        else:
            pooled_BC = x_BLC[torch.arange(x_BLC.shape[0], device=x_BLC.device), batch.n_tokens_B.clamp(min=1) - 1]
        feature_BD: Tensor = self.projection(pooled_BC if self.norm is None else self.norm(pooled_BC))
        return feature_BD
