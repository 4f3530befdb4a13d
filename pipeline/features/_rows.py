"""Rows of FEATURE_SCHEMA from decoded pictures, and from the bytes of one image."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import OURS, evidence
from pipeline.features.columns import FEATURES
from pipeline.pictures.decode import Header, Picture, PictureError, Pixels, decode
from pipeline.pictures.details import may_have_map, squares_of
from pipeline.pictures.thumbs import REDUCE_TO, THUMB, Views, content, fill, unframed
from pipeline.rows.records import FEATURE_SCHEMA

BATCH = 128
"""Pictures that features look at at once: a call costs more than what it does for one."""


_HEADER_COLUMNS = [field.name for field in dataclasses.fields(Header)]
"""Columns of FEATURE_SCHEMA that are known before anything is decoded."""


class FeatureRows:
    """Builds rows of FEATURE_SCHEMA, BATCH pictures at a time.

    Of a picture only its thumbnails (`_squares`) are kept until its batch is full, its pixels are not.
    """

    def __init__(self) -> None:
        self._waiting = list[tuple[str, int, Header]]()
        self._squares = np.empty((BATCH, THUMB, THUMB, 4), np.uint8)
        # squares of what lies inside a frame, and between margins, by number in the batch
        self._inside, self._contents = dict[int, Pixels](), dict[int, Pixels]()
        self._flat = dict[int, tuple[Pixels, Pixels]]()  # what details are made of, by number in the batch
        self._columns: dict[str, list[Any]] = {name: [] for name in FEATURE_SCHEMA.names}
        self.faults: dict[str, str] = {}
        """Evidence of the pictures on which a feature failed, by sha256. They are without a row."""

    def add(self, sha256: str, size: int, picture: Picture) -> None:
        """Take one decoded picture; `size` is that of its file in bytes."""
        number = len(self._waiting)
        fill(self._squares[number], picture)
        inside, between = unframed(picture), content(picture)
        flat = squares_of(picture.pixels) if may_have_map(picture.pixels, self._squares[number]) else None
        # once all is made: of a picture on which that fails nothing may stay at a number that the next one gets
        if inside is not None:
            self._inside[number] = inside
        if between is not None:
            self._contents[number] = between
        if flat is not None:
            self._flat[number] = flat
        self._waiting.append((sha256, size, picture.header))
        if len(self._waiting) == BATCH:
            self._measure()

    def table(self) -> pa.Table:
        """All rows so far."""
        if self._waiting:
            self._measure()
        return pa.table(self._columns, schema=FEATURE_SCHEMA)

    def _measure(self) -> None:
        """Add the columns of the waiting batch."""
        waiting, self._waiting = self._waiting, []
        squares, inside, contents, flat = self._squares[: len(waiting)], self._inside, self._contents, self._flat
        self._inside, self._contents, self._flat = {}, {}, {}
        try:
            self._append(waiting, self._values(Views(squares, inside, contents, flat)))
            return
        except OURS:
            raise
        except Exception:  # on one of them, or on all: each picture alone says which
            for i, picture in enumerate(waiting):
                try:
                    within, between = ({0: of[i]} if i in of else {} for of in (inside, contents))
                    details = {0: flat[i]} if i in flat else {}
                    values = self._values(Views(squares[i : i + 1], within, between, details))
                except OURS:
                    raise
                except Exception as e:
                    self.faults[picture[0]] = evidence(e, f"image {picture[0]}")
                else:
                    self._append([picture], values)

    def _values(self, views: Views) -> dict[str, list[Any]]:
        """The values of every feature for each of some pictures."""
        return {name: feature.of(views) for name, feature in FEATURES.items()}

    def _append(self, pictures: list[tuple[str, int, Header]], values: dict[str, list[Any]]) -> None:
        """Add the rows of some pictures."""
        self._columns["sha256"] += [sha256 for sha256, _, _ in pictures]
        self._columns["bytes"] += [size for _, size, _ in pictures]
        for name in _HEADER_COLUMNS:
            self._columns[name] += [getattr(header, name) for _, _, header in pictures]
        for name, column in values.items():
            self._columns[name] += column


def measure_image(data: bytes, max_pixels: int) -> dict[str, Any]:
    """The columns of FEATURE_SCHEMA except sha256, from the bytes of one image. Raises PictureError."""
    rows = FeatureRows()
    rows.add("", len(data), decode(data, max_pixels, REDUCE_TO))
    table = rows.table()
    if rows.faults:
        raise PictureError(rows.faults[""])
    (row,) = table.drop_columns(["sha256"]).to_pylist()
    return dict(row)
