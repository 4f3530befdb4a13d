"""Rows in BriVL's released format: one JSON object per line with an image path, texts by kind, and boxes.

    {"image_id": PATH, "sentences": [["alt_text", "..."], ["sur_text", "..."], ...], "bbox": [[x1, y1, x2, y2], ...]}

Boxes are pixels of the image, best first. Text kinds go by the release's names or by ours (`alt_text` is `alt`;
`sur_text` and `surText` are `surrounding`); `easy` (the first 128 characters of the surrounding text) and `first` (its
first sentence, without the closing 。) are taken from the row, or made where it has the surrounding text only.

A line that is not such a row is a `BrokenRow`, a value and not an error: the others are still of use.

Limits: the file is read line by line, never whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_specs.names import DERIVED_KINDS, TEXT_KINDS
from training.errors import InputError, first_line

Box = tuple[float, float, float, float]

MOST = 2**31
"""Bound on the numbers of a box: beyond any picture, and far from what float32 has for infinite."""

PRIMARY = "primary"
"""The first text of a row, of whatever kind."""

_OURS = {"alt_text": "alt", "sur_text": "surrounding", "surText": "surrounding"}
_EASY_LENGTH = 128

ROW_TEXT_KINDS = (PRIMARY, *_OURS, *DERIVED_KINDS, *TEXT_KINDS)
"""Values of `--text-kind`."""


def derived_text(kind: str, surrounding: str) -> str:
    """`easy` or `first` (DERIVED_KINDS) of a surrounding text."""
    return surrounding[:_EASY_LENGTH] if kind == "easy" else surrounding.partition("。")[0]


@dataclass(frozen=True, slots=True)
class ReleasedRow:
    """One row. `where` is FILE:line N; `boxes` are x1 y1 x2 y2 as in the file; `texts` are by our kinds, in order."""

    where: str
    id: str
    image: Path
    boxes: tuple[Box, ...]
    texts: Mapping[str, str]

    def text(self, kind: str) -> str | None:
        """The text of a kind (ours or a released name), or None if the row lacks it."""
        kind = _OURS.get(kind, kind)
        if kind == PRIMARY:
            return next(iter(self.texts.values()), None)
        surrounding = self.texts.get("surrounding")
        if kind in self.texts or kind not in DERIVED_KINDS or surrounding is None:
            return self.texts.get(kind)
        return derived_text(kind, surrounding)


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be used: its place or name, and the problem."""

    where: str
    problem: str


def read_rows(file: Path) -> Iterator[ReleasedRow | BrokenRow]:
    """All rows of a file in order; empty lines are skipped. Raises OSError."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield parse_row(line, f"{file}:line {number}", file.parent)


def boxes_of(value: Any) -> tuple[Box, ...]:
    """Boxes of a JSON value. Raises ValueError when it is not a list of lists of four numbers below MOST."""
    if not isinstance(value, list) or not all(isinstance(box, list) and len(box) == 4 for box in value):
        raise ValueError("its boxes are not lists of four numbers")
    numbers = [n for box in value for n in box]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and -MOST < n < MOST for n in numbers):
        raise ValueError("its boxes are not finite numbers")
    return tuple((float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in value)


def boxes_of_flat(flat: Sequence[float]) -> tuple[Box, ...]:
    """Boxes of a flat list of R x 4 numbers. Raises ValueError on another one."""
    if len(flat) % 4:
        raise ValueError("boxes that are not groups of four numbers")
    return boxes_of([list(map(float, flat[i : i + 4])) for i in range(0, len(flat), 4)])


def parse_row(line: bytes, where: str, folder: Path) -> ReleasedRow | BrokenRow:
    """The row of a line; `where` is its name in messages, `folder` where its image's path begins."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        return BrokenRow(where, f"not JSON ({first_line(e)})")
    if not isinstance(value, dict) or not isinstance(value.get("image_id"), str) or not value["image_id"]:
        return BrokenRow(where, "image_id is missing")
    if not is_text(value["image_id"]):
        return BrokenRow(where, "its image_id contains an unpaired surrogate")
    try:
        boxes = boxes_of(value.get("bbox", []))
        texts = _texts(value.get("sentences", []))
    except ValueError as e:
        return BrokenRow(where, f"{value['image_id']}: {first_line(e)}")
    return ReleasedRow(where, value["image_id"], folder / value["image_id"], boxes, texts)


def json_lines(file: Path, what: str = "not JSON") -> Iterator[tuple[str, Any]]:
    """(FILE:line N, value) of each line that is not empty. Raises InputError saying `what`, OSError."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{file}:line {number}", json.loads(line)
                except (ValueError, RecursionError) as e:
                    raise InputError(f"{file}:line {number}", f"{what} ({first_line(e)})") from None


def is_text(value: str) -> bool:
    """True if a JSON text is free of unpaired surrogates, which file names, digests and tokenizers reject."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, list) or not all(_is_pair(pair) for pair in value):
        raise ValueError("its sentences are not pairs of kind and text")
    if not all(is_text(part) for pair in value for part in pair):
        raise ValueError("its sentences contain an unpaired surrogate")
    texts: dict[str, str] = {}
    for kind, text in value:
        texts.setdefault(_OURS.get(kind, kind), text)
    return texts


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
