"""Drops repetitive texts: 哈哈哈哈哈哈哈, 美女美女美女美女, 啊啊啊 between other words.

Three measures over the letters of a text (digits, marks and spaces do not count): the longest run of one letter, the
share of the most frequent letter, and the share of three-letter sequences that occurred in the text before. The shares
are computed only for texts with enough letters: 妈妈 and 人人 repeat, and say something.

Thresholds: ours.

Limits: a text that repeats with small changes passes (新款连衣裙女, 连衣裙新款女).
"""

from __future__ import annotations

import re
from collections import Counter

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.rows.decisions import DropReason

_NO_LETTER = re.compile(r"[\W\d_]+")
_RUN = re.compile(r"(.)\1+")


class Repetition(TextFilter):
    """Repeated letters and repeated sequences."""

    max_run: int = Field(5, ge=1, description="maximum number of times one letter may be repeated in a row")
    max_letter_share: float = Field(0.5, gt=0, le=1, description="maximum share of one letter among all letters")
    max_repeated_share: float = Field(0.45, gt=0, le=1, description="maximum share of repeated three-letter sequences")
    min_letters: int = Field(6, ge=3, description="minimum number of letters for the shares to be checked")

    def check(self, text: Text) -> Drop | None:
        full = text.text
        if len(full) - len(set(full)) < 2:  # as in most captions: nothing occurs a third time
            return None
        letters = full if full.isalpha() else _NO_LETTER.sub("", full)
        repeats = len(letters) - len(set(letters))  # letters that occurred before: an upper bound of every measure
        if repeats >= self.max_run:
            longest = max((match.group() for match in _RUN.finditer(letters)), key=len, default="")
            if len(longest) > self.max_run:
                return Drop(DropReason.REPETITION, f"{longest[0]} {len(longest)} times in a row")
        few = repeats < self.max_letter_share * len(letters) - 1 and repeats <= self.max_repeated_share * (
            len(letters) - 2
        )
        return None if few or len(letters) < self.min_letters else self._shares(letters)

    def _shares(self, letters: str) -> Drop | None:
        letter, times = Counter(letters).most_common(1)[0]
        if times > self.max_letter_share * len(letters):
            return Drop(DropReason.REPETITION, f"{times} of {len(letters)} letters are {letter}")
        sequences = len(letters) - 2
        repeated = sequences - len({letters[i : i + 3] for i in range(sequences)})
        if repeated > self.max_repeated_share * sequences:
            return Drop(DropReason.REPETITION, f"{repeated} of {sequences} three-letter sequences are repeats")
        return None
