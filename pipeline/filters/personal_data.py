"""Masks personal data, or drops texts with it: numbers of phones, ID cards, bank cards and plates; e-mail addresses.

Each kind is masked, dropped or kept, by option: masked, `张三 13800138000` becomes `张三 <电话>`, in the text and in
the original that an earlier rewrite has kept. The masked text is the text everywhere after: KEY.txt, dedup, STORE and
Decisions. `pipeline.texts.personal` says what is recognised, and by which check digits.

Filters that drop solicitations (`ads`) stand before this one; after it they would see masks in place of numbers.

Thresholds: none.

Limits: names are not masked. jieba's tags call 孔雀, 西红柿 and 牛腩 persons, in one of five captions of dishes that
do not name a person.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter
from pipeline.rows.decisions import DropReason
from pipeline.texts.personal import KINDS, Kind, find, mask, may_hold

Action = Literal["mask", "drop", "keep"]


class PersonalData(TextFilter):
    """Masks or drops each kind of personal data."""

    mobile: Action = Field("mask", description="mobile telephone numbers: <电话>")
    landline: Action = Field("mask", description="telephone numbers with an area code: <电话>")
    id_card: Action = Field("mask", description="ID-card numbers of 18 digits, by their checksum: <身份证号>")
    bank_card: Action = Field("mask", description="bank-card numbers, by Luhn's checksum: <银行卡号>")
    email: Action = Field("mask", description="mail addresses: <邮箱>")
    plate: Action = Field("mask", description="licence plates of cars: <车牌号>")

    VERSION: ClassVar[int] = 2

    def check(self, text: Text) -> Drop | None:
        if not may_hold(text.text):
            return None
        kinds = [kind for kind in self._kinds("drop") if find(text.text, kind)]
        return Drop(DropReason.PERSONAL_DATA, ", ".join(kinds)) if kinds else None

    def rewrite(self, text: Text) -> Text:
        """Masks the kinds to drop as well: the Decision that says why a text was dropped shows the text."""
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
    """The text, masked until nothing more is recognised: a mask is a boundary where a digit was none."""
    last = ""
    while text != last and may_hold(text):
        last = text
        for kind in kinds:
            text = mask(text, kind)
    return text
