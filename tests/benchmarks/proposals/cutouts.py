"""Material of the composites: cut-out things with alpha masks, and photos for their surfaces and the backgrounds.

All of it is under licences that Apache-2.0 takes in (NOTICE names them). Things are Microsoft's Fluent emoji, rendered
in three dimensions (npm `@lobehub/fluent-emoji-3d`, MIT), and Google's Noto emoji (npm `@iconify-json/noto`,
Apache-2.0; SVG, rasterised by resvg). Photos are those of HowToCook (public domain) that `photos.txt` lists: the ones
in which the judge of tests/benchmarks/bench_proposals.py sees nothing, so that no photo on which the detector is
measured trained it. Downloads and rasterised drawings are kept in the folder for the next time.

Left out: pictures under the GPL or CC-BY-SA, which trained the weights of earlier versions, and drawings under CC-BY,
which would leave a question open. Signs, letters and flags are no things, and one tone of skin is enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.demo.packages import DemoError, download_npm, unpack_npm

Pixels = npt.NDArray[Any]
"""uint8; cv2's annotations do not say so."""

RENDERED, DRAWN = "@lobehub/fluent-emoji-3d", "@iconify-json/noto"
PHOTOS = Path(__file__).with_name("photos.txt")

SIDE = 256
"""Pixels of the longer side of a thing, at most."""

FILLED = 0.35
"""Share of its box that a thing's mask covers at least: less is a drawing of lines."""

NO_THING = re.compile(r"flag|keycap|button|symbol|letter|sign|-skin-tone|^\d|_bw|outline|zodiac|arrow|clock-face")
"""Names of drawings that are no things, or that repeat one in another tone of skin or without colours."""


@dataclass(frozen=True)
class Cutouts:
    """Things [H, W, 4] BGR and alpha, cropped to their masks: rendered ones, with light and shade, and drawn ones; and
    photos [H, W, 3] BGR, of which only parts are used, as textures.
    """

    rendered: list[Pixels]
    drawn: list[Pixels]
    photos: list[Pixels]


def load(folder: Path, site: Path) -> Cutouts:
    """The cut-outs, fetched and unpacked below `folder` where they are not there yet, and photos of HowToCook's `site`.

    Raises DemoError.
    """
    import cv2

    for name, below in ((RENDERED, "assets/"), (DRAWN, "icons.json")):
        if not (folder / name).is_dir():
            unpack_npm(download_npm(name, folder / "packages"), folder / name, [below])
    rendered = [p for p in sorted((folder / RENDERED / "assets").glob("*.webp")) if _is_thing(p.stem)]
    names = PHOTOS.read_text(encoding="utf-8").split()
    read = [cv2.imread(str(site / name)) for name in names if (site / name).is_file()]
    photos = [photo for photo in read if photo is not None]
    if len(photos) < len(names):
        raise DemoError(f"{site}: holds {len(photos)} of the {len(names)} photos that {PHOTOS.name} lists")
    cutouts = Cutouts(list(_things(rendered)), list(_things(_rasterised(folder / DRAWN))), photos)
    if min(len(cutouts.rendered), len(cutouts.drawn)) < 100:
        raise DemoError("the packages of the cut-outs no longer hold what they did")
    return cutouts


def _is_thing(points: str) -> bool:
    """Whether an emoji of these code points is neither a key, a flag, a sign nor a variant by tone of skin."""
    first, *rest = (int(point, 16) for point in points.split("-"))
    return first >= 0x1F300 and not any(0x1F3FB <= point <= 0x1F3FF for point in rest)


def _things(paths: list[Path]) -> Iterator[Pixels]:
    import cv2

    for path in paths:
        thing = _cut(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        if thing is not None:
            yield thing


def _cut(picture: Pixels | None) -> Pixels | None:
    """A thing cropped to its mask and reduced to SIDE; None without an alpha channel, if too small or full of gaps."""
    import cv2

    if picture is None or picture.ndim != 3 or picture.shape[2] != 4 or picture.dtype != np.uint8:
        return None
    mask = (picture[:, :, 3] > 127).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    if min(width, height) < 12 or cv2.countNonZero(mask) < FILLED * width * height:
        return None
    picture = picture[y : y + height, x : x + width]
    scale = SIDE / max(width, height)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture)


def _rasterised(folder: Path) -> list[Path]:
    """The drawings of an Iconify set as PNG files."""
    made = folder / "png"
    if not made.is_dir():
        import resvg_py

        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        new = folder / ".png"
        new.mkdir(exist_ok=True)
        box = f'viewBox="0 0 {icons["width"]} {icons["height"]}"'
        for name, icon in sorted(icons["icons"].items()):
            if not NO_THING.search(name):
                svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box}>'
                png = resvg_py.svg_to_bytes(svg_string=f"{svg}{icon['body']}</svg>", width=SIDE, height=SIDE)
                (new / f"{name}.png").write_bytes(bytes(png))
        new.replace(made)
    return sorted(made.glob("*.png"))
