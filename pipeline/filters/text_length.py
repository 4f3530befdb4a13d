"""Drops texts that are too short or too long to say something about a picture.

Characters are counted without white space. The defaults are those of Chinese-CLIP (5 to 50 characters) for texts that
name or describe; running text (surrounding, abstract, content) has a maximum of its own, since WenLan trains on it and
training cuts it to its token limit. Words are those of jieba's dictionary (`pipeline.texts.words`). They are counted
only if a spec limits their number, and a text is segmented only if a bound does not decide already.

Thresholds: min_chars and max_chars are Chinese-CLIP's (5 to 50), max_chars_running is ours.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import RUNNING_KINDS, Drop, TextFilter
from pipeline.records import DropReason
from pipeline.texts.words import count_words, has_words


class TextLength(TextFilter):
    """Length of a text in characters and words."""

    min_chars: int = Field(5, ge=0, description="fewest characters, white space not counted")
    max_chars: int = Field(50, ge=1, description="most characters of an alt, caption, title or tag")
    max_chars_running: int = Field(1000, ge=1, description="most characters of a surrounding, abstract or content")
    min_words: int = Field(0, ge=0, description="fewest words, as jieba cuts them; 0: not looked at")
    max_words: int = Field(0, ge=0, description="most words of an alt, caption, title or tag; 0: not looked at")

    VERSION: ClassVar[int] = 2

    def check(self, text: Text) -> Drop | None:
        chars = sum(map(len, text.text.split()))
        most = self.max_chars_running if text.kind in RUNNING_KINDS else self.max_chars
        if chars < self.min_chars:
            return Drop(DropReason.TEXT_TOO_SHORT, f"{chars} characters; needs {self.min_chars}")
        if chars > most:
            return Drop(DropReason.TEXT_TOO_LONG, f"{chars} characters; at most {most} are allowed")
        if self.min_words and not has_words(text.text, self.min_words):
            return Drop(DropReason.TEXT_TOO_SHORT, f"{count_words(text.text)} words; needs {self.min_words}")
        if self.max_words and text.kind not in RUNNING_KINDS and has_words(text.text, self.max_words + 1):
            return Drop(
                DropReason.TEXT_TOO_LONG, f"{count_words(text.text)} words; at most {self.max_words} are allowed"
            )
        return None
