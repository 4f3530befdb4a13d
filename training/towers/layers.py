"""Layers that close both towers: encoder layers, a masked mean, and a two-layer head.

Why our own encoder layer and not `nn.TransformerEncoderLayer`: that one takes another path in eval mode, which is ten
times as slow under bf16 on a CPU and rounds differently, while key towers always run in eval. Names and shapes of the
parameters are PyTorch's, so that released BriVL weights load, and a test compares the two.

Limits: post-norm, ReLU: what BriVL uses. Position embeddings are an option, off by default as in BriVL.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import Config, ImageTowerConfig, TextTowerConfig
from training.records import Batch
from training.towers.recompute import Recompute, run_block


class Pixels(nn.Module):
    """Base of an image tower's prefix: its pixels, normalised by mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def pixels(self, batch: Batch) -> Tensor:
        """[B, 3, H, W]; floats are taken as normalised already."""
        x = batch.images_B3HW
        return x if x.is_floating_point() else (x.to(self.mean.dtype) / 255 - self.mean) / self.std


class SelfAttention(nn.Module):
    """Multi-head self-attention through torch's scaled dot product, with the parameters of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        qkv = F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias)
        q_BHLD, k_BHLD, v_BHLD = qkv.view(*x_BLD.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed_BHLD = F.scaled_dot_product_attention(
            q_BHLD,
            k_BHLD,
            v_BHLD,
            attn_mask=mask_BL[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed: Tensor = self.out_proj(mixed_BHLD.transpose(1, 2).flatten(2))
        return mixed


class EncoderLayer(nn.Module):
    """One post-norm ReLU encoder layer; equals nn.TransformerEncoderLayer(batch_first=True) with the same weights."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; positions where `mask_BL` is False are not attended to."""
        x_BLD = self.norm1(x_BLD + self.dropout(self.self_attn(x_BLD, mask_BL)))
        inner = self.dropout(F.relu(self.linear1(x_BLD)))
        out: Tensor = self.norm2(x_BLD + self.dropout(self.linear2(inner)))
        return out


class Head(nn.Module):
    """Encoder layers over a set of parts, masked mean, Linear-ReLU-Linear, L2: the end of both BriVL towers."""

    def __init__(
        self,
        width: int,
        heads: int,
        ffn: int,
        layers: int,
        dropout: float,
        hidden: int,
        feature_dim: int,
        *,
        positions: int = 0,
        recompute: Recompute = "nothing",
    ) -> None:
        """`positions`: number of places that have a learned vector, 0 for none."""
        super().__init__()
        # Zeros: with the option a model begins where the one without it does.
        self.positions = nn.Parameter(torch.zeros(positions, width)) if positions else None
        self.recompute: Recompute = "blocks" if recompute == "blocks" else "nothing"
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffn, dropout) for _ in range(layers))
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, feature_dim)

    @staticmethod
    def of(config: Config, part: ImageTowerConfig | TextTowerConfig, positions: int = 0) -> Head:
        width = part.width if isinstance(part, ImageTowerConfig) else part.backbone_width
        feature_dim, recompute = config.moco.feature_dim, config.run.recompute
        sizes = width, part.heads, part.ffn, part.layers, part.dropout, part.hidden, feature_dim
        return Head(*sizes, positions=positions, recompute=recompute)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Parts [B, L, width] and which of them exist [B, L] -> unit features [B, feature_dim], float32 or wider."""
        return unit(self.unnormalised(x_BLD, mask_BL))

    def unnormalised(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Feature [B, D] before its length is made 1."""
        feature_BD: Tensor = self.fc2(F.relu(self.fc1(masked_mean(self.parts(x_BLD, mask_BL), mask_BL))))
        return feature_BD

    def parts(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Parts [B, L, width] after the encoder layers: what the mean is of."""
        if self.positions is not None:
            x_BLD = x_BLD + self.positions[: x_BLD.shape[1]]
        for layer in self.layers:
            x_BLD = run_block(layer, x_BLD, mask_BL, recompute=self.recompute)
        return x_BLD


def unit(x: Tensor) -> Tensor:
    """L2-normalised along the last axis, in float32 or wider: bf16 would cost a feature its third digit."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context in which autocast is off; also on devices that lack autocast, such as meta."""
    available = torch.amp.is_autocast_available(device.type)
    # Switching off what is off already would be a graph within the graph that an export traces: a fifth of its time.
    if not available or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device.type, enabled=False)
    return context


def masked_mean(x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the positions where `mask_BL` is True; at least one must be."""
    weight_BL = mask_BL.to(x_BLD.dtype)
    return (x_BLD * weight_BL[..., None]).sum(1) / weight_BL.sum(1, keepdim=True)


def length_mask(counts_B: Tensor, length: int) -> Tensor:
    """[B, length] bool, True at the first `counts_B` positions.

    The first position always counts: an invalid sample (count 0) must have finite outputs, which are then masked.
    """
    return torch.arange(length, device=counts_B.device) < counts_B.clamp(min=1)[:, None]
