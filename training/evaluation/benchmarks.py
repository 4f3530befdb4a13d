"""Public retrieval benchmarks, read as their publishers pack them: images, captions and their pairs.

    aic-icc:DIR          AI Challenger 2017 captions: caption_{train,validation}_annotations_*.json beside the images
    muge:DIR             MUGE / ECommerce-IC retrieval: MR_{train,valid}_imgs.tsv and MR_*_queries.jsonl
    chinese-clip:DIR     Chinese-CLIP's form of any of them: {split}_imgs.tsv and {split}_texts.jsonl
    coco-cn:DIR          COCO-CN 1805: imageid.human-written-caption.txt and coco-cn_{train,val,test}.txt
    flickr8k-cn:DIR      Flickr8k-CN: flickr8kzhc.caption.txt and flickr8k{train,val,test}.txt
    flickr30k-cn:DIR     Flickr30k-CN (seg.flickr30kzh*{split}.caption.txt) or Flickr30k-CNA (flickr30k_cn_{split}.txt)
    crossmodal-3600:DIR  Crossmodal-3600: captions.jsonl (its `zh`) and images/KEY.jpg; it has one split
    folder:DIR           image files, each beside a .txt of its name with one caption per line
    classes:DIR          a folder per class, named as the class, its images' caption: DIR/CLASS or DIR/SPLIT/CLASS
    rows:FILE            rows of BriVL's release (training/data/released_rows.py) with their boxes; primary texts

DIR is what the archive unpacks to, or a folder above it: files are found by name. Where a benchmark has the words of
its captions apart (AIC-ICC, Flickr30k-CN with `word:tag`), they are joined: Chinese is written without spaces.

Sources of the formats: the publishers' repositories and archives (github.com/AIChallenger, tianchi.aliyun.com/muge,
OFA-Sys/Chinese-CLIP README "Dataset preparation", li-xirong/coco-cn, li-xirong/flickr8kcn, google/crossmodal-3600).

Limits: captions are held in memory; images are read one batch at a time. Images of a folder are found once, by name.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_specs.errors import ContractError
from training.data.released_rows import PRIMARY, Box, BrokenRow, is_text, json_lines, read_rows
from training.errors import ConfigError, InputError, first_line

CAPTIONS_OF_IMAGES = "a hit is a caption of the image; every caption is a query"

_STANDARD = bytes.maketrans(b"-_", b"+/")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Suffixes of image files, in lower case."""

_TAGGED = re.compile(r"(?:\S+:[A-Za-z]+(?:\s+|$))+")
"""A caption in which every word has its part of speech, as BosonNLP writes it."""
_TAG = re.compile(r":[A-Za-z]+(?=\s|$)")
_SPACE_IN_CHINESE = re.compile(r"(?<=[^\x00-\x7f])\s+|\s+(?=[^\x00-\x7f])")
_CAPTION_ID = re.compile(r"(?P<image>\S+?)(?:\.jpg)?#(?:\w+#)?\d+\s+(?P<text>.+)")
"""ID.jpg#0, ID#0 or ID#zhc#0, then a tab or a space, then the caption."""


@dataclass(frozen=True, slots=True)
class BenchmarkPicture:
    """An image by its id in the benchmark: a file or encoded bytes, and its boxes where the benchmark brings them."""

    id: str
    content: Path | bytes
    boxes: tuple[Box, ...] | None = None

    def read(self) -> bytes:
        """The encoded image. Raises ContractError for what is not a regular file, OSError."""
        if isinstance(self.content, bytes):
            return self.content
        if self.content.exists() and not self.content.is_file():
            raise ContractError(f"{self.content}: not a regular file")  # a pipe, say: reading it would never end
        try:
            return self.content.read_bytes()
        except ValueError:  # a NUL in it, as a stranger's row may have
            raise ContractError(f"{self.content}: not a file name") from None


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and the ids of the images that it describes; without any it is a candidate but not a query."""

    text: str
    images: tuple[str, ...]
    number: int | None = None
    """Its id in the benchmark's own files, where those number texts."""


@dataclass(frozen=True)
class Benchmark:
    """A split of a benchmark. `pictures` reads its images again at each call, in order."""

    name: str
    split: str
    captions: tuple[Caption, ...]
    pictures: Callable[[], Iterator[BenchmarkPicture]]
    hit: str = CAPTIONS_OF_IMAGES
    boxes: str = "grid"
    """Name of its pictures' boxes in a result: the grid, or its own name where it brings them."""


def is_benchmark(data: str) -> bool:
    """True if an argument of `--data` names a benchmark: KIND:PATH with a known kind."""
    return data.partition(":")[0] in _READERS and ":" in data


def open_benchmark(data: str, split: str) -> Benchmark:
    """The benchmark that KIND:PATH names.

    split: train, dev, val or test; what its publisher calls `valid` or `validation` is val. Raises ConfigError for a
    split that the benchmark has not, InputError for files that are missing or not in its form.
    """
    kind, _, path = data.partition(":")
    place = Path(path)
    if not path or not place.exists():
        raise InputError(data, "no such file or folder")
    if not place.is_dir() and kind != "rows":
        raise InputError(data, "not a folder; give the folder that the benchmark was unpacked into")
    try:
        benchmark = _READERS[kind](place, split)
    except UnicodeDecodeError as e:
        raise InputError(data, f"contains a file that is not UTF-8 ({e.reason} at byte {e.start})") from None
    except OSError as e:
        raise InputError(str(e.filename or data), f"cannot be read ({e.strerror or e})") from None
    if not benchmark.captions:
        raise InputError(data, f"no captions in the {split} split")
    half = next((caption.text for caption in benchmark.captions if not is_text(caption.text)), None)
    if half is not None:
        raise InputError(data, f"a caption contains an unpaired surrogate: {half!r}")
    return benchmark


# --- the readers


def _aic_icc(place: Path, split: str) -> Benchmark:
    name = _split_name(split, {"train": "train", "val": "validation"}, "aic-icc")
    file = _find(place, f"caption_{name}_annotations_*.json")
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
        captions = [
            Caption(_join_words(text), (str(row["image_id"]),)) for row in rows for text in _texts(row["caption"])
        ]
        ids = list(dict.fromkeys(str(row["image_id"]) for row in rows))
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise InputError(str(file), f"not a list of image_id and caption ({first_line(e)})") from None
    return _of_files("aic-icc", split, place, ids, captions)


def _muge(place: Path, split: str) -> Benchmark:
    name = _split_name(split, {"train": "train", "val": "valid", "test": "test"}, "muge")
    if not any(place.rglob(f"MR_{name}_imgs.tsv")):
        return _chinese_clip(place, split, "muge")
    return _of_tsv(
        "muge", split, _find(place, f"MR_{name}_imgs.tsv"), _find(place, f"MR_{name}_queries.jsonl"), "query_text"
    )


def _chinese_clip(place: Path, split: str, kind: str = "chinese-clip") -> Benchmark:
    names = ("valid", "val") if split == "val" else (split,)
    name = next((n for n in names if any(place.rglob(f"{n}_imgs.tsv"))), names[0])
    return _of_tsv(kind, split, _find(place, f"{name}_imgs.tsv"), _find(place, f"{name}_texts.jsonl"), "text")


def _coco_cn(place: Path, split: str) -> Benchmark:
    name = _split_name(split, {"train": "train", "val": "val", "test": "test"}, "coco-cn")
    ids = _lines(_find(place, f"coco-cn_{name}.txt"))
    captions = _by_caption_id(_find(place, "imageid.human-written-caption.txt"), set(ids))
    return _of_files("coco-cn", split, place, ids, captions)


def _flickr8k_cn(place: Path, split: str) -> Benchmark:
    name = _split_name(split, {"train": "train", "val": "val", "test": "test"}, "flickr8k-cn")
    ids = [line.removesuffix(".jpg") for line in _lines(_find(place, f"flickr8k{name}.txt"))]
    captions = _by_caption_id(_find(place, "flickr8kzhc.caption.txt"), set(ids))
    return _of_files("flickr8k-cn", split, place, ids, captions)


def _flickr30k_cn(place: Path, split: str) -> Benchmark:
    name = _split_name(split, {"train": "train", "val": "val", "test": "test"}, "flickr30k-cn")
    patterns = (f"flickr30k_cn_{name}.txt", f"*flickr30kzh*{name}*caption*.txt")
    file = next((found for pattern in patterns for found in _below(place, pattern)), None)
    if file is None:
        raise InputError(str(place), f"holds neither {' nor '.join(patterns)}")
    captions = _by_caption_id(file, None)
    return _of_files("flickr30k-cn", split, place, list(dict.fromkeys(c.images[0] for c in captions)), captions)


def _crossmodal_3600(place: Path, split: str) -> Benchmark:
    file, captions, ids = _find(place, "captions.jsonl"), [], []
    for where, row in json_lines(file):
        try:
            ids.append(str(row["image/key"]))
            captions += [Caption(text.strip(), (ids[-1],)) for text in _texts(row["zh"]["caption"])]
        except (KeyError, TypeError, AttributeError) as e:
            raise InputError(where, f"not rows of image/key with captions in zh ({first_line(e)})") from None
    return _of_files("crossmodal-3600", "all", place, ids, captions)


def _folder(place: Path, split: str) -> Benchmark:
    files = [path for path in images_below(place) if path.with_suffix(".txt").is_file()]
    if not files:
        raise InputError(str(place), "contains no image with a .txt file of the same name")
    captions = [Caption(text, (_id_of(path),)) for path in files for text in _lines(path.with_suffix(".txt"))]
    pictures = [BenchmarkPicture(_id_of(path), path) for path in files]
    return Benchmark(f"folder:{place.name}", "all", tuple(captions), lambda: iter(pictures))


def _classes(place: Path, split: str) -> Benchmark:
    root, splits = folder_of_split(f"classes:{place}", place, split)
    files = {path: one.name for one in folders_in(root) for path in images_below(one)}
    captions = [Caption(of_class, (_id_of(path),)) for path, of_class in files.items()]
    pictures = [BenchmarkPicture(_id_of(path), path) for path in files]
    hit = "a hit is the name of the image's class"
    return Benchmark(f"classes:{place.name}", split if splits else "all", tuple(captions), lambda: iter(pictures), hit)


def _rows(place: Path, split: str) -> Benchmark:
    pictures, captions = dict[str, BenchmarkPicture](), list[Caption]()
    for row in read_rows(place):
        if isinstance(row, BrokenRow):
            raise InputError(row.where, row.problem)
        text = row.text(PRIMARY)
        if text is None:
            raise InputError(row.where, f"{row.id}: no text")
        pictures.setdefault(row.id, BenchmarkPicture(row.id, row.image, row.boxes or None))
        captions.append(Caption(text, (row.id,)))
    name = f"rows:{place.name}"
    boxes = name if any(picture.boxes for picture in pictures.values()) else Benchmark.boxes
    return Benchmark(name, "all", tuple(captions), lambda: iter(pictures.values()), boxes=boxes)


_READERS: Mapping[str, Callable[[Path, str], Benchmark]] = {
    "aic-icc": _aic_icc,
    "muge": _muge,
    "chinese-clip": _chinese_clip,
    "coco-cn": _coco_cn,
    "flickr8k-cn": _flickr8k_cn,
    "flickr30k-cn": _flickr30k_cn,
    "crossmodal-3600": _crossmodal_3600,
    "folder": _folder,
    "classes": _classes,
    "rows": _rows,
}

BENCHMARKS = tuple(_READERS)
"""Kinds of benchmarks, as `--data KIND:PATH` spells them."""


# --- parts of several formats


def _split_name(split: str, names: Mapping[str, str], kind: str) -> str:
    """Name of a split in a benchmark's own files. Raises ConfigError for one that it does not have."""
    name = names.get(split)
    if name is None:
        raise ConfigError("--split", f"{kind} does not have a {split} split with captions; it has {', '.join(names)}")
    return name


def _find(place: Path, pattern: str) -> Path:
    """The file of this name below a folder. Raises InputError unless there is exactly one."""
    found = _below(place, pattern)
    if not found:
        raise InputError(str(place), f"contains no {pattern}")
    if len(found) > 1:
        raise InputError(str(place), f"contains {len(found)} files {pattern}; give the folder of one of them")
    return found[0]


def _below(place: Path, pattern: str) -> list[Path]:
    """Files of a name below a folder, in the order of their paths; not what is hidden, as in `images_below`."""
    found = sorted(place.rglob(pattern))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(place).parts)]


def _of_files(kind: str, split: str, place: Path, ids: list[str], captions: list[Caption]) -> Benchmark:
    """A benchmark whose images are files named ID.jpg, or ID, somewhere below `place`."""
    files = {path.name: path for path in reversed(images_below(place))}  # of one name the first
    pictures = []
    for name in ids:
        path = files.get(name) or next((files[name + s] for s in SUFFIXES if name + s in files), None)
        if path is None:
            raise InputError(
                str(place), f"lacks the image {name}, which {kind} lists; put its images below this folder"
            )
        pictures.append(BenchmarkPicture(name, path))
    return Benchmark(kind, split, tuple(captions), lambda: iter(pictures))


def _id_of(path: Path) -> str:
    """A path as the id of its image: a name that is not UTF-8 with escapes, since no page or JSON could hold it."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _texts(value: Any) -> list[str]:
    """A JSON value that is a list of texts. Raises TypeError: of one text, each character would be taken."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"not a list of texts: {value!r:.80}")
    return value


def folders_in(place: Path) -> list[Path]:
    """Folders directly in a folder, in the order of their names; not hidden ones, such as .git."""
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "dev": ("dev",),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def folder_of_split(data: str, place: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a split's classes, and those of all splits; `place` and none where a folder in it is of a class.

    Raises ConfigError where there are splits, and not this one.
    """
    found = {of: place / name for of, names in SPLIT_FOLDERS.items() for name in names if (place / name).is_dir()}
    if set(folders_in(place)) - set(found.values()):
        found = {}
    if found and split not in found:
        raise ConfigError("--split", f"{data} does not have a {split} split; it has {', '.join(found)}")
    return found.get(split, place), found


def images_below(place: Path) -> list[Path]:
    """Image files in the order of their paths; not what is hidden, such as macOS's ._1.jpg and .ipynb_checkpoints."""
    found = list[Path]()
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def _of_tsv(kind: str, split: str, images: Path, texts: Path, text_key: str) -> Benchmark:
    """A benchmark of a table of images (id, tab, base64) and JSON lines of texts with the ids of their images."""
    ids_key, number_key = ("item_ids", "query_id") if text_key == "query_text" else ("image_ids", "text_id")
    captions = list[Caption]()
    for where, row in json_lines(texts):
        try:
            number, text, ids = row.get(number_key), row[text_key], row[ids_key]
            if not isinstance(text, (str, int, float)) or not isinstance(ids, list):
                raise TypeError(f"{text_key} {text!r:.80}, {ids_key} {ids!r:.80}")
            images_of = tuple(str(i) for i in ids)
            captions.append(Caption(str(text).strip(), images_of, number if isinstance(number, int) else None))
        except (AttributeError, KeyError, TypeError) as e:
            raise InputError(
                where, f"no {text_key} with {ids_key} ({first_line(e)}); does this split have answers?"
            ) from None
    if captions and not any(caption.images for caption in captions):
        raise InputError(str(texts), f"no {ids_key} in any line; does this split have answers?")
    return Benchmark(kind, split, tuple(captions), lambda: _tsv_pictures(images))


def _tsv_pictures(file: Path) -> Iterator[BenchmarkPicture]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            name, tab, encoded = line.rstrip(b"\r\n").partition(b"\t")
            try:
                if not tab:
                    raise ValueError("the tab is missing")
                # both alphabets of base64 are met: cn_clip reads the URL-safe one, its guide writes the other
                yield BenchmarkPicture(name.decode(), base64.b64decode(encoded.translate(_STANDARD), validate=True))
            except ValueError as e:  # binascii.Error and UnicodeDecodeError among them
                raise InputError(f"{file}:line {number}", f"not an id, a tab and base64 ({first_line(e)})") from None


def _by_caption_id(file: Path, wanted: set[str] | None) -> list[Caption]:
    """Captions of lines `ID#0 caption`, of all images or of the wanted ones. Raises InputError naming a line."""
    captions = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        match = _CAPTION_ID.fullmatch(line.strip())
        if match is None:
            raise InputError(f"{file}:line {number}", "not an image id, # and number, then a caption")
        if wanted is None or match["image"] in wanted:
            captions.append(Caption(_join_words(match["text"]), (match["image"],)))
    return captions


def _join_words(text: str) -> str:
    """Join the words of a caption and drop their tags (`红色:a`); spaces between Latin words stay."""
    text = text.strip()
    return _SPACE_IN_CHINESE.sub("", _TAG.sub("", text) if _TAGGED.fullmatch(text) else text)


def _lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped."""
    return [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
