"""InfoNCE on soft targets against the batch and a queue: momentum distillation (ALBEF, arXiv 2107.07651).

Where it differs from ALBEF: a sum of both directions, not their mean; no ramp of the soft share; no fusion encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.config import MocoConfig
from training.method.losses import Candidates, Logits, even_targets, info_nce
from training.objectives import Objective


def build(moco: MocoConfig) -> Objective:
    def contrast(logits: Logits, queries_BD: Tensor, keys_BD: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        similar_BM, counted_BM = candidates.similar(queries_BD), candidates.counted_BM
        with torch.no_grad():
            teacher_BM = logits(candidates.similar(keys_BD))
            targets_BM = even_targets(candidates.positive_BM, similar_BM)
            targets_BM = soft_targets(targets_BM, teacher_BM, counted_BM, moco.soft_targets)
        return info_nce(logits(similar_BM), counted_BM, targets_BM), similar_BM

    return Objective(contrast, has_keys=True)


def soft_targets(targets_BM: Tensor, teacher_BM: Tensor, counted_BM: Tensor, share: float) -> Tensor:
    """(1 - a) t + a softmax(teacher logits over what counts)."""
    taught_BM = torch.where(counted_BM, teacher_BM, -torch.inf).softmax(1)
    return (1 - share) * targets_BM + share * taught_BM
