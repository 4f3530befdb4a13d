"""Filters: keep, or a reason to drop. One file each; the file's name is `name` in a spec.

A TextFilter looks at one text and needs no pixels: `pipeline.stages.admit` runs it before a byte is fetched. Texts that
fail are taken off the candidate; a candidate with none left is dropped. An ImageFilter looks at the measured features:
`pipeline.stages.filter` runs it. A PixelFilter needs a model that looks at the picture itself, which is dear:
`pipeline.stages.screen` runs it on what dedup kept, and caches its scores.

A text filter judges a text, rewrites it, or both, in the spec's order: each one sees what those before it have made of
the text, and what comes out of the last one is the text everywhere after (KEY.txt, dedup, STORE). So filters that
look for what a later one masks stand before it. Every filter sees every text, those that have failed already too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data_specs.build import BuildSpec
from data_specs.shard import Text, TextKind, canonical_json
from pipeline.pictures import models
from pipeline.pictures.decode import Pixels
from pipeline.plugins import Plugin, configure
from pipeline.records import DropReason, Features

RUNNING_KINDS: frozenset[TextKind] = frozenset({"surrounding", "abstract", "content"})
"""Kinds of running text: longer than what names or describes a picture, and judged by other measures."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A reason to drop, and what was seen (short, for people)."""

    reason: DropReason
    evidence: str = ""


class TextFilter(Plugin):
    """Judges one text, or rewrites it, or both; a filter defines `check`, `rewrite` or the two."""

    def check(self, text: Text) -> Drop | None:
        """None to keep."""
        return None

    def rewrite(self, text: Text) -> Text:
        """The text that takes its place; itself where there is nothing to change. Twice gives the same as once.

        Called for texts that failed, too: what is masked must not be read in a Decision either. A rewrite that is
        there to hide something hides it in `text.original` as well.
        """
        return text


class ImageFilter(Plugin):
    """Judges an image by its features."""

    def check(self, features: Features) -> Drop | None:
        """None to keep."""
        raise TypeError(f"{type(self).__name__} must check features")


class PixelFilter(Plugin):
    """Judges an image by one number that a model gives of its pixels; options say where the number is too high.

    VERSION is raised when the same picture and weights give another score.
    """

    NEEDS_SIDE: ClassVar[int] = 0
    """Shorter side in pixels that a decode has to keep; 0: the whole picture."""

    def weights(self) -> Path:
        """The model's file. Raises ModelError."""
        raise TypeError(f"{type(self).__name__} must name its weights")

    @property
    def score_id(self) -> str:
        """`name-<12 hex digits>` over version and weights: where STORE caches the scores, under any options."""
        value = [self.plugin_name(), self.VERSION, models.digest(self.weights())]
        return f"{self.plugin_name()}-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"

    def load(self) -> Any:
        """What a worker keeps. Raises ModelError."""
        return models.session(self.weights())

    def score(self, state: Any, pictures: Sequence[Pixels]) -> list[float]:
        """A score for each picture."""
        raise TypeError(f"{type(self).__name__} must score pictures")

    def judge(self, score: float) -> Drop | None:
        """None to keep."""
        raise TypeError(f"{type(self).__name__} must judge a score")


def text_filters(spec: BuildSpec) -> list[TextFilter]:
    """The spec's text filters, in its order."""
    return [f for f in _filters(spec) if isinstance(f, TextFilter)]


def image_filters(spec: BuildSpec) -> list[ImageFilter]:
    """The spec's image filters, in its order."""
    return [f for f in _filters(spec) if isinstance(f, ImageFilter)]


def pixel_filters(spec: BuildSpec) -> list[PixelFilter]:
    """The spec's filters of pixels, in its order."""
    return [f for f in _filters(spec) if isinstance(f, PixelFilter)]


def _filters(spec: BuildSpec) -> list[Plugin]:
    return [
        configure("filters", ref.name, ref.options, Plugin, f"filters[{i}]", spec.base)
        for i, ref in enumerate(spec.filters)
    ]
