"""Filters: keep, or a reason to drop. One file each; the file's name is `name` in a spec.

A TextFilter looks at one text and needs no pixels: `pipeline.admit` runs it before a byte is fetched. Texts that fail
are taken off the candidate; a candidate with none left is dropped. An ImageFilter looks at the measured features:
`pipeline.filter` runs it. Filters only look; they never change what they are given.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline.plugins import Plugin, configure
from pipeline.records import DropReason, Features


@dataclass(frozen=True, slots=True)
class Drop:
    """A reason to drop, and what was seen (short, for people)."""

    reason: DropReason
    evidence: str = ""


class TextFilter(Plugin):
    """Judges one text."""

    def check(self, text: Text) -> Drop | None:
        """None to keep."""
        raise TypeError(f"{type(self).__name__} must check a text")


class ImageFilter(Plugin):
    """Judges an image by its features."""

    def check(self, features: Features) -> Drop | None:
        """None to keep."""
        raise TypeError(f"{type(self).__name__} must check features")


def text_filters(spec: BuildSpec) -> list[TextFilter]:
    """The spec's text filters, in its order."""
    return [f for f in _filters(spec) if isinstance(f, TextFilter)]


def image_filters(spec: BuildSpec) -> list[ImageFilter]:
    """The spec's image filters, in its order."""
    return [f for f in _filters(spec) if isinstance(f, ImageFilter)]


def _filters(spec: BuildSpec) -> list[Plugin]:
    return [configure("filters", ref.name, ref.options, Plugin, f"filters[{i}]") for i, ref in enumerate(spec.filters)]
