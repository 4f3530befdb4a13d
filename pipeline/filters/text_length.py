"""Drops texts that are too short or too long to describe a picture.

What is too short depends on what a text is. A caption or an alt text belongs to its picture, and one term is a whole
caption: 正阳门. A page's title (戚风蛋糕) stands for all its pictures, and a paragraph or an abstract must say more.
So by default an alt, caption or tag needs 2 characters, a title 3 and any other text 5; naming kinds have at most 50
(Chinese-CLIP's), and running text (surrounding, abstract, content) has a maximum of its own, since WenLan trains on it
and training cuts it to its token limit.

Characters are counted without white space. For the default maximum a Latin word or a number counts as 4/3 characters,
since four Han characters say what three English words do (`pipeline.texts.words.weight`); so it does for a mapping from
kinds to numbers. A number in the spec counts every character of texts of every kind, as it always did.

In a collection (`pipeline.filters.is_collection`) the defaults are 1 and `max_chars_running`: its texts were written
for its pictures.

Words are those of jieba's dictionary (`pipeline.texts.words`). They are counted only if a spec limits their number.

Thresholds: 50 characters are Chinese-CLIP's maximum, as 5 are its minimum; the lower minima of kinds, and
max_chars_running, are ours.
"""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from data_specs.build import SourceRef
from data_specs.shard import TEXT_KINDS, Text, TextKind
from pipeline.filters import RUNNING_KINDS, Drop, Limit, TextFilter, Threshold, is_collection
from pipeline.rows.decisions import DropReason
from pipeline.texts.words import count_words, weight

Minimum = Annotated[int, Field(ge=0)]
Maximum = Annotated[int, Field(ge=1)]

_MIN_CHARS: dict[TextKind, int] = {"alt": 2, "caption": 2, "tag": 2, "title": 3}
_MIN_CHARS_OF_OTHERS, _MAX_CHARS = 5, 50


class TextLength(TextFilter):
    """Length of a text in characters and words."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"min_chars": {"caption": 4, "title": 6}, "max_chars": 80}]}
    )

    min_chars: Threshold[Minimum] | None = Field(
        None,
        description="minimum characters (white space not counted), for all texts or by kind; default: "
        "2 for an alt, caption or tag, 3 for a title and 5 for other texts, 1 in a folder or library",
    )
    max_chars: Threshold[Maximum] | None = Field(
        None,
        description="maximum characters of an alt, caption, title or tag, or by kind; "
        "default: 50, in a folder or library max_chars_running",
    )
    max_chars_running: int = Field(1000, ge=1, description="maximum characters of a surrounding, abstract or content")
    min_words: int = Field(0, ge=0, description="minimum words by jieba's segmentation; 0: off")
    max_words: int = Field(0, ge=0, description="maximum words of an alt, caption, title or tag; 0: off")

    VERSION: ClassVar[int] = 3

    def for_source(self, source: SourceRef) -> TextLength:
        if not is_collection(source):
            return self
        defaults = {"min_chars": 1, "max_chars": self.max_chars_running}
        # constructed and not copied: a copy would keep `_bounds`
        return TextLength(**dict(self) | {n: v for n, v in defaults.items() if getattr(self, n) is None})

    def limits(self) -> tuple[Limit, ...]:
        # Decisions do not tell kinds of text apart: of kinds with limits of their own the widest, which holds for all;
        # the maximum is that of other than running texts
        minimum = min(map(self._min_of, TEXT_KINDS))
        maximum = max(self._max_of(kind) for kind in TEXT_KINDS if kind not in RUNNING_KINDS)
        least = Limit("min_chars", "characters", DropReason.TEXT_TOO_SHORT, least=minimum)
        most = Limit("max_chars", "characters", DropReason.TEXT_TOO_LONG, most=maximum)
        # with a number of words beside it, a text that another limit lets in may still be dropped
        return tuple(limit for limit, words in ((least, self.min_words), (most, self.max_words)) if not words)

    def check(self, text: Text) -> Drop | None:
        chars = sum(map(len, text.text.split()))
        minimum, maximum = self._bounds[text.kind]
        if chars < minimum:
            return Drop(DropReason.TEXT_TOO_SHORT, f"{chars} characters; needs {minimum}")
        if chars > maximum and (fault := self._too_long(text.text, chars, maximum)):
            return fault
        if self.min_words and (words := count_words(text.text)) < self.min_words:
            return Drop(DropReason.TEXT_TOO_SHORT, f"{words} words; needs {self.min_words}")
        if self.max_words and text.kind not in RUNNING_KINDS and (words := count_words(text.text)) > self.max_words:
            return Drop(DropReason.TEXT_TOO_LONG, f"{words} words; at most {self.max_words} are allowed")
        return None

    @functools.cached_property
    def _bounds(self) -> dict[TextKind, tuple[int, int]]:
        """Fewest and most characters of a text by its kind."""
        return {kind: (self._min_of(kind), self._max_of(kind)) for kind in TEXT_KINDS}

    def _min_of(self, kind: TextKind) -> int:
        return _for_kind(self.min_chars, kind, _MIN_CHARS.get(kind, _MIN_CHARS_OF_OTHERS))

    def _max_of(self, kind: TextKind) -> int:
        if kind in RUNNING_KINDS:
            stated = self.max_chars.get(kind) if isinstance(self.max_chars, dict) else None
            return self.max_chars_running if stated is None else stated
        return _for_kind(self.max_chars, kind, _MAX_CHARS)

    def _too_long(self, text: str, chars: int, maximum: int) -> Drop | None:
        length = chars if isinstance(self.max_chars, int) else weight(text)
        if length <= maximum:
            return None
        return Drop(DropReason.TEXT_TOO_LONG, f"{length:.3g} characters; at most {maximum} are allowed")


def _for_kind(stated: int | dict[TextKind, int] | None, kind: TextKind, default: int) -> int:
    if isinstance(stated, int):
        return stated
    return default if stated is None else stated.get(kind, default)
