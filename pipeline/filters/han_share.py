"""Drops texts that are not Chinese, by script: kana or hangul, or too few Han characters among the letters.

Rules on scripts rather than a language model: on short captions models take 故宫雪景 for Japanese. The katakana middle
dot (・) does not count as kana, since Chinese texts separate the parts of foreign names with it.

Thresholds: ours.

Limits: a Japanese text without a single kana passes.
"""

from __future__ import annotations

import re

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.records import DropReason
from pipeline.texts.forms import Table

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af〇]")
KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u30ff\u31f0-\u31ff\uff66-\uff9f]")
HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")


def _script(character: str) -> str:
    """h for Han, f for kana and hangul, l for another letter; "" for a character that is no letter."""
    if KANA.match(character) or HANGUL.match(character):
        return "f"
    return "h" if HAN.match(character) else "l" if _LETTER.match(character) else ""


_LETTER = re.compile(r"[^\W\d_]")
_SCRIPTS = Table(_script)


class HanShare(TextFilter):
    """Share of Han characters among the letters of a text."""

    min_share: float = Field(0.5, ge=0, le=1, description="least share of Han among the letters; digits do not count")
    max_foreign: int = Field(0, ge=0, description="most kana and hangul characters in a text")

    def check(self, text: Text) -> Drop | None:
        scripts = text.text.translate(_SCRIPTS)
        han, foreign = scripts.count("h"), scripts.count("f")
        if foreign > self.max_foreign:
            return Drop(DropReason.NOT_CHINESE, f"{foreign} kana or hangul")
        if not han or han < self.min_share * len(scripts):
            return Drop(DropReason.LOW_HAN_SHARE, f"{han} of {len(scripts)} letters are Han")
        return None
