"""Rows of FEATURE_SCHEMA from decoded pictures, and from the bytes of one image."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.features import features
from pipeline.pictures.decode import Header, Picture, decode
from pipeline.pictures.thumbs import REDUCE_TO, THUMB, Views, fill
from pipeline.records import FEATURE_SCHEMA

BATCH = 128
"""Pictures that features look at at once: a call costs more than what it does for one."""


_OF_HEADER = [field.name for field in dataclasses.fields(Header)]
"""Columns of FEATURE_SCHEMA that are known before anything is decoded."""


class FeatureRows:
    """Builds rows of FEATURE_SCHEMA, BATCH pictures at a time.

    Of a picture only its thumbnails (`_squares`) are kept until its batch is full, its pixels are not.
    """

    def __init__(self) -> None:
        self._plugins, self._headers = features(), list[Header]()
        self._squares = np.empty((BATCH, THUMB, THUMB, 4), np.uint8)
        self._columns: dict[str, list[Any]] = {name: [] for name in FEATURE_SCHEMA.names}

    def add(self, sha256: str, size: int, picture: Picture) -> None:
        """Take one decoded picture; `size` is that of its file in bytes."""
        self._columns["sha256"].append(sha256)
        self._columns["bytes"].append(size)
        fill(self._squares[len(self._headers)], picture)
        self._headers.append(picture.header)
        if len(self._headers) == BATCH:
            self._measure()

    def table(self) -> pa.Table:
        """All rows so far."""
        if self._headers:
            self._measure()
        return pa.table(self._columns, schema=FEATURE_SCHEMA)

    def _measure(self) -> None:
        """Add the columns of the waiting batch."""
        for name in _OF_HEADER:
            self._columns[name] += [getattr(header, name) for header in self._headers]
        views = Views(self._squares[: len(self._headers)])
        for name, plugin in self._plugins.items():
            self._columns[name] += plugin.of(views)
        self._headers = []


def measure_image(data: bytes, max_pixels: int) -> dict[str, Any]:
    """The columns of FEATURE_SCHEMA except sha256, from the bytes of one image. Raises PictureError."""
    rows = FeatureRows()
    rows.add("", len(data), decode(data, max_pixels, REDUCE_TO))
    (row,) = rows.table().drop_columns(["sha256"]).to_pylist()
    return dict(row)
