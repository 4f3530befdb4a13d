"""Split of the emoji: names to train on, names to choose settings on (dev), and names to report (val).

By family: an emoji with its skin tones, its forms as man, woman and person, and its hair styles is one family, and no
family stands in two parts. The family's hash decides, so the split is the same whatever else is in the data.

Limits: 看书 and 书 are two families. Emoji that look alike without being forms of one (phases of the moon, clock
faces) may straddle.
"""

from __future__ import annotations

import hashlib

from tests.benchmarks.study.drawings import Part, bare

HELD_OUT = 0.1
"""Share of the families that is reported, and as large a share again for dev."""

_TONES = {f"1f3f{digit}" for digit in "bcdef"}
_HAIR = {f"1f9b{digit}" for digit in "0123"}
_SIGNS = {"2640", "2642"}
_JOINER = "200d"
_PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1"}
"""Man and woman -> person."""

_SINGLES = {
    "1f474": "1f9d3", "1f475": "1f9d3", "1f466": "1f9d2", "1f467": "1f9d2",  # old man, old woman; boy, girl
    "1f478": "1fac5", "1f934": "1fac5", "1f936": "1f385",  # princess, prince; Mrs Claus
    "1f57a": "1f483", "1f46d": "1f46b", "1f46c": "1f46b", "1f930": "1fac4", "1fac3": "1fac4",
}  # fmt: skip
"""Forms of one that have code points of their own -> the one that stands for all."""


def family(code: str) -> str:
    """The code that stands for an emoji's family: without skin tone, sign of man or woman, hair; people as persons."""
    points = [p for p in bare(code).split("-") if p not in _TONES and p not in _HAIR and p not in _SIGNS]
    points = [_SINGLES.get(p, _PEOPLE.get(p, p)) for p in points]
    kept = [p for i, p in enumerate(points) if p != _JOINER or 0 < i < len(points) - 1]
    while kept and kept[-1] == _JOINER:
        kept.pop()
    return "-".join(kept)


def part_of(code: str) -> Part:
    """Part of an emoji, by its family."""
    digest = hashlib.sha256(f"study {family(code)}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "val" if place < HELD_OUT else "dev" if place < 2 * HELD_OUT else "train"
