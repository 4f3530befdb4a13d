"""InfoNCE against the batch (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

from training.config import MocoConfig
from training.method.losses import contrast
from training.objectives import Objective


def build(moco: MocoConfig) -> Objective:
    return Objective(contrast, has_keys=False)
