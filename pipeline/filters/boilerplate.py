"""Drops texts that do not describe their picture: set phrases of web sites, file names, URLs, LaTeX source.

Phrases come from `boilerplate.txt` beside this file, one per line, and from the spec; width, case and Traditional
characters do not matter. A text is boilerplate if at most one letter remains once the phrases are removed:
「点击查看大图」 is dropped, 「点击查看大图：黄山云海」 is kept. A line that begins with = is a word that counts only as
the whole text, whatever number and marks it has: 首页, [警告], 二维码2. In a collection
(`pipeline.filters.is_collection`) such a word stays by default: people gave it to the picture of a button, 按钮.

Limits: set phrases of a single site are not known here; stage `extract` removes texts that many of its pages
share.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any, ClassVar

from pydantic import Field

from data_specs.build import SourceRef
from data_specs.shard import Text
from pipeline.filters import Drop, TextFilter, is_collection
from pipeline.rows.decisions import DropReason
from pipeline.texts.forms import even

_IMAGE_FILE = re.compile(r"\S*\.(?:jpe?g|png|gif|bmp|webp|tiff?|svg|heic|avif)", re.I)
_CAMERA_NAME = re.compile(
    r"(?:img|dsc[nf]?|pict?|photo|image|picture|screenshot|screen shot|mmexport|wechatimg|wx|微信(?:图片|截图)|"
    r"qq(?:图片|截图|浏览器截图)|(?:屏幕)?截[图屏]|图[片像]?|圖[片像]?|照片|未标题|未命名|无标题(?:文档|页面?)?|下载)[\s_\-()（）:.\d]*",
    re.I,
)
_NUMBER = re.compile(r"[\d\s_\-.,()（）/:年月日]+|[0-9a-f]{12,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)
_NAME_OR_NUMBER = re.compile(r"[idpsmwq微屏截图圖照未无下\d\s_\-.,()（）/:年月日a-f]", re.I)
"""The first character of what the last two match."""
_URL = re.compile(  # a host begins where its characters do: from each of its labels the search would be quadratic
    r"(?:https?://|www\.)\S+|(?<![a-z0-9.-])\.*(?:[a-z0-9-]+\.+)+(?:com|cn|net|org|cc|tv|top|vip|hk|tw)(?:/\S*)?", re.I
)
_LATEX = re.compile(
    r"\\(?:begin|end|frac|left|right|mathbb|mathcal|mathbf|mathrm|sqrt|sum|int|prod|text|partial)\b|\\[({\[]"
)
_LETTER, _TWO_LETTERS = re.compile(r"[^\W_]"), re.compile(r"[^\W_][\W_]*[^\W_]")
_NO_WORD = re.compile(r"[\W_\d]+")

LONGEST_WORD = 12
"""Characters of a text that is looked up as a word of the list."""


class Boilerplate(TextFilter):
    """Set phrases, file names and URLs."""

    phrases: tuple[str, ...] = Field((), description="set phrases in addition to the packaged ones")
    packaged: bool = Field(True, description="use the packaged list of set phrases")
    words: bool | None = Field(
        None, description="drop texts that are one word of the packaged list; default: not in a folder or library"
    )

    VERSION: ClassVar[int] = 6

    def for_source(self, source: SourceRef) -> Boilerplate:
        return self.model_copy(update={"words": False}) if self.words is None and is_collection(source) else self

    def check(self, text: Text) -> Drop | None:
        stripped = text.text.strip()
        has_dot = "." in stripped  # every file name and nearly every URL has a dot: a test that spares two patterns
        may_be_name = _NAME_OR_NUMBER.match(stripped) is not None
        if (has_dot and _IMAGE_FILE.fullmatch(stripped)) or (may_be_name and _CAMERA_NAME.fullmatch(stripped)):
            return Drop(DropReason.BOILERPLATE, "a file name")
        if may_be_name and _NUMBER.fullmatch(stripped):
            return Drop(DropReason.BOILERPLATE, "a number or an ID")
        if (has_dot or "://" in stripped) and _URL.search(stripped) and not _letters(_URL.sub("", stripped)):
            return Drop(DropReason.BOILERPLATE, "a URL")
        if "\\" in stripped and _LATEX.search(stripped):
            return Drop(DropReason.BOILERPLATE, "LaTeX source")
        plain = even(stripped)
        if len(stripped) <= LONGEST_WORD and self._drops_words:
            word = plain if plain.isalpha() else _NO_WORD.sub("", plain)
            if word in _words():
                return Drop(DropReason.BOILERPLATE, stripped)
        matches = _phrases(self.phrases, self.packaged).find_matches_as_indexes(plain)
        if not matches:
            return None
        # the texts between phrases: from the end of one, or the beginning, to the start of the next, or the end
        bounds = [0, *(at for _, *span in matches for at in span), len(stripped)]
        if _TWO_LETTERS.search("".join(stripped[bounds[i] : bounds[i + 1]] for i in range(0, len(bounds), 2))):
            return None
        _, start, end = matches[0]
        return Drop(DropReason.BOILERPLATE, stripped[start:end])

    @property
    def _drops_words(self) -> bool:
        return self.packaged and self.words is not False


def _letters(text: str) -> int:
    return len(_LETTER.findall(text))


@cache
def _words() -> frozenset[str]:
    """The words of the packaged list, plain."""
    return frozenset(even(line[1:].strip()) for line in _packaged_lines() if line.startswith("="))


def _packaged_lines() -> list[str]:
    text = resources.files("pipeline.filters").joinpath("boilerplate.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


@cache
def _phrases(phrases: tuple[str, ...], packaged: bool) -> Any:
    """Aho-Corasick automaton of all phrases; of two that begin at the same place the longer one counts."""
    from ahocorasick_rs import AhoCorasick, Implementation, MatchKind

    lines = list(phrases)
    if packaged:
        lines += [line for line in _packaged_lines() if not line.startswith("=")]
    plain = sorted({even(line.strip()) for line in lines if line.strip()})
    return AhoCorasick(plain, matchkind=MatchKind.LeftmostLongest, implementation=Implementation.DFA)
