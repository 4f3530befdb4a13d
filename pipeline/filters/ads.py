"""Drops advertising and solicitation: telephone numbers, WeChat and QQ contacts, QR codes to scan, URLs, offers.

The search runs on the even and the bare form of a text (`pipeline.texts.forms`), so 加.V.信, ＶＸ：ａｂｃ１２３４ and
薇❤ count as what they sound like. A single Aho-Corasick search for the words that each pattern needs (微信, 群, 二维码,
com ...) tells which patterns to try, so a caption without any of them costs one search.

A subject is not a solicitation: 微信支付界面, 二维码图案 and 超市里的特价商品 are kept; 加微信, 长按二维码 and
特价9.9元包邮 are dropped. Words and phrases that sell are listed in `ads.txt` beside this file. Running text
(surrounding, abstract, content) loses the sentences that solicit at its beginning and end; what remains is judged by
how much of it solicits, since an article with one telephone number in it is an article: mask that with `personal_data`,
which stands after this filter.

Thresholds: running_chars is ours.

Limits: a price needs a word that sells to be an offer, and such a word a price, unless it can mean nothing else
(厂家直销). Addresses without a known top-level domain are not recognised, nor those of a machine by its number.
Repetitions in the patterns are bounded, so that a text costs time in proportion to its length.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Literal

from pydantic import Field

from data_specs.shard import Text
from pipeline.filters import RUNNING_KINDS, Drop, TextFilter
from pipeline.rows.decisions import DropReason
from pipeline.texts.forms import bare, even
from pipeline.texts.personal import find, may_hold

Kind = Literal["messengers", "groups", "qr_codes", "urls", "offers"]

_NAMES = "微信|威信|薇信|徽信|维信|微心|威心|薇心|v信|v心|weixin|wechat|(?<![a-z0-9])(?:vx|wx)"
_WHO = "(?:我|我们|客服|老师|本人|店主|掌柜|群主|小编|下方|以下)?(?:的)?(?:个人|客服|私人)?"
_TLD = "com|cn|net|org|cc|tv|top|vip|hk|tw|shop|xyz|info|biz|site|club"

_BARE: dict[Kind, str] = {  # in letters and digits alone
    "messengers": rf"(?:加|添加|联系|咨询|私信){_WHO}(?:{_NAMES})(?!支付|付款|小程序|表情|登录|功能|按钮|图标|好友)"
    rf"|加{_WHO}[v微](?=[a-z]{{0,19}}[0-9][a-z0-9]{{4}})"
    r"|(?:微信|威信|薇信|vx|v信?|wx)同(?:号|步|手机|电话)"
    rf"|(?:{_NAMES})(?:号码?|id|账号)?(?:是|为)?(?=[a-z]{{0,19}}[0-9])[a-z0-9]{{6,20}}"
    rf"|(?:{_NAMES})(?:号码?|id|账号)[a-z0-9]{{5,20}}"
    r"|(?:关注|搜索?)(?:我们?|本店)?(?:的)?(?:微信)?(?:公众号|公众平台|服务号)|公众号搜索",
    "groups": r"(?:加|入|进)(?:我们?)?(?:的)?(?:qq|扣扣|企鹅|q|微信|vip|粉丝|福利)群"
    r"|(?:qq|扣扣|企鹅)(?:交流|粉丝|讨论)?群?(?:号码?)?(?:是|为)?[0-9]{5,11}(?![0-9])"
    r"|(?:交流|粉丝|讨论|福利|学习|群)(?:群|号)(?:号码?)?[0-9]{6,11}(?![0-9])",
    "qr_codes": r"扫码(?:关注|加|添加|领|进|入群|下单|咨询|报名|购买|抢|免费|获取|下载|观看|了解|预约|查看|即可)"
    r"|长按(?:识别|扫描|保存|关注|图片|图中|上方|下方|此|下图|上图|本)*二维码"
    r"|(?:识别|扫描|扫一?扫|扫)(?:一?下|图中|图片|文中|文末|下方|上方|下面|上面|下图|上图|右侧|左侧|右边|左边|以下|底部|海报)+(?:的)?二维码"
    r"|(?:识别|扫描|扫一?扫|扫)(?:此|本|该|的)?二维码(?:关注|加|添加|领|进|入|下单|咨询|报名|购买|下载|获取|了解|查看|观看)",
    "urls": rf"(?<![a-z0-9])[a-z0-9]{{2,}}(?:点|dot)(?:{_TLD})(?![a-z])",
}
_EVEN: dict[Kind, str] = {  # where marks tell what is meant
    "messengers": rf"(?:{_NAMES})(?:号码?|id|账号|公众号)?\s*[:=]\s*[a-z0-9][a-z0-9_\-]{{4,19}}"
    r"|公众号\s*:\s*\w{2,}",
    "urls": rf"https?://(?!localhost|[\d.]+[:/])[^\s\u4e00-\u9fff]*|(?<![a-z0-9])www\.[a-z0-9][a-z0-9.\-/]*|"
    rf"(?<![a-z0-9@.\-])(?!(?:asp|vb|ado|ml)\.net)[a-z0-9\-]{{2,}}(?:[.。][a-z0-9\-]+){{0,10}}[.。](?:{_TLD})(?![a-z0-9])",
}
_SENTENCE = re.compile(r"[^。！？!?；;\n]*[。！？!?；;\n]+\s*|[^。！？!?；;\n]+$")
_PRICE = re.compile(
    r"(?:[¥$€]|rmb)\s*[0-9]|[0-9][0-9,.]{0,15}\s*(?:元(?![素旦朝年件代首宵月帅])|块钱|rmb|块(?=$|[^\u4e00-\u9fff]))"
)
_CALL = re.compile(r"(?<![0-9])[48]00[\s\-]?(?:[0-9]{3}[\s\-]?[0-9]{4}|[0-9]{4}[\s\-]?[0-9]{3})(?![0-9])")

_NEEDED: dict[Kind, str] = {  # a match of a pattern holds one of these
    "messengers": "微信 威信 薇信 徽信 维信 微心 威心 薇心 v信 v心 vx wx weixin wechat 加v 加微 v同 公众号 公众平台 "
    "服务号",
    "groups": "群 qq 扣扣 企鹅",
    "qr_codes": "扫码 二维码",
    "urls": f"http www {_TLD.replace('|', ' ')}",
}


class Ads(TextFilter):
    """Drops texts that solicit, by kind."""

    phones: bool = Field(True, description="telephone numbers, including 400 and 800 numbers")
    messengers: bool = Field(True, description="WeChat IDs, and invitations to add one")
    groups: bool = Field(True, description="QQ numbers and groups to join")
    qr_codes: bool = Field(True, description="invitations to scan a QR code")
    urls: bool = Field(True, description="URLs")
    offers: bool = Field(True, description="prices with sales words, and phrases used only in advertising")
    phrases: tuple[str, ...] = Field((), description="additional advertising phrases")
    running_chars: int = Field(
        100, ge=1, description="drop a surrounding, abstract or content with one match per so many characters"
    )

    VERSION: ClassVar[int] = 4

    def rewrite(self, text: Text) -> Text:
        """Running text without the sentences that solicit at its beginning and at its end."""
        if text.kind not in RUNNING_KINDS or not self._solicitations(text.text):
            return text
        sentences = _SENTENCE.findall(text.text)
        solicits = [bool(self._solicitations(sentence)) for sentence in sentences]
        if all(solicits):
            return text
        first, last = solicits.index(False), len(solicits) - solicits[::-1].index(False)
        remaining = "".join(sentences[first:last]).strip()
        return text if remaining == text.text else replace(text, text=remaining)

    def check(self, text: Text) -> Drop | None:
        solicitations = self._solicitations(text.text)
        if not solicitations:
            return None
        if text.kind in RUNNING_KINDS and len(solicitations) * self.running_chars < len(text.text):
            return None
        return Drop(DropReason.ADVERTISEMENT, ", ".join(dict.fromkeys(solicitations)))

    def _solicitations(self, text: str) -> list[str]:
        """The words that solicit, one entry per place in the text; a telephone number is counted and not quoted."""
        letters = bare(text)
        automaton, meanings = _words(self.phrases)
        places: list[str] = []
        kinds: dict[Kind, int] = {}
        for number, _, _ in automaton.find_matches_as_indexes(letters, overlapping=True):
            kind, phrase = meanings[number]
            if phrase and self.offers:
                places.append(phrase)
            elif not phrase:
                kinds[kind] = kinds.get(kind, 0) + 1
        for kind in kinds:
            if not getattr(self, kind):
                continue
            if kind == "offers":
                places += [match.group() for match in _PRICE.finditer(even(text))]
            else:
                places += _matches(kind, letters, even(text))
        if self.phones and may_hold(text):
            places += ["a telephone number"] * _telephones(text)
        return places


def _matches(kind: Kind, letters: str, plain: str) -> list[str]:
    """Matches of a kind's patterns in the bare form, or else in the even one: both would count a place twice."""
    for forms, form in ((_BARE, letters), (_EVEN, plain)):
        if kind in forms and (matches := [match.group() for match in _compiled(forms[kind]).finditer(form)]):
            return matches
    return []


def _telephones(text: str) -> int:
    """Number of telephone numbers in a text, those that begin with 400 or 800 included."""
    places = {f.start for kind in ("mobile", "landline") for f in find(text, kind)}
    return len(places | {match.start() for match in _CALL.finditer(even(text))})


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@cache
def _words(phrases: tuple[str, ...]) -> tuple[Any, list[tuple[Kind, str]]]:
    """Aho-Corasick automaton over all words, and the meaning of each. Built once per process.

    (kind, "") is the meaning of a word that a kind's patterns need, ("offers", phrase) of a phrase that only sells.
    """
    from ahocorasick_rs import AhoCorasick, Implementation

    text = resources.files("pipeline.filters").joinpath("ads.txt").read_text(encoding="utf-8")
    words, packaged = (part.split() for part in re.sub("(?m)^#.*$", "", text).split("---"))
    meaning: dict[str, tuple[Kind, str]] = dict.fromkeys(words, ("offers", ""))
    meaning |= {word: (kind, "") for kind, needed in _NEEDED.items() for word in needed.split()}
    meaning |= {bare(phrase): ("offers", phrase) for phrase in (*packaged, *phrases) if bare(phrase)}
    return AhoCorasick(list(meaning), implementation=Implementation.DFA), list(meaning.values())
