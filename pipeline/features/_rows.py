"""Rows of FEATURE_SCHEMA from decoded pictures, and from the bytes of one image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.features import features
from pipeline.pictures.decode import Header, Picture, decode
from pipeline.pictures.thumbs import REDUCE_TO, THUMB, Views, fill
from pipeline.records import FEATURE_SCHEMA

BATCH = 128
"""Pictures that features look at at once: a call costs more than what it does for one."""


class FeatureRows:
    """Rows of FEATURE_SCHEMA in the making: features look at BATCH pictures at once, pixels go as soon as they come."""

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
            self._look()

    def table(self) -> pa.Table:
        """All rows so far."""
        if self._headers:
            self._look()
        return pa.table(self._columns, schema=FEATURE_SCHEMA)

    def _look(self) -> None:
        """Measure the pictures that wait, and free their squares."""
        for name in ("format", "width", "height", "frames", "alpha", "orientation"):
            self._columns[name] += [getattr(header, name) for header in self._headers]
        views = Views(self._squares[: len(self._headers)])
        for name, plugin in self._plugins.items():
            self._columns[name] += plugin.of(views)
        self._headers = []


def measure_image(data: bytes, max_pixels: int) -> dict[str, Any]:
    """The columns of FEATURE_SCHEMA but sha256, from the bytes of one image. Raises PictureError."""
    rows = FeatureRows()
    rows.add("", len(data), decode(data, max_pixels, REDUCE_TO))
    (row,) = rows.table().drop_columns(["sha256"]).to_pylist()
    return dict(row)
