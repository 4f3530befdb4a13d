"""Drops texts that are not Chinese, by script: with kana or hangul, or with too small a share of Han characters.

Rules on scripts rather than a language model: on short captions models take 故宫雪景 for Japanese. The katakana middle
dot (・) does not count as kana, since Chinese texts separate the parts of foreign names with it.

Terms in Latin letters belong to Chinese captions (「Chrome 调试」), so by default a Latin word counts as 4/3 letters
(`pipeline.texts.words`), and an alt, caption or tag needs less Han than a title or a sentence. A text without any Han
character is dropped whatever the share. A number in the spec is a share of single letters, for texts of every kind, as
it always was; a mapping from kinds to shares counts as the defaults do. In a collection
(`pipeline.filters.is_collection`) one Han character is enough by default.

Thresholds: ours.

Limits: a Japanese text without a single kana passes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from data_specs.build import SourceRef
from data_specs.shard import TEXT_KINDS, Text, TextKind
from pipeline.filters import Drop, Limit, TextFilter, Threshold, is_collection
from pipeline.rows.decisions import DropReason
from pipeline.texts.characters import REMEMBERED, Table
from pipeline.texts.words import LATIN, LATIN_WEIGHT

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af〇]")
KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u30ff\u31f0-\u31ff\uff66-\uff9f]")
HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_LETTER = re.compile(r"[^\W\d_]")


def _script(character: str) -> str:
    """h for Han, f for kana and hangul, l for another letter; "" for any other character."""
    if KANA.match(character) or HANGUL.match(character):
        return "f"
    return "h" if HAN.match(character) else "l" if _LETTER.match(character) else ""


_SCRIPTS = Table(_script)


@lru_cache(maxsize=REMEMBERED)
def scripts(text: str) -> tuple[int, int, int]:
    """Number of Han characters, of kana and hangul, and of letters of any script."""
    each = text.translate(_SCRIPTS)
    return each.count("h"), each.count("f"), len(each)


_SHARE = Annotated[float, Field(ge=0, le=1)]
_TERM_SHARE, _SENTENCE_SHARE = 0.2, 0.5


class HanShare(TextFilter):
    """Share of Han characters among the letters of a text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"min_share": {"caption": 0.3}}]})

    min_share: Threshold[_SHARE] | None = Field(
        None,
        description="minimum share of Han characters among letters, for all texts or by kind; default: "
        "0.2 for an alt, caption or tag and 0.5 for other texts, 0 in a folder or library",
    )
    max_foreign: int = Field(0, ge=0, description="maximum number of kana and hangul characters in a text")

    VERSION: ClassVar[int] = 2

    def for_source(self, source: SourceRef) -> HanShare:
        unstated = is_collection(source) and self.min_share is None
        return self.model_copy(update={"min_share": 0.0}) if unstated else self

    def limits(self) -> tuple[Limit, ...]:
        # of kinds with limits of their own the lowest, which holds for all
        minimum = min(map(self._min_share_of, TEXT_KINDS))
        return (Limit("min_share", "han_letters", DropReason.LOW_HAN_SHARE, least=minimum),)

    def check(self, text: Text) -> Drop | None:
        han, foreign, letters = scripts(text.text)
        if foreign > self.max_foreign:
            return Drop(DropReason.NOT_CHINESE, f"{foreign} kana or hangul")
        if not han:
            return Drop(DropReason.LOW_HAN_SHARE, f"0 of {letters} letters are Han")
        if han == letters:
            return None
        minimum = self._min_share_of(text.kind)
        if han >= minimum * letters:  # a Latin word counts for no more than its letters
            return None
        if isinstance(self.min_share, float):
            return Drop(DropReason.LOW_HAN_SHARE, f"{han} of {letters} letters are Han")
        share = han / (han + _latin_weight(text.text))
        return None if share >= minimum else Drop(DropReason.LOW_HAN_SHARE, f"{share:.0%} is Han; needs {minimum:.0%}")

    def _min_share_of(self, kind: TextKind) -> float:
        if isinstance(self.min_share, float):
            return self.min_share
        default = _TERM_SHARE if kind in ("alt", "caption", "tag") else _SENTENCE_SHARE
        return default if self.min_share is None else self.min_share.get(kind, default)


def _latin_weight(text: str) -> float:
    """Returns the worth of a text's Latin words, in characters; numbers count for nothing."""
    runs = [run for run in LATIN.findall(text) if not run.isdigit()]
    return sum(min(len(run), LATIN_WEIGHT) for run in runs)
