"""Charset detection for Chinese pages: the bytes of a page as text.

The charset that a Chinese page declares is often not the one it uses, so the declaration is a hint and the bytes
decide:

- `gb2312` and `gbk` are read as gb18030, their superset (WHATWG Encoding Standard): pages declared as gb2312 use
  characters that it lacks;
- valid UTF-8 with Han characters is UTF-8, whatever header and meta tag say: other charsets do not form it by chance;
- where the declared charset does not fit, UTF-8, gb18030 and Big5 compete, and the one wins in which the most
  characters are everyday ones (level 1 of GB 2312, level 1 of Big5): read in the wrong one, text is full of rare ones.

Limits: HZ, EUC-TW and ISO-2022-CN are not known; a page in one of them, or in none, cannot be read.
"""

from __future__ import annotations

import codecs
import re
from functools import cache, lru_cache

MAX_BROKEN = 0.01
"""Share of the characters beyond ASCII that may be unreadable: a page cut off in the middle of a character passes."""

_SNIFFED = 4096
_META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I)
_HEADER = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I)
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "cp936": "gb18030", "hz": "gb18030", "cp950": "big5hkscs",
              "big5": "big5hkscs", "big5-tw": "big5hkscs", "ascii": "cp1252", "iso8859-1": "cp1252"}  # fmt: skip
_KNOWN = re.compile(
    r"utf-?(8|16|32)([-_][lb]e)?|gb18030|big5hkscs|euc_(jp|kr)|shift_jis|cp\d{3,5}|iso8859-\d{1,2}|koi8-[ru]|tis-620"
)
_KOREAN = ("euc_kr", "cp949")
MAX_HANJA = 0.3
"""Share of hanja among hanja and hangul up to which a text is taken for Korean."""

MAX_JUDGED = 100_000
"""Characters of a page that are counted to tell Korean from Chinese."""

MAX_SAMPLE = 4000
"""Characters beyond ASCII by which a reading is judged."""

_BEYOND = re.compile(r"[^\x00-\x7f\ufffd]+")
_COMPETITORS = ("utf-8", "gb18030", "big5hkscs")


def decode(body: bytes, content_type: str) -> tuple[str, str] | None:
    """(text, charset) of a page, or None if no charset fits. `content_type` is the header as sent, "" if none."""
    from w3lib.encoding import read_bom  # here: the command line starts without the extra pipeline

    charset, bom = read_bom(body)
    if charset is not None and bom is not None:
        return body[len(bom) :].decode(charset, "replace"), charset
    declared = declared_charset(body, content_type)
    if body.isascii():
        return body.decode("ascii"), "ascii"
    text = _strict(body, "utf-8")
    if text is not None and (declared in (None, "utf-8") or _has_han(text)):
        return text, "utf-8"
    if declared in ("gb18030", "big5hkscs"):
        text = _strict(body, declared)
        if text is not None and _everyday(text, declared) > 0.9:
            return text, declared
    elif declared is not None and declared not in ("utf-8", "cp1252"):
        text = _readable(body, declared)
        if text is not None and not _is_mojibake(text, body, declared):
            return text, declared
    return _best(body, declared)


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
    return name if _KNOWN.fullmatch(name) else None


def _best(body: bytes, declared: str | None) -> tuple[str, str] | None:
    """The competitor with the most everyday characters; a Western page in the charset that it declares."""
    readings: list[tuple[float, str, str]] = []  # score, charset, text
    for name in _COMPETITORS:
        text = _readable(body, name)
        if text is not None:
            readings.append((_everyday(text, name) + (0.05 if name == declared else 0.0), name, text))
    readings.sort(key=lambda reading: -reading[0])
    if readings and readings[0][0] >= 0.6:
        return readings[0][2], readings[0][1]
    if declared == "cp1252":
        return body.decode("cp1252", "replace"), declared
    if readings and declared is not None:
        return readings[0][2], readings[0][1]
    return None


def _strict(body: bytes, name: str) -> str | None:
    try:
        return body.decode(name)
    except UnicodeDecodeError:
        return None


def _readable(body: bytes, name: str) -> str | None:
    """The text, if at most one of its characters beyond ASCII, or a share of MAX_BROKEN, is unreadable."""
    text = body.decode(name, "replace")
    broken = text.count("\ufffd")
    beyond = len(text) - len(text.encode("ascii", "ignore"))
    return text if broken <= max(1, MAX_BROKEN * beyond) else None


def _is_mojibake(text: str, body: bytes, declared: str) -> bool:
    """True if a page that declares a Korean charset is a gb18030 one: its reading in gb18030 is everyday Chinese, and
    its reading in Korean is not Korean.

    All bytes of common Chinese text are characters in EUC-KR: rows 0xB0 to 0xC8 hangul, 0xCA to 0xFD hanja. Korean is
    written in hangul, with hanja in brackets here and there; Chinese read as Korean is hanja by more than half.
    """
    if declared not in _KOREAN:
        return False
    hanja = sum(1 for ch in text[:MAX_JUDGED] if "\u3400" <= ch <= "\u9fff" or "\uf900" <= ch <= "\ufaff")
    hangul = sum(1 for ch in text[:MAX_JUDGED] if "\uac00" <= ch <= "\ud7a3")
    if hanja <= MAX_HANJA * (hanja + hangul):
        return False
    chinese = _readable(body, "gb18030")
    return chinese is not None and _everyday(chinese, "gb18030") > 0.9


def _has_han(text: str) -> bool:
    return re.search(r"[\u3400-\u9fff]", text) is not None


def _everyday(text: str, name: str) -> float:
    """Share of everyday characters and full-width punctuation in a sample of the text beyond ASCII; 1 for ASCII."""
    sample, at = "", 0
    while len(sample) < MAX_SAMPLE and (run := _BEYOND.search(text, at)):
        sample, at = sample + run.group(), run.end()
    sample = sample[:MAX_SAMPLE]
    if not sample:
        return 1.0
    level = _level_1(name)
    return sum(map(level.__contains__, sample)) / len(sample)


def _rows(codec: str, leads: range, trails: list[int]) -> frozenset[str]:
    """Characters of a double-byte charset whose bytes are one of `leads` and one of `trails`."""
    cells = (bytes((lead, trail)).decode(codec, "ignore") for lead in leads for trail in trails)
    return frozenset("".join(cells))


@cache
def _level_1(codec: str) -> frozenset[str]:
    """Everyday characters: punctuation and level 1 of GB 2312 or of Big5, both of them for UTF-8."""
    if codec == "utf-8":
        return _level_1("gb18030") | _level_1("big5hkscs")
    if codec == "big5hkscs":
        trails = [*range(0x40, 0x7F), *range(0xA1, 0xFF)]
        return _rows("big5", range(0xA1, 0xC7), trails)
    trails = list(range(0xA1, 0xFF))
    return _rows("gb2312", range(0xA1, 0xA4), trails) | _rows("gb2312", range(0xB0, 0xD8), trails)
