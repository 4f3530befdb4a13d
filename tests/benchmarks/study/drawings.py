"""Emoji with their Chinese names and keywords, and their drawings in several styles, out of npm packages.

Why emoji: every one of them is drawn by many hands, so a whole style can be held out, and names and keywords are real
Chinese text that nobody wrote for us. Names are those of Unicode's CLDR as `emojibase-data` has them; drawings are the
icon sets of Iconify, one JSON file of SVG bodies per style. Packages are fetched by npm and kept.

    train   Noto, Noto v1 ("blobs"), OpenMoji, Twemoji, Firefox OS, Streamline
    dev     EmojiOne        settings and length of every arm are chosen on it, and on dev names (split.py)
    val     Fluent          both of its forms (flat and shaded): what is reported as unseen style

A style's family is held out as a whole. Flags are left out: they look the same in every style. Skin tones are left
out: six pictures that differ in one colour would be five wrong answers each.

Limits: what is in a package may change with its version; the versions are part of every record of the study. An icon
is matched to an emoji by Iconify's name of it, so the few that have a name of their own in one set are not seen.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tests.demo.packages import DemoError, download_npm
from training.errors import InputError, first_line

Part = Literal["train", "dev", "val"]

NAMES = "emojibase-data"
"""Package of the names (MIT)."""

FLAGS, COMPONENTS = 9, 2
"""Groups of Unicode that are left out: flags, and skin tones and hair by themselves."""

_VARIATION = "fe0f"
"""Code point that asks for the coloured form; sets disagree on where it stands, so codes are compared without it."""


@dataclass(frozen=True, slots=True)
class Style:
    """A drawing style: the icon set of one npm package. `part` says what its drawings are used for."""

    name: str
    package: str
    part: Part
    licence: str


STYLES = (
    Style("Noto", "@iconify-json/noto", "train", "Apache-2.0"),
    Style("Noto v1", "@iconify-json/noto-v1", "train", "Apache-2.0"),
    Style("OpenMoji", "@iconify-json/openmoji", "train", "CC-BY-SA-4.0"),
    Style("Twemoji", "@iconify-json/twemoji", "train", "CC-BY-4.0"),
    Style("Firefox OS", "@iconify-json/fxemoji", "train", "Apache-2.0"),
    Style("Streamline", "@iconify-json/streamline-emojis", "train", "CC-BY-4.0"),
    Style("EmojiOne", "@iconify-json/emojione", "dev", "CC-BY-4.0"),
    Style("Fluent flat", "@iconify-json/fluent-emoji-flat", "val", "MIT"),
    Style("Fluent", "@iconify-json/fluent-emoji", "val", "MIT"),
)

_NAMED = tuple(f"@iconify-json/{name}" for name in ("noto", "openmoji", "twemoji", "fluent-emoji-flat"))
"""Sets that tell the emoji of an icon; the others call it by the same name."""


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji: its code points in lower-case hexadecimal, joined by `-`, its Chinese name and its keywords."""

    code: str
    name: str
    keywords: tuple[str, ...]


def needed(styles: Sequence[Style]) -> list[str]:
    """Packages that the drawings of some styles need: theirs, the names, and the sets that tell icons apart."""
    return sorted({NAMES, *_NAMED, *(style.package for style in styles)})


def packages(folder: Path, styles: Sequence[Style]) -> dict[str, Path]:
    """Tarball of each package by its name, downloaded into `folder` where it is not there. Raises InputError."""
    try:
        return {package: download_npm(package, folder) for package in needed(styles)}
    except DemoError as e:
        raise InputError("npm", str(e)) from None


def read_emoji(tarball: Path) -> list[Emoji]:
    """Emoji of emojibase's Chinese data in Unicode's order, without flags and skin tones. Raises InputError."""
    entries = json_member(tarball, "zh/data.json")
    try:
        return [
            Emoji(bare(e["hexcode"]), e["label"], tuple(e.get("tags", ())))
            for e in sorted(entries, key=lambda e: e.get("order", 0))
            if e.get("group", FLAGS) not in (FLAGS, COMPONENTS)
        ]
    except (KeyError, TypeError, AttributeError) as e:
        raise InputError(str(tarball), f"emojibase-data is laid out in another way now ({e!r})") from None


def bare(code: str) -> str:
    """An emoji's code points without the variation selector, in lower case."""
    return "-".join(point for point in code.lower().split("-") if point != _VARIATION)


class Drawings:
    """SVG documents of all styles by emoji, read from the tarballs of `packages`."""

    def __init__(self, tarballs: Mapping[str, Path]) -> None:
        self._tarballs = tarballs

    def codes(self, style: Style) -> dict[str, str]:
        """Name in the style's set of each emoji that it draws, by the emoji's code. Raises InputError."""
        icons = json_member(self._tarballs[style.package], "icons.json")
        # An alias may also turn or mirror its parent: that one is left out.
        drawn = {*icons["icons"], *(name for name, alias in icons.get("aliases", {}).items() if len(alias) == 1)}
        return {code: name for name, code in self._code_of.items() if name in drawn}

    def svg(self, style: Style, name: str) -> str:
        """SVG document of an icon."""
        return svg_of(json_member(self._tarballs[style.package], "icons.json"), name)

    @property
    def _code_of(self) -> dict[str, str]:
        """Emoji's code by Iconify's name; a name that means two emoji means none."""
        codes: dict[str, set[str]] = {}
        for package in _NAMED:
            for code, name in json_member(self._tarballs[package], "chars.json").items():
                codes.setdefault(name, set()).add(bare(code))
        return {name: next(iter(known)) for name, known in sorted(codes.items()) if len(known) == 1}


def svg_of(icons: Any, name: str) -> str:
    """SVG document of an icon of one of Iconify's sets."""
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    sides = [icon.get(key, icons.get(key, default)) for key, default in _BOX.items()]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{sides[0]} {sides[1]} {sides[2]} {sides[3]}">{icon["body"]}</svg>'
    )


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}
"""Sides of an icon's view box, with Iconify's defaults."""


def raster(svg: str, side: int) -> bytes:
    """PNG of a drawing, `side` x `side` pixels at most, with its alpha. Raises InputError on what resvg refuses."""
    import resvg_py

    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
    except (ValueError, RuntimeError) as e:
        raise InputError("drawing", f"cannot be drawn ({e})") from None


@lru_cache(maxsize=32)
def json_member(tarball: Path, name: str) -> Any:
    """JSON value of a member of an npm tarball. Raises InputError."""
    try:
        with tarfile.open(tarball) as archive:
            content = archive.extractfile(f"package/{name}")
            assert content is not None, "a JSON file is a regular file"
            return json.loads(content.read())
    except (OSError, tarfile.TarError, EOFError, KeyError, ValueError) as e:
        raise InputError(str(tarball), f"{name} cannot be read ({first_line(e)}); remove it and start again") from None
