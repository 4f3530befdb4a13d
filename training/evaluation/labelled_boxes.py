"""Labelled boxes for region classification.

    coco:FILE       COCO's JSON: images with file_name, annotations with bbox [x, y, width, height], categories; the
                    images lie below the file's folder, or below the folder above it
    boxes:FILE      JSON lines {"image": PATH, "boxes": [[x1, y1, x2, y2], ...], "labels": ["cat", ...]}; paths are
                    relative to the file
    a dataset       a manifest: boxes and labels of a detector (`--detector`), those that it gave `--min-score` or more

Boxes are pixels of the image. The names of the classes are those of the categories, or the labels; `--classes FILE`
(evaluation/labelled.py) gives them others. A detector's labels are numbers, so for a dataset the list is needed: a
label is the number of its line, from 0; and what the detector says is taken for the truth.

Limits: annotations are held in memory. Crowds (`iscrowd`) are left out, and so are boxes that are
empty within their image.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_specs.names import Split
from training.data.released_rows import Box, boxes_of, boxes_of_flat, json_lines
from training.errors import ConfigError, InputError, first_line
from training.evaluation.benchmarks import BenchmarkPicture, images_below, is_benchmark
from training.evaluation.labelled import KINDS as IMAGES
from training.evaluation.labelled import ClassName, EvaluationData, check_names, read_classes

KINDS = ("coco", "boxes")
"""Kinds of labelled boxes, as `--data KIND:PATH` spells them."""


@dataclass(frozen=True, slots=True)
class BoxedPicture:
    """An image with boxes and the number of each one's class; the leaders, sha256 in hex, of a dataset's only."""

    picture: BenchmarkPicture
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]
    image_leader: str = ""
    text_leader: str = ""


@dataclass(frozen=True)
class Boxed:
    """A split of images with labelled boxes. `items` reads them again at each call, in the same order."""

    name: str
    split: str
    classes: tuple[ClassName, ...]
    items: Callable[[], Iterator[BoxedPicture]]
    truth: str


def open_boxed(source: EvaluationData, split: str, detector: str, min_score: float) -> Boxed:
    """The labelled boxes that `--data` names.

    Raises ConfigError for options that do not go together, InputError for files that are missing or not in their form,
    ContractError (dataset).
    """
    kind, colon, path = source.data[0].partition(":")
    if colon and (kind in IMAGES or is_benchmark(source.data[0])):
        raise ConfigError("--data", f"{source.data[0]} lacks labelled boxes; give coco:FILE, boxes:FILE or a dataset")
    if source.labels is not None:
        raise ConfigError("--labels", "is for images; labelled boxes bring their own labels")
    if kind not in KINDS:
        return _of_dataset(source, split, detector, min_score)
    if len(source.data) > 1:
        raise ConfigError("--data", f"{source.data[0]} is evaluated alone, not beside other data")
    file = Path(path)
    if not file.is_file():
        raise InputError(source.data[0], "no such file")
    return (_of_coco if kind == "coco" else _of_lines)(source.data[0], file, source.classes)


# --- COCO


def _of_coco(data: str, file: Path, given: Path | None) -> Boxed:
    try:
        value = json.loads(file.read_bytes())
        names = {int(row["id"]): str(row["name"]) for row in value["categories"]}
        files = {int(row["id"]): str(row["file_name"]) for row in value["images"]}
        marks = [
            (int(row["image_id"]), _corners(row["bbox"]), int(row["category_id"]))
            for row in value["annotations"]
            if not row.get("iscrowd")
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise InputError(str(file), f"not COCO's images, annotations and categories ({first_line(e)})") from None
    found: dict[int, tuple[list[Box], list[str]]] = {image: ([], []) for image in files}
    for image, box, category in marks:
        if image not in files or category not in names:
            raise InputError(str(file), f"an annotation has an unknown image or category: {image}, {category}")
        found[image][0].append(box)
        found[image][1].append(names[category])
    boxed = [(files[image], boxes, labels) for image, (boxes, labels) in found.items() if boxes]
    places = _find_images(file, [name for name, _, _ in boxed])
    rows = [(BenchmarkPicture(name, places[name]), boxes, labels) for name, boxes, labels in boxed]
    return _of_rows(data, rows, list(dict.fromkeys(names.values())), given)


def _corners(bbox: Any) -> Box:
    """x1 y1 x2 y2 of COCO's x y width height."""
    x, y, width, height = boxes_of([bbox])[0]
    return x, y, x + width, y + height


def _find_images(file: Path, names: Sequence[str]) -> dict[str, Path]:
    """Paths of images by name: below the file's folder or the one above, by path or else by file name."""
    roots = (file.parent, file.parent.parent)
    direct = {name: next((root / name for root in roots if (root / name).is_file()), None) for name in names}
    if None in direct.values():
        for root in roots:
            by_name = {path.name: path for path in reversed(images_below(root))}
            direct = {name: place or by_name.get(posixpath.basename(name)) for name, place in direct.items()}
    lacking = [name for name, place in direct.items() if place is None]
    if lacking:
        raise InputError(str(file), f"{len(lacking)} images not found in its folder or the parent, first {lacking[0]}")
    return {name: place for name, place in direct.items() if place is not None}


# --- JSON lines


def _of_lines(data: str, file: Path, given: Path | None) -> Boxed:
    rows, names = list[tuple[BenchmarkPicture, list[Box], list[str]]](), dict[str, None]()
    for where, row in json_lines(file, _NO_BOXES):
        try:
            image, boxes, labels = str(row["image"]), list(boxes_of(row["boxes"])), [str(x) for x in row["labels"]]
            if len(boxes) != len(labels):
                raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels")
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(where, f"{_NO_BOXES} ({first_line(e)})") from None
        names |= dict.fromkeys(labels)
        if boxes:
            rows.append((BenchmarkPicture(image, file.parent / image), boxes, labels))
    return _of_rows(data, rows, sorted(names), given)


_NO_BOXES = "contains no image with boxes and labels"


def _of_rows(
    data: str, rows: Sequence[tuple[BenchmarkPicture, list[Box], list[str]]], names: Sequence[str], given: Path | None
) -> Boxed:
    listed = read_classes(given) if given else check_names(data, [ClassName(name, (name,)) for name in names])
    numbers = {one.key: number for number, one in enumerate(listed)}
    unknown = {label for _, _, labels in rows for label in labels} - numbers.keys()
    if unknown:
        raise InputError(str(given or data), f"{len(unknown)} labels are not listed classes, first {min(unknown)!r}")
    if not rows:
        raise InputError(data, "contains no boxes")
    items = [BoxedPicture(picture, tuple(boxes), tuple(numbers[x] for x in labels)) for picture, boxes, labels in rows]
    return Boxed(data, "all", listed, lambda: iter(items), "annotated boxes")


# --- a dataset


def _of_dataset(source: EvaluationData, split: str, detector: str, min_score: float) -> Boxed:
    import numpy as np

    from training.data.index import open_dataset, split_of_dataset  # as in labelled.py

    known = split_of_dataset(split)
    if source.classes is None:
        raise ConfigError("--classes", "name a file with the detector's classes in the order of its labels")
    if not detector or detector == "grid":
        raise ConfigError("--detector", "name a detector whose boxes have labels; cells of the grid do not")
    classes = read_classes(source.classes)
    dataset = open_dataset(source.data, known, detector=detector, cache=source.cache)
    dataset.check_not_empty()

    def items() -> Iterator[BoxedPicture]:
        for number, marks in enumerate(_marks(source.data, known, detector)):
            row = dataset.row(number)
            if marks["key"] != row.key:
                raise InputError(dataset.name, f"the regions of {marks['key']} are in the place of {row.key}")
            labels, scores = np.array(marks["labels"], np.int64), np.array(marks["scores"], np.float32)
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
                extreme = int(labels.max() if labels.max() >= len(classes) else labels.min())
                raise InputError(str(source.classes), f"{len(classes)} classes, but {row.key} has label {extreme}")
            boxes = boxes_of_flat(marks["boxes"])
            taken = [i for i in range(len(boxes)) if scores[i] >= min_score]
            yield BoxedPicture(
                BenchmarkPicture(row.key, dataset.image(row)),
                tuple(boxes[i] for i in taken),
                tuple(int(labels[i]) for i in taken),
                row.image_leader,
                row.texts[0].leader,
            )

    return Boxed(
        " ".join(source.data),
        split,
        classes,
        items,
        f"boxes of detector {detector} with a score of {min_score:g} or more",
    )


def _marks(data: Sequence[str], split: Split, detector: str) -> Iterator[dict[str, Any]]:
    """Rows of the regions of a split, in the order of the dataset's."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from training.data.index import manifest_of, read_file
    from training.data.index_cache import locate

    for name in data:
        path, manifest = manifest_of(name)
        for files in manifest.of_split(split):
            base = manifest.folder_of(files, posixpath.dirname(path))
            place = locate(base, path, files.regions[detector])
            content = read_file(place)
            try:
                marks = pq.read_table(io.BytesIO(content)).to_pylist()
            except (pa.ArrowException, OSError) as e:
                raise InputError(place, f"its regions cannot be read ({first_line(e)})") from None
            yield from marks
