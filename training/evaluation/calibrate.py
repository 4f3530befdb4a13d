"""Calibration: adds to a checkpoint the background that its scores are measured against (outputs/background.py).

The gallery is a fixed number of training images, evenly spread over the dataset (whose samples lie in an order that
has nothing to do with what they show), with the primary text of each. Counted is every image with every text of another
sample, but for samples that share the image leader or the text leader.

Limits: all cosines of the gallery are in memory: a thousand images are a million cosines, 4 MB.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.storage.whole_files import exclusive
from training.errors import InputError
from training.evaluation.caption_sets import pack_caption_sets
from training.evaluation.features import embed_batches
from training.evaluation.hits import Clusters
from training.outputs.atomic_files import add_tensors
from training.outputs.background import BACKGROUND_FILE, Background
from training.weights.load import load

LOG = logging.getLogger(__name__)

GALLERY = 1_000
"""Images of the gallery by default."""


def calibrate(
    path: Path,
    data: Sequence[str],
    *,
    images: int = GALLERY,
    detector: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> dict[str, Any]:
    """Write the background of a checkpoint's query towers into it, replacing any; returns the counts.

    Raises InputError where the gallery lacks two samples that do not belong together, CheckpointError, ContractError.
    """
    loaded = load(path, device)
    batches = loaded.split_loader(pack_caption_sets(data, "train", cache), "train", cache, detector).spread(images)
    features = embed_batches(loaded.model, batches, loaded.device, loaded.config.run.precision)
    some = min(images, len(features.image_ND))
    cosines_NN = features.image_ND[:some] @ features.text_ND[:some].T
    hits = Clusters(features.image_ids_N[:some], features.text_ids_N[:some]).pairs(0, some)
    unrelated_NN = np.ones_like(cosines_NN, dtype=np.bool_)
    unrelated_NN[hits] = False
    if not unrelated_NN.any():
        raise InputError(" ".join(data), f"no two of its {some} samples are unrelated, so scores cannot be calibrated")
    background = Background.of(cosines_NN[unrelated_NN], some, some)
    folder = loaded.checkpoint.folder
    with exclusive(folder):
        add_tensors(folder, BACKGROUND_FILE, background.tensors())
    return {
        "checkpoint": str(folder),
        "images": background.images,
        "texts": background.texts,
        "pairs": background.pairs,
        "median_cosine": float(np.interp(0.5, background.shares_Q, background.cosines_Q)),
        "cosine_of_0.99": float(np.interp(0.99, background.shares_Q, background.cosines_Q)),
    }
