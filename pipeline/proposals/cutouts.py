"""Material of the composites: cut-out things with alpha masks, and background photos on which nothing stands out.

Things are Tux Paint's stamps (Debian `tuxpaint-stamps-default`) and OpenMoji's drawings (npm `openmoji`, rasterised by
resvg); backgrounds are Tux Paint's photo templates (Debian `tuxpaint-data`). Their licences (GPL-2.0-or-later and
CC-BY-SA-4.0) are stated in pipeline/detectors/README.md. Downloads and rasterised drawings are kept in the folder for
the next time.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.demo.packages import DemoError, download_deb, download_npm, unpack_deb, unpack_npm

Pixels = npt.NDArray[Any]
"""uint8; cv2's annotations do not say so."""

SIDE = 256
"""Pixels of the longer side of a thing, at most."""

LETTERS = ("symbols/alphabets", "symbols/math", "symbols/money/00_symbols", "symbols/punctuation")
"""Stamps that are signs rather than things."""

FULL_OF_THINGS = {"jellyfish", "lighthouse", "rainbow_gradient", "sheep", "wool_mill_machine"}
"""Photo templates that show things themselves, for which there are no boxes."""


@dataclass(frozen=True)
class Cutouts:
    """Things [H, W, 4] BGR and alpha, cropped to their masks; grounds (backgrounds) [H, W, 3] BGR."""

    photos: list[Pixels]
    drawings: list[Pixels]
    grounds: list[Pixels]


def load(folder: Path) -> Cutouts:
    """The cut-outs, fetched and unpacked below `folder` where they are not there yet. Raises DemoError."""
    import cv2

    packages = folder / "packages"
    for name in ("tuxpaint-stamps-default", "tuxpaint-data"):
        if not (folder / name).is_dir():
            unpack_deb(download_deb(name, packages, packages / "apt"), folder / name)
    if not (folder / "openmoji").is_dir():
        unpack_npm(download_npm("openmoji", packages), folder / "openmoji", ["color/svg/", "LICENSE"])
    stamps = folder / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    paths = [p for p in sorted(stamps.rglob("*.png")) if not p.relative_to(stamps).as_posix().startswith(LETTERS)]
    things = [(p, _cut(cv2.imread(str(p), cv2.IMREAD_UNCHANGED))) for p in paths]
    drawings = [_cut(cv2.imread(str(p), cv2.IMREAD_UNCHANGED)) for p in _drawings(folder / "openmoji")]
    templates = sorted((folder / "tuxpaint-data/usr/share/tuxpaint/templates").glob("*.jpg"))
    grounds = [cv2.imread(str(path)) for path in templates if path.stem not in FULL_OF_THINGS]
    cutouts = Cutouts(
        [thing for path, thing in things if thing is not None and "cartoon" not in path.parts],
        [t for t in [t for path, t in things if "cartoon" in path.parts] + drawings if t is not None],
        [ground for ground in grounds if ground is not None],
    )
    if min(len(cutouts.photos), len(cutouts.drawings), len(cutouts.grounds)) < 10:
        raise DemoError("the packages of the cut-outs no longer hold what they did")
    return cutouts


def _cut(picture: Pixels | None) -> Pixels | None:
    """A thing cropped to its mask and reduced to SIDE; None if it has no alpha channel or is too small."""
    import cv2

    if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
        return None
    x, y, width, height = cv2.boundingRect((picture[:, :, 3] > 127).astype(np.uint8))
    if min(width, height) < 12:
        return None
    picture = picture[y : y + height, x : x + width]
    scale = SIDE / max(width, height)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture)


def _drawings(folder: Path) -> list[Path]:
    """OpenMoji's drawings as PNG files. Installs the wheel of resvg if it is missing."""
    made = folder / "png"
    if not made.is_dir():
        try:
            resvg = importlib.import_module("resvg_py")
        except ImportError:
            if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "resvg-py"]).returncode:
                raise DemoError("resvg-py, which draws OpenMoji's SVG files, could not be installed with pip") from None
            importlib.invalidate_caches()
            resvg = importlib.import_module("resvg_py")
        new = folder / ".png"
        new.mkdir(exist_ok=True)
        for path in sorted((folder / "color/svg").glob("*.svg")):
            png = resvg.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=SIDE, height=SIDE)
            (new / f"{path.stem}.png").write_bytes(bytes(png))
        new.replace(made)
    return sorted(made.glob("*.png"))
