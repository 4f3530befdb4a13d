"""Entropy of the grey levels, in bits: 0 for a single level, 8 if all 256 are equally frequent.

Shannon's entropy (1948) of the thumbnail's histogram. Drawings have 1 to 5 bits, photographs mostly more than 6.

Limits: blind to where the levels are, so noise and a fine photograph score alike.
"""

from __future__ import annotations

import numpy as np

from pipeline.features import Feature
from pipeline.pictures.thumbs import Views


class Entropy(Feature):
    """Floats 0 to 8, to three decimals: the last digits of a logarithm differ between machines."""

    def of(self, views: Views) -> list[float]:
        shares = views.levels
        bits = -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(axis=1)
        rounded: list[float] = (np.round(bits, 3) + 0.0).tolist()  # + 0.0: no minus zero
        return rounded
