"""Thumbnails for notebooks, of shards by strangers. tests/test_wenlan.py shows those of a real dataset."""

from __future__ import annotations

import io
import subprocess

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipeline.report import gallery
from pipeline.store.samples import Stored

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%id) (w) file\nshowpage\n%%EOF\n"


def _stored(image: bytes) -> Stored:
    none = np.zeros(0, np.float32)
    return Stored({"key": "0" * 32}, image, b"{}", none.reshape(0, 4), none, np.zeros(0, np.int32))


def test_a_picture_is_a_jpeg_and_nothing_starts_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives an EPS to Ghostscript, a program for a language: no shard of ours holds one."""
    started: list[object] = []
    for name in ("Popen", "check_call", "call", "run"):
        monkeypatch.setattr(subprocess, name, lambda *args, **_: started.append(args))
    with Image.open(io.BytesIO(EPS)) as opened:
        assert opened.format == "EPS", "Pillow knows it"
    with pytest.raises(UnidentifiedImageError):
        gallery.picture(_stored(EPS))
    assert started == []
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 4)).save(jpeg, "JPEG")
    assert gallery.picture(_stored(jpeg.getvalue())).size == (8, 4)
