"""Evaluation of captions on held-out pictures: a captioner beside a retrieval baseline.

The baseline is what the two towers do without a decoder: the training caption whose text feature is nearest to the
image's feature. It writes people's sentences, so a captioner that cannot beat it has learnt nothing beyond them.

Figures are given over all images, and, for CIDEr and ROUGE-L, over those none of whose references stands among the
training captions word for word (`unseen`): there the baseline cannot have an exact hit. Intervals are of 95%, images
resampled; that of the difference resamples pairs.

Limits: of more than GALLERY training captions so many are drawn for the baseline. One caption an image is judged, its
best by beam search.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.command.extras import require
from training.captions import checkpoint
from training.captions.decoder import normal_caption
from training.captions.metrics import COCO, CaptionFigures, Tokens, figures, implementations
from training.captions.regions import CaptionedSplit, open_captioned, region_features
from training.captions.train import write_captions
from training.data.order import fraction
from training.errors import InputError
from training.evaluation.classification import resampled
from training.evaluation.results import checkpoint_digest
from training.towers.layers import length_mask
from training.use.embed import image_batch, text_features
from training.weights.load import BATCH, Boxes, Loaded, load

LOG = logging.getLogger(__name__)

GALLERY = 100_000
"""Training captions among which the nearest is looked for."""

SHOWN = 5
"""Images of which a result shows the captions."""

_Numbers = npt.NDArray[np.float64]


def evaluate_captioning(
    path: Path,
    data: Sequence[str],
    split: str,
    *,
    tokens: Tokens = "jieba",
    beams: int | None = None,
    detector: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> dict[str, Any]:
    """Figures of a captioner and of the nearest training caption, as `eval --task captioning --json` prints them.

    beams: 1 for greedy search, None for the captioner's own.

    task, split, checkpoint, corrupt, protocol, `captioner` and `nearest` (each: figures, cider_interval), `difference`
    of their CIDErs with its interval, `unseen` (the same over images whose references do not stand among the training
    captions; None where all do), and `shown`. Raises CheckpointError, InputError, ContractError, ConfigError.
    """
    require(COCO)
    loaded = load(path, device)
    captioner = checkpoint.read(loaded.checkpoint.folder)
    images = open_captioned(loaded, data, split, cache, detector)
    if images is None:
        raise InputError(" ".join(data), f"no samples in the {split} split")
    captioner.decoder.to(loaded.device)
    written = write_captions(captioner, images, beams)
    gallery = _gallery(captioner.captions)
    nearest = nearest_captions(loaded, images, gallery)
    ours, theirs = (figures(captions, images.captions, tokens) for captions in (written, nearest))
    protocol = {
        "data": " ".join(data),
        "split": split,
        "images": len(images),
        "references": sum(map(len, images.captions)),
        "tokens": tokens,
        "segmenter": f"jieba {version('jieba')}" if tokens == "jieba" else tokens,
        "beams": beams or captioner.config.beams,
        "gallery": len(gallery),
        "implementations": implementations(),
        "checkpoint": checkpoint_digest(loaded),
    }
    known = {normal_caption(caption) for caption in captioner.captions}
    unseen_N = np.array([not any(normal_caption(text) in known for text in texts) for texts in images.captions])
    return {
        "task": "captioning",
        "split": split,
        "checkpoint": str(loaded.checkpoint.folder),
        "corrupt": images.corrupt,
        "protocol": {**protocol, "line": _line(protocol)},
        "captioner": _with_interval(ours),
        "nearest": _with_interval(theirs),
        "difference": _difference(ours, theirs, np.ones(len(images), bool)),
        "unseen": _unseen_figures(ours, theirs, unseen_N),
        "shown": [
            {"references": list(images.captions[n]), "captioner": written[n], "nearest": nearest[n]}
            for n in range(min(SHOWN, len(images)))
        ],
    }


def nearest_captions(loaded: Loaded, images: CaptionedSplit, gallery: Sequence[str]) -> list[str]:
    """Caption of each image: the one in a gallery whose feature has the highest cosine with the image's."""
    texts_MD = text_features(loaded, list(gallery)).numpy()
    nearest = []
    for start in range(0, len(images), 1024):
        similar_BM = images.features_ND[start : start + 1024] @ texts_MD.T
        nearest += [gallery[number] for number in similar_BM.argmax(1)]
    return nearest


def caption_files(
    path: Path,
    files: Sequence[str],
    boxes: Sequence[Boxes | None],
    *,
    beams: int | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """The caption of each image file: `image`, `caption` and `log_probability`, in their order.

    boxes: of each file x1 y1 x2 y2 in its pixels, or None for the grid. Raises InputError naming a file that cannot be
    read, and CheckpointError.
    """
    loaded = load(path, device)
    captioner = checkpoint.read(loaded.checkpoint.folder)
    captioner.decoder.to(loaded.device)
    written = []
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        batch = image_batch(loaded, [(file, Path(file)) for file in some], boxes[start : start + BATCH])
        regions_BRW, _ = region_features(loaded, batch)
        present_BR = length_mask(batch.n_boxes_B, regions_BRW.shape[1])
        found = captioner.best(regions_BRW.half().float(), present_BR, beams)  # as the cache holds those of training
        written += [
            {"image": file, "caption": caption, "log_probability": score}
            for file, (caption, score) in zip(some, found, strict=True)
        ]
    return written


def summary(result: Mapping[str, Any]) -> list[str]:
    """Lines for people about a result of `evaluate_captioning`."""
    lines = [str(result["protocol"]["line"])]
    for name, words in (("captioner", "captioner"), ("nearest", "nearest training caption")):
        lines.append(f"{words}: {_described(result[name])}")
    lines.append(f"CIDEr, captioner minus nearest: {_of_difference(result['difference'])}")
    unseen = result["unseen"]
    if unseen is None:
        lines.append("every image has a reference that also occurs in the training captions")
    else:
        lines.append(
            f"of {unseen['images']:,} images whose references do not occur in the training captions: CIDEr "
            f"{100 * unseen['captioner']:.1f}, nearest {100 * unseen['nearest']:.1f}, difference "
            f"{_of_difference(unseen['difference'])}"
        )
    lines += [f"{one['captioner']} | nearest: {one['nearest']} | {one['references'][0]}" for one in result["shown"]]
    return lines


def _line(protocol: Mapping[str, Any]) -> str:
    """Describes in one line how captions were judged."""
    by = "; ".join(f"{name}: {package}" for name, package in protocol["implementations"].items())
    return (
        "{data}, {split}: {images:,} images, {references:,} references; tokens: {segmenter}; beam width {beams}; "
        "nearest of {gallery:,} training captions; {by}; checkpoint {checkpoint:.12}"
    ).format(by=by, **protocol)


def _described(of_part: Mapping[str, Any]) -> str:
    names = {**{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)}, "rouge_l": "ROUGE-L"}
    shown = [f"{words} {100 * of_part[key]:.1f}" for key, words in names.items()]
    low, high = of_part["cider_interval"]
    return ", ".join([*shown, f"CIDEr {100 * of_part['cider']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"])


def _of_difference(difference: Mapping[str, Any]) -> str:
    low, high = difference["interval"]
    return f"{100 * difference['cider']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _gallery(captions: Sequence[str]) -> list[str]:
    if len(captions) <= GALLERY:
        return list(captions)
    LOG.info("searching for the nearest caption among %s of %s", f"{GALLERY:,}", f"{len(captions):,}")
    return sorted(captions, key=lambda caption: fraction("gallery", caption))[:GALLERY]


def _with_interval(of_set: CaptionFigures) -> dict[str, Any]:
    return {**of_set.to_json(), "cider_interval": _interval(of_set.cider_N)}


def _difference(ours: CaptionFigures, theirs: CaptionFigures, asked_N: npt.NDArray[np.bool_]) -> dict[str, Any]:
    above_N = (ours.cider_N - theirs.cider_N)[asked_N]
    return {"cider": float(above_N.mean()), "interval": _interval(above_N)}


def _unseen_figures(
    ours: CaptionFigures, theirs: CaptionFigures, unseen_N: npt.NDArray[np.bool_]
) -> dict[str, Any] | None:
    if not unseen_N.any():
        return None
    return {
        "images": int(unseen_N.sum()),
        "captioner": float(ours.cider_N[unseen_N].mean()),
        "nearest": float(theirs.cider_N[unseen_N].mean()),
        "captioner_rouge_l": float(ours.rouge_l_N[unseen_N].mean()),
        "nearest_rouge_l": float(theirs.rouge_l_N[unseen_N].mean()),
        "difference": _difference(ours, theirs, unseen_N),
    }


def _interval(values_N: _Numbers) -> list[float]:
    """The 95% interval of a mean over images."""
    return list(resampled(values_N, np.arange(len(values_N))))
