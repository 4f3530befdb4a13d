"""Drops banners and strips: pictures that are much taller than wide, or much wider than tall.

By default at most 3 to 1 either way, as Wukong and DataComp have it; 5 to 1 for a picture with words of its own, an alt
or a caption: panoramas, screenshots of pages and diagrams have them more often than banners do. In a collection
(`pipeline.filters.is_collection`) 20 to 1: people chose its pictures, scrolls among them, and beyond that it is a line.

Thresholds: Wukong (aspect 1/3 to 3) and DataComp basic (at most 3); ours for a picture with an alt or a caption (5) and
in a collection (20).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from data_specs.build import SourceRef
from pipeline.filters import Drop, ImageFilter, Limit, is_collection
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features

_MAX, _MAX_WITH_OWN_WORDS, _MAX_OF_COLLECTIONS = 3.0, 5.0, 20.0


class ImageAspect(ImageFilter):
    """Longer side divided by shorter side."""

    VERSION: ClassVar[int] = 2

    max_aspect: float | None = Field(
        None,
        ge=1,
        description="longer side divided by shorter side; default: 5 with an alt or caption, else 3; "
        "20 in a folder or library",
    )

    def for_source(self, source: SourceRef) -> ImageAspect:
        unstated = is_collection(source) and self.max_aspect is None
        return ImageAspect(max_aspect=_MAX_OF_COLLECTIONS) if unstated else self

    def with_own_words(self) -> ImageAspect:
        return self if self.max_aspect is not None else ImageAspect(max_aspect=_MAX_WITH_OWN_WORDS)

    def limits(self) -> tuple[Limit, ...]:
        # a picture is measured, not its words: the limit that each dropped one is beyond
        return (Limit("max_aspect", "aspect", DropReason.IMAGE_ASPECT, most=self._max_aspect, mirrored=True),)

    def check(self, features: Features) -> Drop | None:
        aspect = max(features.width, features.height) / min(features.width, features.height)
        if aspect > self._max_aspect:
            return Drop(
                DropReason.IMAGE_ASPECT,
                f"{features.width} x {features.height} pixels: {aspect:.2f} to 1; at most {self._max_aspect:g}",
            )
        return None

    @property
    def _max_aspect(self) -> float:
        return _MAX if self.max_aspect is None else self.max_aspect
