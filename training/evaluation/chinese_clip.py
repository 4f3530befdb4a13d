"""Features and answers of a benchmark in the files that Chinese-CLIP's evaluation scripts read.

    OUT/{split}_imgs.img_feat.jsonl     {"image_id": 1, "feature": [...]}
    OUT/{split}_texts.txt_feat.jsonl    {"text_id": 1, "feature": [...]}
    OUT/{split}_texts.jsonl             {"text_id": 1, "text": "...", "image_ids": [1]}: text -> image answers
    OUT/{split}_texts.tr.jsonl          {"image_id": 1, "text_ids": [1]}: image -> text answers
    OUT/{split}_keys.tsv                image id, a tab, the image's name; only where its name is not a number

`make_topk_predictions.py` and `make_topk_predictions_tr.py` of PyPI's `cn-clip` search in the features, `evaluation.py`
and `evaluation_tr.py` compare what they found with the answers. Their recalls are those of `wenlan-train eval` on the
same data: an image without a caption is a candidate and no query in both, and so is a caption without an image. A
feature is float32, and JSON keeps all of its digits.

Ids are those of the benchmark where it numbers its images and texts, as Chinese-CLIP's own files do, else 1, 2, 3.

Limits: their scripts want at least ten candidates. Among candidates that are equally similar they count the first of
the file as the best, and `eval` counts the query's own as the last: exact duplicates may make a difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.benchmarks import Benchmark
from training.evaluation.evaluate import BenchmarkFeatures
from training.evaluation.hits import Features
from training.outputs.atomic_files import atomic_file

_NAMES = {"val": "valid"}
"""Chinese-CLIP's names of splits, where they differ."""


def write(folder: Path, benchmark: Benchmark, features: BenchmarkFeatures) -> list[str]:
    """Write the files of a benchmark into a folder, each atomically; their paths."""
    split = _NAMES.get(benchmark.split, benchmark.split)
    images = _numbers([int(name) if _is_number(name) else None for name in features.images])
    texts = _numbers([caption.number for caption in features.captions])
    of_text: dict[int, list[int]] = {text: [] for text in texts}
    of_image: dict[int, list[int]] = {}
    for image, text in sorted(
        zip(*features.hits.pairs(0, features.hits.images), strict=True), key=lambda pair: pair[1]
    ):
        of_text[texts[text]].append(images[image])
        of_image.setdefault(images[image], []).append(texts[text])
    captions = dict(zip(texts, features.captions, strict=True))
    files: dict[str, Iterable[Mapping[str, Any]]] = {
        f"{split}_imgs.img_feat.jsonl": _rows("image_id", images, features.image_ND),
        f"{split}_texts.txt_feat.jsonl": _rows("text_id", texts, features.text_MD),
        f"{split}_texts.jsonl": (
            {"text_id": text, "text": captions[text].text, "image_ids": ids} for text, ids in of_text.items() if ids
        ),
        f"{split}_texts.tr.jsonl": ({"image_id": image, "text_ids": ids} for image, ids in of_image.items()),
    }
    for name, rows in files.items():
        _write_lines(folder / name, (json.dumps(row, ensure_ascii=False) for row in rows))
    written = list(files)
    if [str(image) for image in images] != list(features.images):
        lines = (f"{image}\t{name}" for image, name in zip(images, features.images, strict=True))
        _write_lines(folder / f"{split}_keys.tsv", lines)
        written.append(f"{split}_keys.tsv")
    return [str(folder / name) for name in written]


def _is_number(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,999}", name) is not None  # Python reads no number of thousands of digits


def _numbers(given: Sequence[int | None]) -> list[int]:
    """The given numbers if there is one of each, else 1, 2, 3."""
    known = [number for number in given if number is not None]
    return known if len(set(known)) == len(given) else list(range(1, len(given) + 1))


def _rows(key: str, numbers: Sequence[int], features_ND: Features) -> Iterable[Mapping[str, Any]]:
    return ({key: n, "feature": row.tolist()} for n, row in zip(numbers, features_ND, strict=True))


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    with atomic_file(file) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(f"{line}\n" for line in lines)
