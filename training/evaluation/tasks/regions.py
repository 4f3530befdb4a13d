"""Region classification: a box of an image against the names of classes, which a region tower can do and a CLIP cannot.

Two features of every box are scored against the same class vectors (training/evaluation/class_texts.py):

    alone    what the image tower makes of that box by itself. The whole image passes the backbone once; the map is
             averaged over the box, projected, made a unit, and goes through the encoder layers and the head as a set of
             this one region (`Tower.each_region`). Equal to the feature of the image with that box as its only one.
    crop     how a CLIP does it: the box is cut out, resized to the input, and embedded as an image of its own, with the
             grid as its boxes and one pass of the backbone per box.

`alone` sees what lies around the box through the backbone's receptive field, and few cells of the map where the box is
small; `crop` sees the box at full resolution and nothing else. The difference is given with an interval. Boxes of one
image are not independent items: intervals resample images.

Limits: a training always has the whole image among the regions, so a single region is a set that no training showed.
An encoder without boxes has `crop` alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_specs.shard import ContractError
from training.data.released_rows import Box
from training.data.transforms import UnreadableImage, decode, decode_square, input_boxes, resize_square
from training.errors import InputError
from training.evaluation.class_texts import class_features, digest
from training.evaluation.classification import Classified, classify, cosines, figures, resampled
from training.evaluation.features import encode_batch
from training.evaluation.hits import Features, Ids, Mask
from training.evaluation.labelled import classes_digest
from training.evaluation.labelled_boxes import Boxed, open_boxed
from training.evaluation.results import Result, by_seen, parts, share
from training.evaluation.tasks import Request, Task
from training.evaluation.tasks._shared import class_examples, class_lines, result_of, seen_in_train
from training.evaluation.tasks.zero_shot import templates_of
from training.weights.load import BATCH, Loaded, load

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)

HIT = "a hit is the box's class"


@dataclass(frozen=True)
class Regions:
    """N boxes of images: their two features [N, D], labels, images, and boxes in shares of the image's sides.

    alone_ND: None where the encoder lacks regions. images: ids of the pictures, by the number in image_N.
    """

    alone_ND: Features | None
    crop_ND: Features
    label_N: Ids
    image_N: Ids
    images: tuple[str, ...]
    leaders: tuple[tuple[str, str], ...]
    shares_N4: Features
    corrupt: int
    empty: int


def run(request: Request) -> Result:
    """`classification.figures` of `alone`, the same of the crops as `crop`, and `alone_minus_crop` with its interval.

    boxes, empty (left out: empty within their image), protocol, seen and unseen as in retrieval.
    Raises CheckpointError, InputError, ContractError, ConfigError.
    """
    loaded = load(request.checkpoint, request.device, request.towers)
    detector = request.detector or loaded.checkpoint.detector
    boxed = open_boxed(request.source, request.split, detector, request.min_score)
    sentences = templates_of(request)
    classes_CD = class_features(loaded, boxed.classes, sentences)
    regions = embed_regions(loaded, boxed)
    crop = classify(cosines(regions.crop_ND, classes_CD), regions.label_N)
    alone = crop if regions.alone_ND is None else classify(cosines(regions.alone_ND, classes_CD), regions.label_N)
    names = [one.names[0] for one in boxed.classes]
    seen_N = seen_in_train(request, regions.leaders)
    protocol = {
        "data": boxed.name,
        "split": boxed.split,
        "images": len(regions.images),
        "boxes": len(regions.label_N),
        "classes": len(names),
        "classes_sha256": classes_digest(boxed.classes),
        "templates": len(sentences),
        "templates_sha256": digest(sentences),
        "truth": boxed.truth,
        "feature": "crop" if regions.alone_ND is None else "alone",
        "hit": HIT,
    }
    candidates = (
        f"{protocol['boxes']:,} boxes of {protocol['images']:,} images ({boxed.truth}), {len(names):,} classes in "
        f"{len(sentences)} templates ({digest(sentences)[:12]})"
    )
    result = result_of(request, "regions", loaded, protocol, candidates, regions.corrupt)

    def of_part(asks_N: Mask | None) -> dict[str, Any]:
        values = figures(alone, names, asks_N, regions.image_N)
        if not values["n"]:
            return values
        cropped = figures(crop, names, asks_N, regions.image_N)
        return {**values, "crop": cropped, **_difference(alone, crop, regions.image_N, asks_N)}

    result |= {"empty": regions.empty, **by_seen(seen_N, of_part)}
    if request.pictures:

        def query(i: int) -> dict[str, Any]:
            return {
                "picture": regions.images[regions.image_N[i]],
                "box": [round(float(v), 4) for v in regions.shares_N4[i]],
                "name": names[regions.label_N[i]],
                "crop": {"text": names[crop.said_N[i]], "right": bool(crop.rank_N[i] == 1)},
            }

        pictures = (item.picture for item in boxed.items())
        result["examples"] = class_examples("regions", alone, boxed.classes, seen_N, query, pictures)
    return result


def _difference(alone: Classified, crop: Classified, image_N: Ids, asks_N: Mask | None) -> dict[str, Any]:
    """Top-1 of the box alone minus that of its crop, box by box, and its 95% interval over resampled images."""
    asked = slice(None) if asks_N is None else asks_N
    each = (alone.rank_N[asked] == 1).astype(np.float64) - (crop.rank_N[asked] == 1)
    interval = resampled(each, image_N[asked])
    return {"alone_minus_crop": float(each.mean()), "alone_minus_crop_interval": list(interval)}


def summary(result: Mapping[str, Any]) -> list[str]:
    """Lines for people about a result of `run`."""
    lines = class_lines(result)
    name, of_part = parts(result)[0]
    if result["protocol"]["feature"] == "alone":
        crop = of_part["crop"]
        difference = share(of_part["alone_minus_crop"], of_part["alone_minus_crop_interval"])
        lines.append(f"{name}: crops instead (as a CLIP does): top-1 {share(crop['top1'], crop['top1_interval'])}")
        lines.append(f"{name}: box alone minus its crop: {difference}")
    return lines


# --- features


def embed_regions(loaded: Loaded, boxed: Boxed) -> Regions:
    """Both features of every labelled box. An image that cannot be read is left out, and so is an empty box.

    Raises InputError where no box is left.
    """
    knows_regions = loaded.model.image_query.knows_regions
    alone, crops = list[Features](), list[Features]()
    labels, image_N, shares = list[int](), list[int](), list[Features]()
    images, leaders = list[str](), list[tuple[str, str]]()
    corrupt = empty = 0
    for item in boxed.items():
        if not item.boxes:
            continue
        try:
            content = item.picture.read()
            pixels, width, height = decode_square(
                content,
                loaded.config.data.image_size,
                full=bool(loaded.config.compat),
                max_pixels=loaded.config.data.max_pixels,
            )
            full_3HW = decode(content, loaded.config.data.max_pixels)
        except (UnreadableImage, ContractError, OSError) as e:
            LOG.warning("image left out: %s: %s", item.picture.id, getattr(e, "strerror", None) or e)
            corrupt += 1
            continue
        clipped = [_clipped(box, width, height) for box in item.boxes]
        taken = [number for number, box in enumerate(clipped) if box is not None]
        boxes = [box for box in clipped if box is not None]
        empty += len(item.boxes) - len(boxes)
        if not boxes:
            continue
        if knows_regions:
            alone.append(_box_features(loaded, pixels, boxes, (width, height)))
        crops.append(_crop_features(loaded, full_3HW, boxes))
        shares.append((np.array(boxes) / np.array([width, height] * 2)).astype(np.float32))
        labels += [item.labels[number] for number in taken]
        image_N += [len(images)] * len(boxes)
        leaders += [(item.image_leader, item.text_leader)] * len(boxes)
        images.append(item.picture.id)
    if not images:
        raise InputError(boxed.name, f"no usable box in a readable image ({corrupt} images, {empty} boxes left out)")
    return Regions(
        np.concatenate(alone) if knows_regions else None,
        np.concatenate(crops),
        np.array(labels, np.int64),
        np.array(image_N, np.int64),
        tuple(images),
        tuple(leaders),
        np.concatenate(shares),
        corrupt,
        empty,
    )


def _clipped(box: Box, width: int, height: int) -> Box | None:
    """A box within its image; None where less than a pixel of it is, which no crop can show."""
    x1, y1, x2, y2 = (min(max(v, 0.0), float(side)) for v, side in zip(box, (width, height) * 2, strict=True))
    return (x1, y1, x2, y2) if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def _box_features(loaded: Loaded, pixels_3SS: Tensor, boxes: Sequence[Box], sides: tuple[int, int]) -> Features:
    """Features [R, D] of each box, from one pass of the image: uint8 [3, S, S], boxes in a `sides` image."""
    import torch

    size = loaded.config.data.image_size
    flat = [number for box in boxes for number in box]
    boxes_R4 = input_boxes(flat, *sides, size, len(boxes), as_given=True)[:-1]  # the last is the whole image
    batch = loaded.image_batch([pixels_3SS], [boxes_R4]).to(loaded.device)
    mixed = loaded.config.run.precision == "bf16"
    with torch.inference_mode(), torch.autocast(loaded.device.type, torch.bfloat16, enabled=mixed):
        features: Features = loaded.model.image_query.each_region(batch)[0].float().cpu().numpy()
    return features


def _crop_features(loaded: Loaded, full_3HW: Tensor, boxes: Sequence[Box]) -> Features:
    """Features [R, D] of the boxes cut out of an image and embedded as images; edges are rounded to whole pixels."""
    data = loaded.config.data
    grid_R4 = input_boxes(None, data.image_size, data.image_size, data.image_size, data.max_boxes)
    parts = []
    for start in range(0, len(boxes), BATCH):
        cut = [_crop(full_3HW, box, data.image_size) for box in boxes[start : start + BATCH]]
        parts.append(encode_batch(loaded, "image", loaded.image_batch(cut, [grid_R4] * len(cut))))
    return np.concatenate(parts)


def _crop(full_3HW: Tensor, box: Box, size: int) -> Tensor:
    height, width = full_3HW.shape[1:]
    x1, y1, x2, y2 = (round(v) for v in box)
    left, top = min(x1, width - 1), min(y1, height - 1)
    return resize_square(full_3HW[:, top : max(y2, top + 1), left : max(x2, left + 1)], size)


TASK = Task(run, summary)
