"""InfoNCE against a queue of keys: the paper's objective (section 3.3; MoCo, arXiv 1911.05722)."""

from __future__ import annotations

from training.config import MocoConfig
from training.method.losses import contrast
from training.objectives import Objective


def build(moco: MocoConfig) -> Objective:
    return Objective(contrast, has_keys=True, in_batch=moco.in_batch_keys)
