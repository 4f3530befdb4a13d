"""Blankness: the share of the picture that the most frequent of 64 grey levels takes, 0 to 1.

A placeholder or a scan of an empty page is near 1; a drawing on white may well be at 0.9 and still be a picture, so
what counts as blank is the filter's business.
"""

from __future__ import annotations

from pipeline.features import Feature, View


class Blankness(Feature):
    """Float 0 to 1."""

    VERSION = 2

    def of(self, view: View) -> float:
        return float(view.levels.reshape(64, 4).sum(axis=1).max())
