"""Personal data in a text: telephone numbers, ID cards, bank cards, mail addresses, licence plates. Finds and masks it.

Numbers that carry a check digit are checked, and order numbers pass: ID cards by GB 11643-1999 (ISO 7064
mod 11-2, with a birth date that exists and the code of a province), bank cards by Luhn (ISO/IEC 7812-1) and the first
digits that cards in China have. Mobile numbers are those of China's numbering plan (11 digits from 13 to 19, with or
without +86), plates those of GA 36-2018 (with the longer ones of new-energy cars).

The search runs on the even form (`pipeline.texts.forms`), so width, case, circled digits and Traditional characters do
not matter. Digits may stand in their usual groups (138-0013-8000), or with a mark between every two of them
(1 3 8 0 0 ...), and a mobile number may be written in Chinese numerals (一三八〇〇一三八〇〇〇).

Limits: a landline number needs its area code set off, or a word such as 电话 before it. ID cards of 15 digits (invalid
since 2013) lack a check digit and are not recognised, nor is a mail address with (at) for @. Of a mail address the
last 64 characters before the @ count (RFC 5321, 4.5.3.1.1): without a bound the search would be quadratic.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from pipeline.texts.characters import REMEMBERED
from pipeline.texts.forms import even

Kind = Literal["id_card", "bank_card", "mobile", "landline", "email", "plate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds, in the order of the search: longer ones first."""

MASKS: dict[Kind, str] = {
    "id_card": "<身份证号>",
    "bank_card": "<银行卡号>",
    "mobile": "<电话>",
    "landline": "<电话>",
    "email": "<邮箱>",
    "plate": "<车牌号>",
}

_MARK = r"[\s\-.·•_*~|/\\—–…\u200b-\u200f\u2060\ufe0f\ufeff\u20e3]"
_G = _MARK + "{0,3}"  # between two groups of digits
_S = _MARK + "{1,3}"  # between two digits that all stand apart
_START, _END = "(?<![0-9])", "(?![0-9])"
_ALONE, _ENDED = rf"{_START}(?<![0-9]{_MARK})", f"(?!{_G}[0-9])"

_GROUPS = ("零〇洞", "一壹幺", "二贰两", "三叁", "四肆", "五伍", "六陆", "七柒拐", "八捌", "九玖勾")
_NUMERALS = {numeral: str(digit) for digit, group in enumerate(_GROUPS) for numeral in group}
_SPOKEN = f"[0-9{''.join(_NUMERALS)}]"

_PROVINCES = "1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]|91"
_AREA = "0(?:10|2[0-57-9]|[3-9][0-9]{2})"
_LOCAL = r"[2-9][0-9]{2,3}[\s\-]?[0-9]{4}"
_ASKED = r"(?:电话|座机|热线|传真|tel|fax)[^0-9a-z\u4e00-\u9fff]{0,3}"
_PLATE_OF = "[京津沪渝冀豫云辽黑湘皖鲁苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼]"
_MAY_HOLD = re.compile(f"[0-9](?:[^0-9]{{0,3}}[0-9]){{6}}|@|[新{_PLATE_OF[1:-1]}][a-z]|{_SPOKEN}{{11}}")
"""Part of every text with personal data: seven digits near each other, or the beginning of another kind."""

_CLUE = re.compile(f"[@a-z{_SPOKEN[1:-1]}]")
"""First or second character of all matches of _MAY_HOLD; a search for one of some characters takes a
quarter of the time."""

_PATTERNS: dict[Kind, tuple[str, ...]] = {
    "id_card": (
        f"{_START}[1-9][0-9]{{5}}{_G}[0-9]{{4}}{_G}[0-9]{{2}}{_G}[0-9]{{2}}{_G}[0-9]{{3}}{_G}[0-9x]{_END}",
        f"{_ALONE}[1-9](?:{_S}[0-9]){{16}}{_S}[0-9x]{_ENDED}",
    ),
    "bank_card": (
        f"{_START}[0-9]{{16,19}}{_END}",
        f"{_START}[0-9]{{4}}(?:{_MARK}{{1,2}}[0-9]{{4}}){{3}}(?:{_MARK}{{1,2}}[0-9]{{1,3}})?{_END}",
        f"{_START}[0-9]{{6}}{_MARK}{{1,2}}[0-9]{{10,13}}{_END}",
        f"{_ALONE}[0-9](?:{_S}[0-9]){{15,18}}{_ENDED}",
    ),
    "mobile": (
        rf"{_START}(?:\+?86{_G})?1[3-9][0-9]{_G}(?:[0-9]{{4}}{_G}[0-9]{{4}}|[0-9]{{3}}{_G}[0-9]{{5}}"
        rf"|[0-9]{{5}}{_G}[0-9]{{3}}|[0-9]{_G}[0-9]{{3}}{_G}[0-9]{{4}}){_END}",
        f"{_ALONE}1{_S}[3-9](?:{_S}[0-9]){{9}}{_ENDED}[\ufe0f\u20e3]*",
        f"(?<!{_SPOKEN}){_SPOKEN}{{11}}(?!{_SPOKEN})",
    ),
    "landline": (
        rf"{_START}(?:\({_AREA}\)\s?|(?:\+?86[\s\-]?)?{_AREA}[\s\-]{{1,2}}){_LOCAL}{_END}",
        f"{_ASKED}(?P<number>(?:{_AREA})?{_LOCAL}){_END}",
    ),
    "email": (r"[a-z0-9][a-z0-9._%+\-]{0,63}@[a-z0-9](?:[a-z0-9\-]*[a-z0-9])?(?:\.[a-z0-9\-]+)*\.[a-z]{2,}",),
    "plate": (
        rf"(?:{_PLATE_OF}|新(?=[a-z][·\-\s]|[a-z][0-9]{{4}}))[a-hj-np-z][·•.\-\s]?"
        r"(?=(?:[a-z]*[0-9]){3})(?:[a-hj-np-z0-9]{4}[a-hj-np-z0-9挂学警港澳]|[a-hjk][a-hj-np-z0-9][0-9]{4}"
        r"|[0-9]{5}[a-hjk])(?![a-z0-9])",
    ),
}


@dataclass(frozen=True, slots=True)
class Span:
    """The place of one number or address: text[start:end]."""

    kind: Kind
    start: int
    end: int


@lru_cache(maxsize=REMEMBERED)  # two filters ask, one of them twice
def may_hold(text: str) -> bool:
    """True if a text may hold any kind at all. False for most captions, by a single search."""
    plain = even(text)
    return _CLUE.search(plain) is not None and _MAY_HOLD.search(plain) is not None


def find(text: str, kind: Kind) -> list[Span]:
    """All numbers (or addresses) of one kind in a text, from left to right, without overlaps."""
    return list(_find(even(text), kind))


def mask(text: str, kind: Kind) -> str:
    """The text with each number of one kind replaced by its mask; the same text if there is none."""
    parts, at = [], 0
    for span in find(text, kind):
        parts += [text[at : span.start], MASKS[kind]]
        at = span.end
    return "".join(parts) + text[at:] if parts else text


def is_id_card(number: str) -> bool:
    """True if 18 characters are an ID card's number: a province, a date of birth, and the check digit (GB 11643)."""
    if not re.fullmatch(rf"(?:{_PROVINCES})[0-9]{{15}}[0-9xX]", number):
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    rest = sum(int(digit) << (17 - i) for i, digit in enumerate(number[:17])) % 11  # weights 2^17 ... 2^1, mod 11
    return born.year >= 1850 and "10X98765432"[rest] == number[17].upper()


def is_bank_card(number: str) -> bool:
    """True if 16 to 19 digits are a bank card's number: first digits of UnionPay, Visa and so on, and Luhn's sum."""
    if not re.fullmatch("(?:62|60|9558)[0-9]{14,17}|(?:4[0-9]|5[1-5]|35|2[2-7])[0-9]{14}", number):
        return False
    # Luhn: from the right, every second digit doubled; then the sum of all digits is a multiple of ten
    return sum(sum(divmod(int(d) << (i & 1), 10)) for i, d in enumerate(reversed(number))) % 10 == 0


def _is_spoken_mobile(number: str) -> bool:
    return re.fullmatch("1[3-9][0-9]{9}", "".join(_NUMERALS.get(c, c) for c in number)) is not None


def _keep_only(characters: str, allowed: str) -> str:
    return "".join(c for c in characters if c in allowed)


_CHECKS: dict[Kind, Callable[[str], bool]] = {
    "id_card": lambda number: is_id_card(_keep_only(number, "0123456789x")),
    "bank_card": lambda number: is_bank_card(_keep_only(number, "0123456789")),
}
_COMPILED: dict[Kind, tuple[re.Pattern[str], ...]] = {
    kind: tuple(re.compile(pattern) for pattern in patterns) for kind, patterns in _PATTERNS.items()
}
_SPOKEN_MOBILE = _COMPILED["mobile"][-1]


def _find(plain: str, kind: Kind) -> Iterator[Span]:
    """Spans in an even text, by all patterns of a kind; of two that overlap the one that begins first."""
    spans = []
    for pattern in _COMPILED[kind]:
        check = _is_spoken_mobile if pattern is _SPOKEN_MOBILE else _CHECKS.get(kind)
        for match in pattern.finditer(plain):
            start, end = match.span("number" if "number" in pattern.groupindex else 0)
            if check is None or check(plain[start:end]):
                spans.append((start, end))
    at = 0
    for start, end in sorted(spans):
        if start >= at:
            yield Span(kind, start, end)
            at = end
