"""Tower: the interface of every encoder, cut where its frozen prefix ends.

`prefix(batch)` is what is frozen and comes first; query and key tower share it, so it is computed once a step, exactly:
it never trains, runs without gradient, and stays in eval mode. `trunk(prefix_out, batch)` is the rest: the query
tower's is trained, the key tower's is its moving average.

Limits: what an encoder freezes behind its first trained layer is not a part of the prefix; the key tower shares those
parameters, and computes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from training.records import Batch

Modality = Literal["image", "text"]


class Tower(nn.Module):
    """A query tower: a frozen prefix and a trained trunk.

    `stages`: names of the trunk's submodules that are trained stages of a backbone, lowest first (for layer decay).
    """

    def __init__(self, modality: Modality, prefix: nn.Module, trunk: nn.Module, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.frozen = False
        self.modality = modality
        self.prefix = prefix.requires_grad_(False)
        self.trunk = trunk

    def freeze(self) -> None:
        """Train nothing of this tower from now on: the trunk too gets no gradient and stays in eval mode."""
        self.frozen = True
        self.trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Tower:
        """Set the mode as torch does, but keep the prefix in eval mode: no dropout, and its batch norms stand still."""
        super().train(mode)
        self.prefix.eval()
        if self.frozen:
            self.trunk.eval()
        return self

    def seen_regions(self, batch: Batch) -> Tensor | None:
        """Every box of the batch as the tower's layers leave it, [B, R, width]; None of an encoder without boxes."""
        seen = getattr(self.trunk, "seen_regions", None)
        return None if seen is None else seen(self.prefix(batch), batch)

    def forward(self, batch: Batch) -> Tensor:
        """Unit features [B, D] of the batch."""
        features_BD: Tensor = self.trunk(self.prefix(batch), batch)
        return features_BD

    @property
    def knows_regions(self) -> bool:
        """True if the trunk has `each_region`: an encoder without boxes has not."""
        return hasattr(self.trunk, "each_region")

    def each_region(self, batch: Batch) -> Tensor:
        """Unit features [B, R, D] of every box of the batch by itself; only where `knows_regions`."""
        features_BRD: Tensor = self.trunk.each_region(self.prefix(batch), batch)  # type: ignore[operator]
        return features_BRD
