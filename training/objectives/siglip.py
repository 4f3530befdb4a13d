"""The sigmoid loss of every pair of the batch (SigLIP, arXiv 2303.15343)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import MocoConfig
from training.method.losses import Candidates, Logits
from training.objectives import Objective


def build(moco: MocoConfig) -> Objective:
    # a sum over all pairs is the same from either side
    return Objective(contrast, has_keys=False, learns_temperature=True, learns_bias=True, towards=("text",))


def contrast(logits: Logits, queries_BD: Tensor, keys_BD: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
    similar_BM = candidates.similar(queries_BD)
    return sigmoid_loss(logits(similar_BM), candidates.counted_BM, candidates.positive_BM), similar_BM


def sigmoid_loss(logits_BM: Tensor, counted_BM: Tensor, positive_BM: Tensor) -> Tensor:
    """- sum over counted j of log sigmoid(z_j l_j), z = 1 for positives, else -1: [B]."""
    signed_BM = torch.where(positive_BM, logits_BM, -logits_BM)
    return -torch.where(counted_BM, F.logsigmoid(signed_BM), 0.0).sum(1)
