"""Forms of lines on a page: captions, bylines, numbers of headings, words that point at a picture.

Limits: these are the forms of Chinese pages; a line in another language is text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib import resources

from pipeline.texts.characters import HAN

MAX_SURROUNDING = 150
"""Characters kept of a surrounding text, the ones nearest to the image: those of a paragraph, since its last sentence
alone often leaves out its subject, which Chinese names once."""

MAX_BYLINE = 60
"""Characters of a line that says who wrote a page, and when."""

MAX_LINE = 40
"""Characters of a line below an image that can be its caption without a mark of one."""

MIN_BESIDE = 4
"""Han characters of a text beside an image that can stand before the title, words without content aside."""

MIN_FRAME = 6
"""Han characters of words without content around an alt from which on they are taken off it."""

POINTS_DOWN = re.compile(r"[这這](?:就|也)?(?:是|[张張幅])|下[图圖]|[如见見][图圖]|如下|(?:下面|以下)的?是|[：:]$")
"""Sentences about the picture below them."""
POINTS_UP = re.compile(
    r"上[图圖]|上面?(?:[这這]|的)?[一两兩张張幅个個]{0,2}[图圖]|如上|^[从從由]?[图圖](?:中|里|裡|上|可)"
)
"""Sentences about the picture above them."""
STORY_CLAUSES, STORY_CHARACTERS = 5, 105
"""Clauses, and characters, of a text beside an image from which on it tells a story, of which the image shows a moment
at most."""
_SHOWN = re.compile(
    r"[A-Za-z]{2}|[图圖][中所上]|如[图圖]|所示|看[到见見]|截[图圖]|[画畫]面|界面|窗口|按[钮鈕]|[点點][击擊]|[选選][择擇]|打[开開]|[显顯]示"
)
"""Words of steps and screens, and names in Latin letters: a long text with one may still be about its image."""
DEFINES = re.compile(
    r"[^，。！？；：]{2,16}(?:[（(].{1,30}[）)])?，?(?:"
    r"[简簡又也别別原古][称稱名]|位于|位於|坐落|地[处處]|[属屬]|"
    r"是.{0,24}(?:之一|一[种種座家]|[传傳][统統]|著名|特色|名[吃菜胜勝]|小吃|景[区區点點]|[动動]物|植物))"
)
"""The beginning of a paragraph that says what a named thing is: 铜雀台位于邯郸市."""
SENTENCE_END = re.compile(r"[。！？；]|[.!?;](?=\s)")
_PHRASE_END = re.compile(r"[，,、：:]|\s(?=\S)")
_GAP, _PART = (re.compile(rf"[{kind}\s:：「」『』“”\"《》【】]+") for kind in ("", "^"))
_WORD = re.compile("[A-Za-z]+")
_LETTER = re.compile(r"[^\W\d_]")
_CAPTION_LINE = re.compile(r"^[（(]?(?:[▲△↑▼]|图[：:为注]|圖[：:為註])")
_CREDITED = re.compile(
    r"(?:(?<!拍)[摄攝]|[摄攝]影|供[图圖]|[资資]料(?:[图圖]|照片)|[图圖]片?[来來]?源[：:/].{1,20})[）)。]?$"
)
"""The end of a caption that names its photographer or where it is from, as those of the press do."""
CAPTION_MARKS = re.compile(r"^(?:[▲△↑▼\s]+|[图圖][注註]?[：:]\s*)")
_NUMBERED = re.compile(r"[图圖]\s*\d+(?:[.\-–—]\d+)*(?:\s*[.．:：、]\s*|\s+)(?=\S)")
_DATE = r"\d{4}\s*[-/.年]\s*\d{1,2}\s*[-/.月]\s*\d{1,2}日?"
_BYLINE = re.compile(
    r"(?:本文)?(?:[发發][布佈表]|更新|[创創]建|刊登)(?:[于於]|[时時][间間]|日期)|"
    r"(?:作者|撰文|文字|[编編][辑輯]|[责責](?:任)?[编編][辑輯]?|[来來]源|出[处處]|[摄攝]影|"
    r"[点點][击擊]|[浏瀏][览覽]|[阅閱][读讀])[数數量]?\s*[：:]|"
    rf"\w{{0,4}}(?:拍?[摄攝]|拍)[于於]\s*\d{{4}}|"
    r"(?:地[点點址]|坐[标標]|海拔|[时時][间間]|日期|[编編][号號]|尺寸|[价價]格|[电電][话話]|[浏瀏][览覽]|[器相][材机機]|[镜鏡][头頭])\s*[：:]|"
    r"(?:使?用|使用的?是).{1,20}拍[摄攝的][。.]?$|文\s*[/／]|"
    r"\w{0,8}\s*收[录錄][于於]\s*(?:分[类類]|[类類][别別]|系列|[专專][栏欄])|(?:分[类類]|[类類][别別]|[标標][签籤])\s*[：:]|(?:[您你]|[当當]前)?(?:的|[现現所]在)*位置\s*[:：>＞]|首[页頁]\s*[»›>＞/-]|"
    rf"(?:{_DATE}[\s\d:：]*)+(?:$|[|｜·•字]|[约約共]\s*\d|[来來]源|作者|[编編][辑輯]|[浏瀏][览覽]|[阅閱][读讀]|[评評][论論])"
)
"""The beginning of a line that says who wrote a page, or took a picture, and when or where; not what is on it."""
_DATED = re.compile(r"20\d\d[-/.年]\d{1,2}[-/.月]\d{1,2}日?\s*\d{1,2}:\d\d(?::\d\d)?$")
"""The end of one: 原创 张三 2021-08-01 08:00."""
_COUNT = r"(?:\d{1,3}|[零一二三四五六七八九十百]{1,5})"
_MARK = r"(?:\s*[:：、.．—–-]+\s*|\s+)"
_SECTION_NUMBER = re.compile(  # 4.2.3., A.1, §4 | 第 9 章, 附录 A. | （一）, a), ① | 1., 一、
    r"(?=[\dA-Za-z§第附（(①-⒛❶-➓㈠-㈩零一二三四五六七八九十百])(?:"  # most texts are passed over at once
    rf"(?:(?:§\s*)?(?:\d+|[A-H](?=\.\d\d?\b))(?:\.\d+)+(?:[.、]\s*|\s+)|§\s*\d+[.、]?\s*|"
    rf"第\s*{_COUNT}\s*(?:[章节節讲講课課篇回步]|部分){_MARK}|附[录錄]\s*(?:[A-Z]|{_COUNT})(?:\.\d+)*{_MARK}|"
    rf"[（(]?(?:{_COUNT}|[A-Za-z])[）)]\s*|[①-⒛❶-➓㈠-㈩]\s*)(?=[^\d\s])|"
    r"(?:\d{1,3}\s*[.、．-]|[一二三四五六七八九十]{1,3}、)\s*(?=[^\d\s]\S{3}))"
)
_REST = re.compile(r"[。！？…]+\s*|[，、；：）」』】〉》”’][^。！？]*[。！？]?\s*")
"""What a text that begins in the middle of a sentence has of it."""


def without_number(heading: str) -> str:
    """A heading without the number of its section: 4.2.3., A.1, 第 9 章, （一）, ①."""
    number = _SECTION_NUMBER.match(heading)
    return heading[number.end() :] if number else heading


def without_frame(text: str) -> str:
    """X of 這是一張有關標題為 X 的圖片: a text without the words without content before and behind its other parts.
    Whole where those have fewer than MIN_FRAME Han characters.
    """
    if not _GAP.search(text):
        return text
    parts = list(_PART.finditer(text)) if HAN.search(text) else []
    says = [at for at, part in enumerate(parts) if not HAN.search(part[0]) or says_something(part[0], 1)]
    start, end = (parts[says[0]].start(), parts[says[-1]].end()) if says else (0, len(text))
    return text[start:end] if len(HAN.findall(text[:start] + text[end:])) >= MIN_FRAME else text


def says_something(text: str, minimum: int = MIN_BESIDE) -> bool:
    """True if so many Han characters remain once words without content are taken out, the longest first; a word in
    Latin letters counts as two, beside a Han character.
    """
    if not HAN.search(text):
        return False
    words, at, count, han = _empty_words(), 0, 0, False
    while at < len(text) and not (han and count >= minimum):
        ch = text[at]
        if "\u3400" <= ch <= "\u9fff" or "\U00020000" <= ch <= "\U0003ffff":  # HAN, at a third of its time
            if text[at : at + 3] in words:
                at += 3
            elif text[at : at + 2] in words:
                at += 2
            else:
                if ch not in words:
                    count, han = count + 1, True
                at += 1
        elif word := _WORD.match(text, at):
            at, count = word.end(), count + 2
        else:
            at += 1
    return han and count >= minimum


def is_story(text: str) -> bool:
    """True for a long text that points to nothing that an image shows."""
    long = len(text) >= STORY_CHARACTERS or sum(map(text.count, "，,")) >= STORY_CLAUSES
    return long and _SHOWN.search(text) is None


def han_length(text: str) -> int:
    """Han characters of a text, and two for each word in Latin letters beside them."""
    han = len(HAN.findall(text))
    return han + 2 * len(_WORD.findall(text)) * (han > 0)


@functools.cache
def _empty_words() -> frozenset[str]:
    text = resources.files("pipeline.pages").joinpath("empty_words.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if line[:1] != "#" for word in line.split())


def ending_of(text: str) -> str:
    """The end of a text, MAX_SURROUNDING characters at most, from a sentence or phrase on; without its number."""
    if len(text) <= MAX_SURROUNDING:
        return _from_sentence(text)
    end = text[-MAX_SURROUNDING:]
    marks = (mark.search(end) for mark in (SENTENCE_END, _PHRASE_END))
    return next((end[mark.end() :] for mark in marks if mark and _LETTER.search(end, mark.end())), end).strip()


def beginning_of(text: str) -> str:
    """The beginning of a text, MAX_SURROUNDING characters at most, to the end of a sentence if there is one; without
    its number."""
    text = _from_sentence(text)
    if len(text) <= MAX_SURROUNDING:
        return text
    beginning = text[:MAX_SURROUNDING]
    ends = [mark.end() for mark in SENTENCE_END.finditer(beginning)]
    return beginning[: ends[-1] if ends else None].strip()


def _from_sentence(text: str) -> str:
    """A text from where its first sentence begins, without the number of its section."""
    text = text.strip()
    if text and (rest := _REST.match(text)):
        text = text[rest.end() :]
    return without_number(text) if text else ""


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of a text with their marks."""
    at = 0
    for mark in SENTENCE_END.finditer(text):
        if sentence := text[at : mark.end()].strip():
            yield sentence
        at = mark.end()
    if sentence := text[at:].strip():
        yield sentence


def is_caption_line(text: str) -> bool:
    """True for a line with the mark of a caption, the number of a figure, or a photographer at its end."""
    if len(text) > 100:
        return False
    numbered = _NUMBERED.match(text) is not None and text[-1] not in "。；：:"
    return numbered or _CAPTION_LINE.match(text) is not None or _CREDITED.search(text[4:][-30:]) is not None


def is_line(text: str) -> bool:
    """True for a short text without a full stop that does not lead to what stands below it."""
    return 0 < len(text) <= MAX_LINE and not SENTENCE_END.search(text) and not POINTS_DOWN.search(text)


def is_byline(text: str) -> bool:
    """True for a line that says who wrote the page, and when: it is about no picture."""
    return len(text) <= MAX_BYLINE and (_BYLINE.match(text) or _DATED.search(text[-20:])) is not None
