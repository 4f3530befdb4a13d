"""Takes personal data out of texts: telephone numbers, ID cards, bank cards, mail addresses, licence plates.

Each kind is masked, dropped or kept, by option: masked, `张三 13800138000` becomes `张三 <电话>`, in the text and in
the original that a rewrite before this one has kept. The masked text is the text everywhere after: KEY.txt, dedup,
STORE and Decisions. What is looked for, and with which check digits, is said in `pipeline.texts.personal`.

Filters that drop what solicits (`ads`) stand before this one, or they see masks for numbers. Limits: names are not
masked. jieba's tags call 孔雀, 西红柿 and 牛腩 persons, in one of five captions of dishes that name nobody.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.records import DropReason
from pipeline.texts.personal import KINDS, Kind, find, mask, may_hold

Action = Literal["mask", "drop", "keep"]


class PersonalData(TextFilter):
    """What to do with each kind of personal data."""

    mobile: Action = Field("mask", description="mobile telephone numbers: <电话>")
    landline: Action = Field("mask", description="telephone numbers with an area code: <电话>")
    id_card: Action = Field("mask", description="ID-card numbers of 18 digits, by their checksum: <身份证号>")
    bank_card: Action = Field("mask", description="bank-card numbers, by Luhn's checksum: <银行卡号>")
    email: Action = Field("mask", description="mail addresses: <邮箱>")
    plate: Action = Field("mask", description="licence plates of cars: <车牌号>")

    def check(self, text: Text) -> Drop | None:
        if not may_hold(text.text):
            return None
        found = [kind for kind in self._kinds("drop") if find(text.text, kind)]
        return Drop(DropReason.PERSONAL_DATA, ", ".join(found)) if found else None

    def rewrite(self, text: Text) -> Text:
        """Masks what is dropped, too: a Decision that tells why a text went shows the text."""
        if not may_hold(text.text) and not (text.original and may_hold(text.original)):
            return text
        kinds = self._kinds("mask", "drop")
        masked, original = _masked(text.text, kinds), _masked(text.original, kinds)
        if masked == text.text and original == text.original:
            return text
        return replace(text, text=masked, original=original)

    def _kinds(self, *actions: Action) -> list[Kind]:
        return [kind for kind in KINDS if getattr(self, kind) in actions]


def _masked(text: str, kinds: list[Kind]) -> str:
    """Masked until nothing is found: a mask is a boundary that a digit was not."""
    before = ""
    while text != before:
        before = text
        for kind in kinds:
            text = mask(text, kind)
    return text
