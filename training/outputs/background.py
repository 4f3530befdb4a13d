"""Calibration of cosines: their rank among the cosines of unrelated pairs.

A cosine of 0.3 is much for one model and little for another. A checkpoint's background is the distribution of the
cosines of a gallery of training images with the texts of other images of it, and the score of a cosine is the share of
that distribution below it: 0.99 says that 99 of 100 unrelated training pairs are less alike. The distribution of images
with texts and that of texts with images are one and the same, as both are over the same pairs.

    BACKGROUND_FILE in a checkpoint     cosines [Q] ascending and shares [Q]: quantiles, denser towards the top
                                        counts [3]: images, texts and pairs of the gallery

What it is not: the probability that a pair belongs together (that depends on how many candidates do), or a score of one
query (a text that is near to everything has high scores everywhere). A checkpoint without one is as good as ever;
`wenlan-train calibrate` adds it, and so does `fit` at its end.

Limits: above the largest cosine of the background every score is 1. It is that of the query towers, on the boxes of the
training, and says less on pictures that are unlike the training's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

BACKGROUND_FILE = "background.safetensors"

_STEPS = 1_000
"""Shares between 0 and 1 whose quantiles are kept; above the last but one they go on in tenths of the distance to 1."""


@dataclass(frozen=True, slots=True)
class Background:
    """Quantiles of the cosines of unrelated pairs.

    cosines_Q: ascending, no two alike. shares_Q: of the background below each. images, texts, pairs: what was counted.
    """

    cosines_Q: npt.NDArray[np.float32]
    shares_Q: npt.NDArray[np.float64]
    images: int
    texts: int
    pairs: int

    @staticmethod
    def of(cosines_P: npt.NDArray[np.float32], images: int, texts: int) -> Background:
        """Background of the cosines of P pairs; P is at least 1."""
        shares = np.linspace(0, 1, _STEPS + 1)
        rest = 1 / _STEPS
        while (rest := rest / 10**0.5) > 1 / len(cosines_P):
            shares = np.append(shares, 1 - rest)
        shares = np.sort(shares)
        quantiles = np.quantile(cosines_P.astype(np.float64), shares).astype(np.float32)
        cosines, first = np.unique(quantiles, return_index=True)  # of equal ones the least share is below them
        return Background(cosines, shares[first], images, texts, len(cosines_P))

    def score(self, cosines: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Share of the background below each cosine, in [0, 1] and never falling; of the cosines' shape."""
        shares = np.interp(np.asarray(cosines, np.float64), self.cosines_Q, self.shares_Q, left=0.0, right=1.0)
        return shares.astype(np.float32)

    def tensors(self) -> dict[str, Tensor]:
        import torch

        counts = torch.tensor([self.images, self.texts, self.pairs])
        return {
            "cosines": torch.from_numpy(self.cosines_Q),
            "shares": torch.from_numpy(self.shares_Q),
            "counts": counts,
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], subject: str) -> Background:
        """The inverse of `tensors`. Raises CheckpointError naming `subject`."""
        try:
            cosines, shares = tensors["cosines"].numpy(), tensors["shares"].numpy()
            images, texts, pairs = tensors["counts"].tolist()
            sound = cosines.shape == shares.shape and cosines.ndim == 1 and len(cosines) > 0
            sound = sound and bool((np.diff(cosines) > 0).all() and (np.diff(shares) >= 0).all())
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(subject, f"not a background of cosines ({type(e).__name__}: {e})") from None
        if not sound:
            raise CheckpointError(subject, "not a background of cosines: they do not ascend")
        return Background(cosines, shares.astype(np.float64), images, texts, pairs)

    def to_json(self) -> str:
        """One line for the metadata of an export: cosines, shares and counts."""
        values: dict[str, Any] = {"cosines": self.cosines_Q.tolist(), "shares": self.shares_Q.tolist()}
        return json.dumps({**values, "images": self.images, "texts": self.texts, "pairs": self.pairs})
