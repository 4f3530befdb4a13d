"""Drops texts that are too short or too long to say something about a picture.

Characters are counted without white space. The defaults are Chinese-CLIP's (5 to 50 characters) for
texts that name or describe; running text (surrounding, abstract, content) has a maximum of its own, since WenLan trains
on it and training cuts it to its token limit. Words are jieba's, asked only where a spec sets their number.
"""

from __future__ import annotations

import logging
import re

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.records import DropReason

_RUNNING = ("surrounding", "abstract", "content")


class TextLength(TextFilter):
    """Length of a text in characters and words."""

    min_chars: int = Field(5, ge=0, description="fewest characters, white space not counted")
    max_chars: int = Field(50, ge=1, description="most characters of an alt, caption, title or tag")
    max_chars_running: int = Field(1000, ge=1, description="most characters of a surrounding, abstract or content")
    min_words: int = Field(0, ge=0, description="fewest words, as jieba cuts them; 0: not looked at")
    max_words: int = Field(0, ge=0, description="most words, as jieba cuts them; 0: not looked at")

    def check(self, text: Text) -> Drop | None:
        chars = len(re.sub(r"\s+", "", text.text))
        most = self.max_chars_running if text.kind in _RUNNING else self.max_chars
        if chars < self.min_chars:
            return Drop(DropReason.TEXT_TOO_SHORT, f"{chars} characters; needs {self.min_chars}")
        if chars > most:
            return Drop(DropReason.TEXT_TOO_LONG, f"{chars} characters; at most {most} are allowed")
        if not self.min_words and not self.max_words:
            return None
        words = _words(text.text)
        if words < self.min_words:
            return Drop(DropReason.TEXT_TOO_SHORT, f"{words} words; needs {self.min_words}")
        if self.max_words and words > self.max_words:
            return Drop(DropReason.TEXT_TOO_LONG, f"{words} words; at most {self.max_words} are allowed")
        return None


def _words(text: str) -> int:
    """Words with at least one letter or digit."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return sum(1 for word in jieba.cut(text) if re.search(r"\w", word))
