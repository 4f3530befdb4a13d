"""Originals for bench_near_images, in sets of one kind: what is at hand, and what Debian's packages hold.

Packages are downloaded once, by the package manager and without root, into the temporary folder. Files with the same
bytes are one original.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.harness import DEMO, photos, stamps

PACKAGES = {
    "photographs": ("mate-backgrounds", "ukui-wallpapers"),
    "screens": ("gimp-help-en",),
    "charts": ("python-matplotlib-doc",),
}
SETS = ("photos", "photographs", "screens", "charts", "drawings")
OF_ONE_KIND = 120
"""Originals of a set at most."""

SMALLEST = 3_000
"""Bytes; smaller files are buttons and bullets of a page."""


def originals(name: str) -> list[Path]:
    """The files of a set, evenly chosen among all that there are."""
    files = list({hashlib.sha256(file.read_bytes()).digest(): file for file in reversed(list(_all_of(name)))}.values())
    files.sort()
    return files[:: max(1, len(files) // OF_ONE_KIND)][:OF_ONE_KIND]


def _all_of(name: str) -> Iterator[Path]:
    if name == "photos":
        yield from photos()
    elif name == "drawings":
        yield from stamps()
    else:
        if name == "screens":
            yield from sorted((DEMO / "handbook" / "zh-CN" / "images").glob("*.png"))
        for package in PACKAGES[name]:
            yield from (file for file in sorted(_unpacked(package).rglob("*.*g")) if _is_wanted(file))


def _is_wanted(file: Path) -> bool:
    """Whether a file is an original: not one of a filter's effects on the same photo, nor a size of another file."""
    if file.suffix not in (".jpg", ".png") or file.stat().st_size < SMALLEST or file.is_symlink():
        return False
    return not ("examples" in file.parts or any(part in file.name for part in ("2_00x", "thumb", "_2x", ".2x")))


def _unpacked(package: str) -> Path:
    """A folder with the pictures of a Debian package."""
    from tests.demo.packages import download_deb, unpack_deb

    folder = Path(tempfile.gettempdir()) / "wenlan-near-packages"
    if not (folder / package).is_dir():
        deb = download_deb(package, folder, folder / "apt")
        unpack_deb(deb, folder / f".{package}")
        (folder / f".{package}").rename(folder / package)
    return folder / package
