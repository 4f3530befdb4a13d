"""Labelled images for classification.

    classes:DIR     a folder per class, named as the class: DIR/CLASS/*.jpg, or DIR/{train,dev,val,test}/CLASS/*.jpg
    a dataset       a manifest, with `--labels FILE`: key and label of its samples, as .jsonl, .csv or .parquet;
                    a sample without a label is left out

The names of the classes are those of the folders, or the labels themselves, unless a file says otherwise: `--classes
FILE`, or classes.txt or classes.json in DIR. It lists the classes in order:

    classes.txt     CLASS, or CLASS, a tab, and its names apart by commas:    chow_mein<TAB>炒面,炒面条
    classes.json    {"chow_mein": ["炒面", "炒面条"], "tofu": "豆腐"}

Labels beyond it are an error; a class in it that no image has is a candidate all the same.

Limits: labels of a dataset and the paths of a folder are held in memory, images are read one by one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.released_rows import json_lines
from training.errors import ConfigError, InputError, first_line
from training.evaluation.benchmarks import BenchmarkPicture, folder_of_split, folders_in, images_below, is_benchmark

KINDS = ("classes",)
"""Kinds of labelled images, as `--data KIND:PATH` spells them."""


@dataclass(frozen=True, slots=True)
class ClassName:
    """A class: its key in the data and its names, of which the first is shown."""

    key: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """An image with the number of its class; the sha256 in hex of the leaders of image and text, of a dataset only."""

    picture: BenchmarkPicture
    label: int
    image_leader: str = ""
    text_leader: str = ""


@dataclass(frozen=True)
class Labelled:
    """A split of labelled images. `items` reads them again at each call, in the same order."""

    name: str
    split: str
    classes: tuple[ClassName, ...]
    items: Callable[[], Iterator[LabelledPicture]]


@dataclass(frozen=True)
class EvaluationData:
    """Data of an evaluation: `--data`, and the files that go with it."""

    data: tuple[str, ...]
    labels: Path | None = None
    classes: Path | None = None
    cache: Path | None = None

    @property
    def is_dataset(self) -> bool:
        """True if the data are manifests, not KIND:PATH."""
        return not any(name.partition(":")[0] in KINDS for name in self.data)


def open_labelled(source: EvaluationData, split: str, detector: str) -> Labelled:
    """Opens a split of `--data`. detector: whose boxes a dataset's images get.

    Raises ConfigError for a split that is not there and options that do not go together, InputError for files that are
    missing or not in their form, ContractError (dataset).
    """
    if source.is_dataset:
        other = next((name for name in source.data if is_benchmark(name) or name.startswith(("coco:", "boxes:"))), None)
        if other is not None:
            raise ConfigError("--data", f"{other} does not label images; give classes:DIR or a dataset")
        return _of_dataset(source, split, detector)
    if len(source.data) > 1:
        raise ConfigError("--data", f"{source.data[0]} is evaluated alone, not beside other data")
    [data] = source.data
    if source.labels is not None:
        raise ConfigError("--labels", f"is for datasets; {data} brings its own labels")
    path = data.partition(":")[2]
    place = Path(path)
    if not path or not place.is_dir():
        raise InputError(data, "no such folder")
    return _of_folders(data, place, split, source.classes)


# --- the classes


def read_classes(file: Path) -> tuple[ClassName, ...]:
    """The classes that a .txt or .json file lists, in order. Raises InputError naming the line."""
    text = _read_text(file)
    classes = _classes_of_json(file, text) if file.suffix == ".json" else _classes_of_lines(file, text)
    if len(classes) < 2:
        raise InputError(str(file), f"lists {len(classes)} classes; at least 2 are needed")
    return check_names(str(file), classes)


def check_names(where: str, classes: Sequence[ClassName]) -> tuple[ClassName, ...]:
    """The same classes. Raises InputError where two have the same key or share a name: no image could tell them."""
    keys, names = dict[str, str](), dict[str, str]()
    for one in classes:
        if one.key in keys:
            raise InputError(where, f"lists class {one.key!r} twice")
        keys[one.key] = one.key
        for name in one.names:
            other = names.setdefault(name, one.key)
            if other != one.key:
                raise InputError(where, f"classes {other!r} and {one.key!r} share the name {name!r}; rename one")
    return tuple(classes)


def classes_digest(classes: Sequence[ClassName]) -> str:
    """sha256 in hex of the classes and their names, in order: two results with the same one chose among the same."""
    return hashlib.sha256(json.dumps([[one.key, *one.names] for one in classes]).encode()).hexdigest()


def _classes_of_json(file: Path, text: str) -> list[ClassName]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InputError(str(file), f"not JSON ({first_line(e)})") from None
    if not isinstance(value, dict):
        raise InputError(str(file), 'not an object {"CLASS": "name", ...}')
    classes = []
    for key, names in value.items():
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, list) or not listed or not all(isinstance(n, str) and n.strip() for n in listed):
            raise InputError(str(file), f"class {key!r}: not a name or a list of names")
        classes.append(ClassName(key, tuple(dict.fromkeys(name.strip() for name in listed))))
    return classes


def _classes_of_lines(file: Path, text: str) -> list[ClassName]:
    classes = []
    for number, line in enumerate(text.split("\n"), 1):
        key, tab, after = line.strip(" \r").partition("\t")
        if not key:
            continue
        names = tuple(dict.fromkeys(filter(None, (name.strip() for name in re.split("[,，、;；]", after)))))
        if tab and not names:
            raise InputError(f"{file}:line {number}", "no name after the tab")
        classes.append(ClassName(key.strip(), names or (key.strip(),)))
    return classes


def _numbers(where: str, classes: Sequence[ClassName], labels: set[str]) -> dict[str, int]:
    """The number of each class by its key. Raises InputError for labels that no class has."""
    numbers = {one.key: number for number, one in enumerate(classes)}
    unknown = sorted(labels - numbers.keys())
    if unknown:
        raise InputError(where, f"{len(unknown)} labels are not in the list of classes, first {unknown[0]!r}")
    return numbers


def _classes_of(where: str, keys: set[str], given: Path | None) -> tuple[ClassName, ...]:
    """Classes of a list file, or, without one, of the sorted keys."""
    if given is not None:
        return read_classes(given)
    if len(keys) < 2:
        raise InputError(where, f"has {len(keys)} classes; at least 2 are needed")
    return tuple(ClassName(key, (key,)) for key in sorted(keys))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(str(file), f"cannot be read ({getattr(e, 'strerror', None) or 'not UTF-8'})") from None


def lines_of(file: Path) -> list[str]:
    """Lines of a UTF-8 file that are not empty, stripped. Raises InputError."""
    return [line.strip() for line in _read_text(file).split("\n") if line.strip()]


def _find_class_list(place: Path) -> Path | None:
    return next((place / name for name in ("classes.txt", "classes.json") if (place / name).is_file()), None)


# --- folders


def _of_folders(data: str, place: Path, split: str, given: Path | None) -> Labelled:
    root, folders = folder_of_split(data, place, split)
    keys = {path.name for base in folders.values() or [place] for path in folders_in(base)}
    listed = given or _find_class_list(place)
    classes = _classes_of(data, keys, listed)
    numbers = _numbers(str(listed or data), classes, keys)
    files = sorted((path, key) for key in keys for path in images_below(root / key))
    if not files:
        raise InputError(str(root), "contains no image in a folder of its class")

    def items() -> Iterator[LabelledPicture]:
        for path, key in files:
            yield LabelledPicture(BenchmarkPicture(str(path.relative_to(place)), path), numbers[key])

    return Labelled(data, split if folders else "all", classes, items)


# --- a dataset


def _of_dataset(source: EvaluationData, split: str, detector: str) -> Labelled:
    from training.data.index import open_dataset, split_of_dataset  # Arrow and more

    if source.labels is None:
        raise ConfigError("--labels", "a dataset needs a .jsonl, .csv or .parquet file with key and label of samples")
    known = split_of_dataset(split)
    of_key = read_labels(source.labels)
    classes = _classes_of(str(source.labels), set(of_key.values()), source.classes)
    numbers = _numbers(str(source.classes or source.labels), classes, set(of_key.values()))
    dataset = open_dataset(source.data, known, detector=detector, cache=source.cache)
    dataset.check_not_empty()

    def items() -> Iterator[LabelledPicture]:
        any_label = False
        for number in range(len(dataset)):
            row = dataset.row(number)
            if row.key not in of_key:
                continue
            any_label = True
            boxes = None if row.boxes is None else boxes_of_flat(row.boxes)
            picture = BenchmarkPicture(row.key, dataset.image(row), boxes)
            yield LabelledPicture(picture, numbers[of_key[row.key]], row.image_leader, row.texts[0].leader)
        if not any_label:
            raise InputError(str(source.labels), f"labels none of the samples in the {split} split of {dataset.name}")

    return Labelled(" ".join(source.data), split, classes, items)


def boxes_of_flat(flat: Sequence[float]) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes of a flat list of R x 4 numbers."""
    rows = [float(number) for number in flat]
    return tuple((rows[i], rows[i + 1], rows[i + 2], rows[i + 3]) for i in range(0, len(rows), 4))


def read_labels(file: Path) -> dict[str, str]:
    """The label of each key, from a file with the columns `key` and `label`. Raises InputError naming the line."""
    try:
        rows = list({".parquet": _parquet, ".csv": _csv}.get(file.suffix, _json_lines)(file))
    except OSError as e:
        raise InputError(str(file), f"cannot be read ({e.strerror or first_line(e)})") from None
    except UnicodeDecodeError as e:
        raise InputError(str(file), f"not UTF-8 at byte {e.start}") from None
    except csv.Error as e:
        raise InputError(str(file), f"cannot be read as a table ({first_line(e)})") from None
    labels: dict[str, str] = {}
    for where, key, label in rows:
        if not isinstance(key, str) or isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
            raise InputError(where, "contains no key with a label")
        if labels.setdefault(key, str(label)) != str(label):
            raise InputError(where, f"a second label of {key}")
    if not labels:
        raise InputError(str(file), "contains no labels")
    return labels


Triple = tuple[str, Any, Any]
_NO_LABEL = 'no {"key": ..., "label": ...}'


def _json_lines(file: Path) -> Iterator[Triple]:
    for where, row in json_lines(file, _NO_LABEL):
        try:
            yield where, row["key"], row["label"]
        except (KeyError, TypeError) as e:
            raise InputError(where, f"{_NO_LABEL} ({first_line(e)})") from None


def _csv(file: Path) -> Iterator[Triple]:
    reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")))
    if not {"key", "label"} <= set(reader.fieldnames or ()):
        raise InputError(str(file), "its first line does not name the columns key and label")
    for row in reader:
        yield f"{file}:line {reader.line_num}", row["key"], row["label"]


def _parquet(file: Path) -> Iterator[Triple]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["key", "label"])
    except pa.ArrowException as e:
        raise InputError(str(file), f"not a Parquet file with the columns key and label ({first_line(e)})") from None
    for number, row in enumerate(table.to_pylist()):
        yield f"{file}: row {number}", row.get("key"), row.get("label")
