"""Objectives, one file each: file name = `moco.objective` in the config.

`moco.objective="clip"` is training/objectives/clip.py, which defines `build(moco) -> Objective`. What all share, and
what ours need, are fields of MocoConfig, with ranges; keyword arguments of another package's `build` are its options,
set by `moco.objective_options`.

    objective   candidates of a query                     loss                              keys come from
    moco        queue (and the batch: in_batch_keys)      InfoNCE                           key towers
    clip        batch                                     InfoNCE                           query towers, with gradient
    siglip      batch                                     sigmoid of every pair             query towers, with gradient
    albef       batch and queue                           InfoNCE on soft targets           key towers

A batch is that of all ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from training.config import MocoConfig
from training.method.losses import Candidates, Logits
from training.plug_ins import build_by
from training.towers.tower import Modality

Loss = Callable[[Logits, Tensor, Tensor, Candidates], tuple[Tensor, Tensor]]
"""(logits, queries [B, D], their keys [B, D], candidates) -> loss of each query [B] and its cosines [B, M].

Their keys: what the key towers make of the queries' own images or texts; the queries themselves without key towers.
"""


@dataclass(frozen=True)
class Objective:
    """A loss, and what it needs.

    has_keys: key towers and queues give candidates; else the other query tower's features are the keys. in_batch: the
    samples of a batch are each other's candidates: the loss is then not a sum over micro-batches. learns_temperature:
    always, whatever the config says. learns_bias: of the logits. towards: whose keys queries are held against; both in
    turn, unless the loss is the same from either side.
    """

    loss: Loss
    has_keys: bool
    in_batch: bool = True
    learns_temperature: bool = False
    learns_bias: bool = False
    towards: tuple[Modality, ...] = ("text", "image")


def objective_of(moco: MocoConfig) -> Objective:
    """The objective that the config names. Raises ConfigError."""
    name, options = moco.objective, moco.objective_options
    objective: Objective = build_by(sys.modules[__name__], name, "moco.objective", moco, options=options)
    return objective
