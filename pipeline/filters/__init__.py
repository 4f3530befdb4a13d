"""Filters: each returns a reason to drop, or None to keep. One file each; the file's name is `name` in a spec.

A TextFilter looks at one text and needs no pixels: `pipeline.stages.admit` runs it before a byte is fetched. Texts that
fail are removed from the candidate; a candidate without any remaining text is dropped. An ImageFilter looks at the
measured features: `pipeline.stages.filter` runs it. A PixelFilter needs a model that looks at the picture itself, which
is expensive: `pipeline.curate.screen` runs it on the images that dedup kept, and caches its scores. A PairFilter looks
at how well image and text fit: `pipeline.curate.pair_score` runs it on scored pairs.

A text filter judges a text, rewrites it, or both, in the spec's order: each one sees the text as the filters before it
have rewritten it, and the output of the last one is the text everywhere after (KEY.txt, dedup, STORE). So filters that
search for what a later one masks stand before it. Every filter sees every text, even those that have failed already.

Text and image filters may judge the sources of a build differently: by the options that a source states for them in
the spec (`sources[i].filters`), and by their own defaults for a collection (`is_collection`), which was put together by
people and not by a crawler.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Discriminator, Field, Tag

from data_specs.build import BuildSpec, SourceRef
from data_specs.shard import Text, TextKind, canonical_json
from pipeline.errors import OURS
from pipeline.pictures import models
from pipeline.pictures.decode import Pixels
from pipeline.plugins import Plugin, configure, find
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features

RUNNING_KINDS: frozenset[TextKind] = frozenset({"surrounding", "abstract", "content"})
"""Kinds of running text: longer than texts that name or describe a picture, and judged by other measures."""

Number = TypeVar("Number", int, float)
Threshold = Annotated[
    Annotated[Number, Tag("<number>")] | Annotated[dict[TextKind, Number], Tag("<kinds>")],
    Discriminator(lambda value: "<kinds>" if isinstance(value, dict) else "<number>"),
]
"""An option that is a number for every text, or numbers by kind. Without the tags a fault would come twice."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A reason to drop, and its evidence in a few words, for people."""

    reason: DropReason
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of a filter on one measure: values below `least` or above `most` are dropped for `reason`.

    The report draws it on the measure's histogram. measure: a name in `pipeline.report.measures.MEASURES`. option: the
    filter's field. mirrored: 1 / value is measured against it too, as of a ratio of sides.
    """

    option: str
    measure: str
    reason: DropReason
    least: float = -math.inf
    most: float = math.inf
    mirrored: bool = False


class TextFilter(Plugin):
    """Judges one text, or rewrites it, or both; a filter defines `check`, `rewrite` or the two."""

    PER_SOURCE: ClassVar[bool] = True

    def for_source(self, source: SourceRef) -> TextFilter:
        """The filter as it judges texts of this source; itself, unless its defaults depend on the source."""
        return self

    def check(self, text: Text) -> Drop | None:
        """The reason to drop the text; None to keep it."""
        return None

    def limits(self) -> tuple[Limit, ...]:
        """Its limits on measures of which the report has histograms."""
        return ()

    def rewrite(self, text: Text) -> Text:
        """The text that replaces it; itself where there is nothing to change. Idempotent.

        Called for texts that failed, too: what is masked must not be readable in a Decision either. A rewrite whose
        purpose is to hide something hides it in `text.original` as well.
        """
        return text


class ImageFilter(Plugin):
    """Judges an image by its features."""

    PER_SOURCE: ClassVar[bool] = True

    def for_source(self, source: SourceRef) -> ImageFilter:
        """The filter as it judges images of this source; itself, unless its defaults depend on the source."""
        return self

    def with_own_words(self) -> ImageFilter:
        """The filter as it judges an image with an alt or a caption; itself, unless its defaults depend on them."""
        return self

    def check(self, features: Features) -> Drop | None:
        """The reason to drop the image; None to keep it."""
        raise TypeError(f"{type(self).__name__} must check features")

    def limits(self) -> tuple[Limit, ...]:
        """Its limits on measures of which the report has histograms."""
        return ()


class PixelFilter(Plugin):
    """Judges an image by one score that a model computes from its pixels; options say which score is too high.

    VERSION is raised when the score of the same picture and weights changes.
    """

    NEEDS_SIDE: ClassVar[int] = 0
    """Shorter side, in pixels, that a reduced decode has to keep at least; 0: the picture at its full size."""

    @property
    def needs_side(self) -> int:
        """NEEDS_SIDE, or what the options ask for beyond it."""
        return self.NEEDS_SIDE

    def weights(self) -> Path:
        """The model's file. Raises ModelError."""
        raise TypeError(f"{type(self).__name__} must name its weights")

    def model_identity(self) -> list[Any]:
        """Returns the digest of the weights, on which a score depends beside the version; empty for plain code."""
        return [models.digest(self.weights())]

    @property
    def score_id(self) -> str:
        """`name-<12 hex digits>` over version and model: where STORE caches the scores, under any options."""
        value = [self.plugin_name(), self.VERSION, *self.model_identity()]
        return f"{self.plugin_name()}-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"

    def load(self) -> Any:
        """The state that a worker keeps and passes to `score`: a session. Raises ModelError."""
        return models.session(self.weights())

    def score(self, state: Any, pictures: Sequence[Pixels]) -> list[float]:
        """The score of each picture [H, W, 3]."""
        raise TypeError(f"{type(self).__name__} must score pictures")

    def judge(self, score: float) -> Drop | None:
        """The reason to drop an image with this score; None to keep it."""
        raise TypeError(f"{type(self).__name__} must judge a score")


class PairFilter(Plugin):
    """Judges a pair by its score, to four decimals: a cosine of its image's and its text's features, or a chance.

    top_share: of the pairs of a source that `judge` keeps, the share that goes on, the best first; 1 for all.
    """

    NEEDS_SECTION: ClassVar[str] = "pair_score"

    top_share: float = Field(1, gt=0, le=1, description="share of each source's pairs to keep, best first")

    def judge(self, score: float) -> Drop | None:
        """The reason to drop a pair with this score; None to keep it."""
        raise TypeError(f"{type(self).__name__} must judge a score")


def text_filters(spec: BuildSpec, source: SourceRef | None = None) -> list[TextFilter]:
    """The spec's text filters, in its order: as the spec names them, or as they judge the texts of a source."""
    filters = [f for f in _filters(spec, source) if isinstance(f, TextFilter)]
    return filters if source is None else [f.for_source(source) for f in filters]


def as_shown(text: Text, filters: Sequence[TextFilter]) -> Text | None:
    """A text that no filter was asked about, as people may see it: as the filters rewrite it, since what they mask is
    written nowhere. None where one fails on it.
    """
    for f in filters:
        try:
            text = f.rewrite(text)
        except OURS:
            raise
        except Exception:
            return None
    return text


def is_collection(source: SourceRef) -> bool:
    """True if people put the source together: files of a folder or of tars, or a library. Thresholds that are meant for
    what a crawler finds on the web do not apply there by default.
    """
    return source.source_kind == "library" or source.kind in ("folder", "webdataset")


def image_filters(spec: BuildSpec, source: SourceRef | None = None) -> list[ImageFilter]:
    """The spec's image filters, in its order: as the spec names them, or as they judge images of a source."""
    filters = [f for f in _filters(spec, source) if isinstance(f, ImageFilter)]
    return filters if source is None else [f.for_source(source) for f in filters]


def names_filter(spec: BuildSpec, kind: type[Plugin]) -> bool:
    """True if a spec names a filter of a kind; reads none of its files."""
    return any(issubclass(find("filters", ref.name), kind) for ref in spec.filters)


def pixel_filters(spec: BuildSpec) -> list[PixelFilter]:
    """The spec's filters of pixels, in its order."""
    return [f for f in _filters(spec) if isinstance(f, PixelFilter)]


def pair_filters(spec: BuildSpec) -> list[PairFilter]:
    """The spec's filters of pairs by their score, in its order."""
    return [f for f in _filters(spec) if isinstance(f, PairFilter)]


def _filters(spec: BuildSpec, source: SourceRef | None = None) -> list[Plugin]:
    stated = source.filters if source is not None else {}
    return [
        configure("filters", ref.name, {**ref.options, **stated.get(ref.name, {})}, Plugin, f"filters[{i}]", spec.base)
        for i, ref in enumerate(spec.filters)
    ]
