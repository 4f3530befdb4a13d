"""Charset detection for Chinese pages: the bytes of a page as text.

The charset that a Chinese page declares is often not the one it uses, so the declaration is a hint and the bytes
decide:

- `gb2312` and `gbk` are read as gb18030, their superset (WHATWG Encoding Standard): pages declared as gb2312 use
  characters that it lacks; `shift_jis` and `euc-kr` likewise as cp932 and cp949;
- valid UTF-8 with Han characters is UTF-8, whatever header and meta tag say: other charsets do not form it by chance;
- among the East Asian charsets the one wins in whose language the bytes are likeliest: simplified and traditional
  Chinese, Japanese and Korean have a table of how likely each of their frequent characters is (characters.txt). What
  is unlikely in all of them is refused;
- another charset that a page declares, as `windows-1251`, is believed unless the bytes are clearly in one of these.

tests/benchmarks/charset_tables.py makes characters.txt, and has the figures. Pairs of characters are not looked at: of
pages with 30 bytes beyond ASCII in GB 18030, Big5, EUC-JP, Shift_JIS or EUC-KR none of 1,800 is left to them.

Limits: HZ, EUC-TW, ISO-2022-CN, ISO-2022-JP and ISO-2022-KR are not known; a page in none of the others cannot be read.
"""

from __future__ import annotations

import codecs
import math
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAX_BROKEN = 0.01
"""Share of the characters beyond ASCII that may be unreadable: a page cut off in the middle of a character passes."""

_SNIFFED = 4096
_META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I)
_HEADER = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I)
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "cp936": "gb18030", "cp950": "big5hkscs", "big5": "big5hkscs",
              "big5-tw": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949", "ascii": "cp1252",
              "iso8859-1": "cp1252"}  # fmt: skip
_CODECS = re.compile(r"utf-?(8|16|32)([-_][lb]e)?|gb18030|big5hkscs|euc_jp|cp\d{3,5}|iso8859-\d{1,2}|koi8-[ru]|tis-620")
_LANGUAGES = {"utf-8": ("zh", "zh-Hant", "ja", "ko"), "gb18030": ("zh", "zh-Hant"), "big5hkscs": ("zh-Hant",),
              "euc_jp": ("ja",), "cp932": ("ja",), "cp949": ("ko",)}  # fmt: skip
"""Languages that are written in each charset that competes."""

_COMPETITORS = tuple(_LANGUAGES)
_EXPECTED = {"utf-8": 3.0, "gb18030": 3.0, "big5hkscs": 3.0}
"""Natural logarithm of how much likelier than others a charset is before a byte was looked at: pages are Chinese."""

_DECLARED = 7.0
"""The same of the charset that a page declares."""

CLEAR, LEAST, SPREAD, LOWEST = -9.0, -11.0, 4.0, -12.4
"""Mean natural logarithm of a character's likelihood from which on the declared charset needs no comparison, and below
which a text is in no language; less for few characters, by SPREAD over the root of their number, down to LOWEST: one of
them at least is in a table. Of right readings of 30 bytes 1 in 100 has less than -9.9, half of them more than -6.5;
wrong ones have -10 to -14, Korean as gb18030 -9 once in a thousand."""

MAX_SAMPLE = 4000
"""Bytes beyond ASCII by which a page is judged."""

STEP = 0.5
_FLOORS = {"\x80-\uffff": -17.0, "\u4e00-\u9fff": -12.5, "\u3041-\u30fa": -15.0, "\uac00-\ud7a3": -15.0,
           "\xa0-\u045f": -13.5, "\xa0-\xa0": -8.0, "\u2010-\u203f": -11.0, "\u2100-\u27ff": -13.5,
           "\u3000-\u303f": -11.0, "\uff01-\uff5e": -11.0}  # fmt: skip
"""Natural logarithm of the likelihood of a character that is not in its language's table, by range; later ones hold."""

_OWN_FLOORS = {"ja": {"\u3041-\u30fa": -11.0}, "ko": {"\uac00-\ud7a3": -11.0}}


def decode(body: bytes, content_type: str) -> tuple[str, str] | None:
    """(text, charset) of a page, or None if no charset fits. `content_type` is the header as sent, "" if none."""
    from w3lib.encoding import read_bom  # here: the command line starts without the extra pipeline

    charset, bom = read_bom(body)
    if charset is not None and bom is not None:
        return body[len(bom) :].decode(charset, "replace"), charset
    if body.isascii():
        return body.decode("ascii"), "ascii"
    declared = declared_charset(body, content_type)
    text = _try_decode(body, "utf-8")
    if text is not None and (declared in (None, "utf-8") or re.search(r"[\u3400-\u9fff]", text)):
        return text, "utf-8"
    if declared is not None and declared not in (*_COMPETITORS, "cp1252"):
        text = _readable(body, declared)  # charsets of one byte read anything: so does a server's default
        if text is not None and not _is_east_asian(body):
            return text, declared
    return _best_reading(body, declared)


def declared_charset(body: bytes, content_type: str) -> str | None:
    """Python's name of the charset that the header or, failing that, a meta tag declares; supersets for subsets."""
    meta = _META.search(body[:_SNIFFED])
    header = _HEADER.search(content_type)
    for label in (header.group(1) if header else None, meta.group(1).decode("ascii", "replace") if meta else None):
        name = codec_of(label) if label else None
        if name is not None:
            return name
    return None


@lru_cache(maxsize=256)
def codec_of(label: str) -> str | None:
    """Python's codec for a label such as `GB2312`; None for an unknown one, or one that does not encode texts."""
    from w3lib.encoding import resolve_encoding

    name = (resolve_encoding(label) or label).lower().replace("_hkscs", "hkscs")
    try:
        name = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    name = _SUPERSETS.get(name, name)
    return name if _CODECS.fullmatch(name) else None


def _best_reading(body: bytes, declared: str | None) -> tuple[str, str] | None:
    """The likeliest reading; if no language explains the page, the one in the charset that it declares."""
    sample = _sample(body)
    if len(sample) == 1:  # a stray byte
        return body.decode(declared or "utf-8", "replace"), declared or "utf-8"
    if declared in _COMPETITORS and _likelihood(sample, declared).mean >= CLEAR:
        text = _readable(body, declared)
        if text is not None:
            return text, declared
    readings = {name: _likelihood(sample, name) for name in _COMPETITORS}
    scores = {
        name: own.total + _EXPECTED.get(name, 0.0) + _DECLARED * (name == declared) for name, own in readings.items()
    }
    for name in sorted(readings, key=lambda name: -scores[name]):
        if (name == declared or readings[name].is_of_a_language) and (text := _readable(body, name)) is not None:
            return text, name
    if declared is None:
        return None
    text = body.decode(declared, "replace") if declared == "cp1252" else _readable(body, declared)
    return None if text is None else (text, declared)


def _is_east_asian(body: bytes) -> bool:
    """True if a body is clearly in a language of East Asia, whatever it declares. Of texts in Cyrillic, Greek, Arabic,
    Hebrew, Thai or Latin letters, 15 characters in each other's charsets have at most -9.7."""
    sample = _sample(body)
    return len(sample) > 1 and any(_likelihood(sample, name).mean >= CLEAR for name in _COMPETITORS)


def _try_decode(body: bytes, name: str) -> str | None:
    try:
        return body.decode(name)
    except UnicodeDecodeError:
        return None


def _readable(body: bytes, name: str) -> str | None:
    """The text, if at most one of its characters beyond ASCII, or a share of MAX_BROKEN, is unreadable."""
    text = body.decode(name, "replace")
    broken = text.count("\ufffd")
    if broken <= 1 or broken <= MAX_BROKEN * (len(text) - len(text.encode("ascii", "ignore"))):
        return text
    return None


def _sample(body: bytes) -> bytes:
    """The part of a body that holds its first MAX_SAMPLE bytes beyond ASCII."""
    beyond = np.flatnonzero(np.frombuffer(body, np.int8) < 0)
    return body[beyond[0] : beyond[:MAX_SAMPLE][-1] + 1]


class _Likelihood(NamedTuple):
    """Natural logarithm of the likelihood of a text's characters beyond ASCII, together, and their number."""

    total: float
    characters: int

    @property
    def mean(self) -> float:
        return self.total / max(1, self.characters)

    @property
    def is_of_a_language(self) -> bool:
        return self.mean >= max(LEAST - SPREAD / math.sqrt(max(1, self.characters)), LOWEST)


def _likelihood(sample: bytes, charset: str) -> _Likelihood:
    """The likelihood of a sample in the language that explains it best; minus infinity if it is not in the charset."""
    text = _readable(sample, charset)
    units = np.frombuffer((text or "").encode("utf-16-le", "surrogatepass"), "<u2")
    units = units[units >= 0x80]
    if not units.size:
        return _Likelihood(-math.inf, 0)
    totals = (float(_table(language)[units].sum(dtype=np.float64)) for language in _LANGUAGES[charset])
    return _Likelihood(max(totals), units.size)


@cache
def _table(language: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[65536] natural logarithm of the likelihood of each unit of UTF-16 in a language."""
    table = np.zeros(1 << 16, np.float32)
    for span, floor in (*_FLOORS.items(), *_OWN_FLOORS.get(language, {}).items()):
        table[ord(span[0]) : ord(span[2]) + 1] = floor
    for line in Path(__file__).with_name("characters.txt").read_text(encoding="utf-8").split("\n")[:-1]:
        if not line.startswith("#"):
            name, steps, characters = line.split(" ")
            if name == language:
                table[[ord(ch) for ch in characters]] = -STEP * int(steps)
    return table
