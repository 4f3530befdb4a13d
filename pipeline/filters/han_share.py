"""Drops texts that are not Chinese, by script: kana or hangul, or too few Han characters among the letters.

Script rules rather than a language model: on short captions models take 故宫雪景 for Japanese. The katakana
middle dot (・) is no kana here, since Chinese texts part foreign names with it.

Limits: a Japanese text without a single kana passes.
"""

from __future__ import annotations

import re

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.records import DropReason

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af〇]")
KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u30ff\u31f0-\u31ff\uff66-\uff9f]")
HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_FOREIGN = re.compile(f"{KANA.pattern}|{HANGUL.pattern}")
_LETTER = re.compile(r"[^\W\d_]")


class HanShare(TextFilter):
    """Share of Han characters among the letters of a text."""

    min_share: float = Field(0.5, ge=0, le=1, description="least share of Han among the letters; digits do not count")
    max_foreign: int = Field(0, ge=0, description="most kana and hangul characters in a text")

    def check(self, text: Text) -> Drop | None:
        if _FOREIGN.search(text.text):
            foreign = len(_FOREIGN.findall(text.text))
            if foreign > self.max_foreign:
                return Drop(DropReason.NOT_CHINESE, f"{foreign} kana or hangul")
        han, letters = len(HAN.findall(text.text)), len(_LETTER.findall(text.text))
        if not han or han < self.min_share * letters:
            return Drop(DropReason.LOW_HAN_SHARE, f"{han} of {letters} letters are Han")
        return None
