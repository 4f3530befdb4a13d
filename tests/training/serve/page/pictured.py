"""Samples for tests of the page: drawn pictures with texts, near-copies among them, and a hostile stranger's."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ROWS = 90
FEW = 8
"""Of each kind of rows there are some among so many."""
W, H = 240, 180
BOXES = ((0, 0, 120, 90), (120, 90, 240, 180), (60, 45, 180, 135))
HOSTILE = '<img src=x onerror="window.broken = 1">恶意文字'
VERSES = (
    "明月几时有，把酒问青天。\t苏轼《水调歌头》",
    "大江东去，浪淘尽，千古风流人物。\t苏轼《念奴娇》",
    "春花秋月何时了。\t李煜《虞美人》",
)


def drawn(number: int) -> bytes:
    """A JPEG with a square of one colour on another."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (W, H), tuple(int(v) for v in rng.integers(0, 256, 3)))
    ImageDraw.Draw(image).rectangle((120, 90, 239, 179), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def text_of(number: int) -> str:
    return HOSTILE if number == 1 else f"第{number}幅{'红' if number % 2 else '蓝'}色的画"


def row(number: int, folder: Path) -> dict[str, Any]:
    """A row of the index; rows 2 and 3 are near-copies of row 0, and row 1 was written by somebody hostile."""
    shown = 0 if number in (2, 3) else number
    content = drawn(shown)
    file = folder / f"{number}.jpg"
    file.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    texts = [{"kind": "alt", "text": text_of(number)}, {"kind": "surrounding", "text": f"周围的文字{number}"}]
    return {
        "id": f"{number:032x}",
        "caption": text_of(number),
        "texts": [*texts, {"kind": "tag", "text": "画"}],
        "url": f"https://img.example/{number}.jpg",
        "page_url": "javascript:window.broken=2" if number == 1 else f"https://news.example/{number}.html",
        "sha256": digest,
        "width": W,
        "height": H,
        "source": "news" if number % 3 else "wiki",
        "license": "CC0-1.0" if number % 2 else "",
        "split": ("train", "dev", "val")[number % 3],
        "image_leader": digest,
        "text_leader": hashlib.sha256(text_of(number).encode()).hexdigest(),
        "boxes": [float(side) for box in BOXES for side in box],
        "where": {"path": str(file), "offset": 0, "size": len(content), "sha256": digest},
    }
