"""Decisions on captures and candidates: kept, or dropped at a stage for reasons; and the reasons."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pyarrow as pa

from pipeline.rows.records import Candidate, columns_of, encodable, sha256_hex
from pipeline.urls import without_userinfo


class DropReason(enum.StrEnum):
    """Why a capture or candidate was dropped: a name, and words in both languages. The evidence is in the Decision."""

    en: str
    zh: str

    def __new__(cls, name: str, en: str = "", zh: str = "") -> DropReason:  # DropReason("known") finds one
        own = str.__new__(cls, name)
        own._value_, own.en, own.zh = name, en, zh
        return own

    # crawl
    ROBOTS_DISALLOWED = "robots_disallowed", "robots.txt forbids it", "robots 禁止"
    ROBOTS_UNREACHABLE = "robots_unreachable", "robots.txt unreachable", "robots 无法读取"
    # noai, noimageai, noindex, noml ... in a header or a meta tag; text and data mining reserved
    OPT_OUT = "opt_out", "opted out", "声明退出"
    EGRESS_REFUSED = "egress_refused", "address refused", "地址被拒"  # scheme or address that may not be reached
    HTTP_STATUS = "http_status", "HTTP error", "HTTP 错误"
    TIMEOUT = "timeout", "timeout", "超时"
    DNS = "dns", "unknown host", "域名无法解析"  # its host has no address
    CONNECTION = "connection", "no connection", "连接失败"
    TOO_MANY_REDIRECTS = "too_many_redirects", "too many redirects", "重定向过多"
    TOO_LARGE = "too_large", "file too large", "过大"
    # no HTTP, a header that is malformed or too long, a body that cannot be decoded
    BAD_RESPONSE = "bad_response", "malformed response", "响应损坏"
    NOT_HTML = "not_html", "not a web page", "不是网页"
    OVER_BUDGET = "over_budget", "over the limits of the crawl", "超出预算"
    TRAP = "trap", "endless pages", "无尽页面"  # a page that differs from earlier ones in its numbers only
    BROKEN_FILE = "broken_file", "broken file", "文件损坏"  # of which nothing, or nothing more, can be read
    # a parser failed on it, or took too long; at any stage that reads what others wrote
    UNREADABLE = "unreadable", "parser failed", "无法解析"
    # extract
    BAD_CHARSET = "bad_charset", "unknown encoding", "编码无法识别"
    BAD_URL = "bad_url", "invalid address", "地址无效"
    BAD_ROW = "bad_row", "unreadable row", "行无法读取"
    DATA_URI = "data_uri", "inline image", "内嵌图像"
    SPACER = "spacer", "icon or spacer", "图标或占位图"  # or a tracking pixel
    NO_TEXT = "no_text", "no text", "没有文本"
    REPEATED_ON_PAGE = "repeated_on_page", "repeated on its page", "页面内重复"
    # better texts were removed than `admit.max_text_rank` allows
    FALLBACK_TEXT = "fallback_text", "fallback text", "替补文本"
    LIST_COVER = "list_cover", "cover in a list", "列表封面"  # stands in a list of articles; the article has it too
    CAP_PER_PAGE = "cap_per_page", "over the cap per page", "超出每页图片上限"  # of images
    CAP_PER_HOST = "cap_per_host", "over the cap per site", "超出每个网站图片上限"  # of images on the pages of a host
    # admit
    FORGOTTEN = "forgotten", "taken down", "已下架"
    SAME_CANDIDATE = "same_candidate", "same candidate again", "同一候选"
    CAP_PER_IMAGE_URL = "cap_per_image_url", "over the cap per image URL", "同图址上限"
    CAP_PER_IMAGE_HOST = "cap_per_image_host", "over the share of an image host", "超出图片主机占比上限"
    TEXT_TOO_SHORT = "text_too_short", "text too short", "文本过短"
    TEXT_TOO_LONG = "text_too_long", "text too long", "文本过长"
    LOW_HAN_SHARE = "low_han_share", "few Chinese characters", "汉字过少"
    NOT_CHINESE = "not_chinese", "not Chinese", "非中文"
    BOILERPLATE = "boilerplate", "boilerplate", "套话"
    REPETITION = "repetition", "repetition", "重复字句"
    ADVERTISEMENT = "advertisement", "advertisement", "广告"
    LISTED_WORD = "listed_word", "listed word", "词表命中"  # a word of a lexicon that the spec names
    PERSONAL_DATA = "personal_data", "personal data", "个人信息"
    NO_NOUN = "no_noun", "no noun", "没有名词"  # fewer nouns than asked for
    FEW_CONTENT_WORDS = "few_content_words", "few content words", "实词过少"
    STOP_WORDS = "stop_words", "mostly stop words", "停用词过多"
    TEXT_ENTROPY = "text_entropy", "low word entropy", "词语信息量低"  # its words say little
    UNKNOWN_CHARACTERS = "unknown_characters", "unknown characters", "生僻字符过多"
    # fetch and measure
    EMPTY_BODY = "empty_body", "empty file", "空内容"
    NOT_AN_IMAGE = "not_an_image", "not an image", "不是图像"
    UNREADABLE_FORMAT = "unreadable_format", "format not installed", "格式未安装"
    TOO_MANY_PIXELS = "too_many_pixels", "too many pixels", "像素过多"
    CORRUPT_IMAGE = "corrupt_image", "damaged image", "图像损坏"
    NOT_STORED = "not_stored", "not stored", "未存储"  # STORE lacks its bytes, and this build sends no request
    # filter
    IMAGE_TOO_SMALL = "image_too_small", "image too small", "图像过小"
    IMAGE_TOO_LARGE = "image_too_large", "image too large", "图像过大"
    IMAGE_ASPECT = "image_aspect", "aspect ratio", "长宽比异常"
    IMAGE_BLANK = "image_blank", "blank image", "空白图像"
    IMAGE_BLURRED = "image_blurred", "blurred image", "图像模糊"
    IMAGE_ENTROPY = "image_entropy", "few grey levels", "灰阶过少"
    IMAGE_ANIMATED = "image_animated", "animation", "动图"
    # dedup
    KNOWN = "known", "already known to the dataset", "数据集已知"  # decided by an earlier build: no drop, its own fate
    SAME_IMAGE = "same_image", "same image", "相同图像"  # same bytes as an earlier kept one
    NEAR_IMAGE = "near_image", "near-copy of an image", "近似图像"
    PLACEHOLDER = "placeholder", "placeholder image", "占位图"  # one picture under many different texts
    CAP_PER_TEXT = "cap_per_text", "over the cap per text", "同文本上限"
    OTHER_SPLIT = "other_split", "texts of another split", "文本属于其他划分"  # than its image
    # curate: screen
    NSFW = "nsfw", "not safe for work", "不宜展示"
    TEXT_HEAVY = "text_heavy", "mostly text", "文字过多"
    QR_CODE = "qr_code", "QR code", "二维码"
    FACES = "faces", "faces", "人脸"  # more than allowed
    LOW_DETAIL = "low_detail", "less detail than its size suggests", "细节不足"  # enlarged, or out of focus
    # curate: watermark
    WATERMARK = "watermark", "watermark of its host", "站点水印"  # a mark that many of its pictures have
    # curate: pair_score
    PAIR_SCORE_LOW = "pair_score_low", "text does not match", "图文不符"
    PAIR_SCORE_HIGH = "pair_score_high", "text matches too well", "图文过于吻合"  # often a picture of its own caption
    BELOW_TOP_SHARE = "below_top_share", "other pairs match better", "不在高分之列"  # of its source
    # curate: semantic_dedup
    SEMANTIC_DUPLICATE = "semantic_duplicate", "semantic duplicate", "语义重复"  # shows what an earlier kept one shows
    # curate: balance
    # all its concepts are frequent, and its id is not among the share kept
    OVER_REPRESENTED = "over_represented", "over-represented", "概念过多"
    NO_CONCEPT = "no_concept", "no concept word", "无概念词"


LOSSES = ("lost_parts", "lost_bytes", "lost_rows", "lost_files")
"""Counts of a record of `extract`: damaged parts of files, the bytes of these, of bad lines and of lost files, the rows
that metadata state of them, and files of which nothing, or nothing more, can be read."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Weight of one Decision about damage.

    rows: as metadata state them, 0 if unknown. files: 1 for a whole file. lines: 1 for a line that is not a row.
    """

    bytes: int = 0
    rows: int = 0
    files: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Outcome of one capture or candidate: kept to the end, or dropped at a stage for a first reason.

    A candidate with the reason `known` is not dropped: the dataset holds its image already (`duplicate_of`).
    """

    subject: Literal["capture", "candidate"]
    id: str  # candidate_id, or sha256 of the capture's URL
    fetch_id: str  # "" for a capture
    source: str
    page_url: str
    url: str  # of the image, or of the page
    stage: str
    kept: bool
    reason: str = ""  # DropReason, "" if kept
    reasons: tuple[str, ...] = ()  # every failing one
    evidence: str = ""
    duplicate_of: str = ""  # candidate_id of the leader
    text: str = ""  # primary text, for people who read the report
    lost: Annotated[Lost | None, None] = None  # what a damaged part of a file swallowed; counted by `extract`

    def __post_init__(self) -> None:
        for name in ("page_url", "url", "evidence"):  # a password of a URL is written nowhere
            value = getattr(self, name)
            if "@" in value:
                object.__setattr__(self, name, without_userinfo(value))


def drop(
    candidate: Candidate,
    stage: str,
    reason: DropReason,
    evidence: str = "",
    *,
    reasons: Sequence[str] = (),
    duplicate_of: str = "",
) -> Decision:
    """The Decision that drops a candidate.

    reasons: every failing one, where there are more than `reason`. duplicate_of: candidate_id of the leader.
    What was taken down is counted, and not written down again: no URL, no text.
    """
    named = reason is not DropReason.FORGOTTEN
    return Decision(
        subject="candidate",
        id=candidate.candidate_id,
        fetch_id=candidate.fetch_id,
        source=candidate.source,
        page_url=encodable(candidate.page_url) if named else "",
        url=encodable(candidate.image_url[:2000]) if named else "",
        stage=stage,
        kept=False,
        reason=reason.value,
        reasons=tuple(reasons) or (reason.value,),
        evidence=encodable(evidence[:300]),
        duplicate_of=duplicate_of,
        text=encodable(candidate.texts[0].text[:200]) if candidate.texts and named else "",
    )


def drop_capture(url: str, source: str, stage: str, reason: DropReason, evidence: str = "") -> Decision:
    """The Decision that drops the capture of a URL. What was taken down is counted, its URL is not written again."""
    shown = url if reason is not DropReason.FORGOTTEN else ""
    return Decision(
        subject="capture",
        id=sha256_hex(url),
        fetch_id="",
        source=source,
        page_url=shown,
        url=shown,
        stage=stage,
        kept=False,
        reason=reason.value,
        reasons=(reason.value,),
        evidence=evidence[:300],
    )


DECISION_SCHEMA = pa.schema(columns_of(Decision))


def decision_rows(decisions: list[Decision]) -> pa.Table:
    names = DECISION_SCHEMA.names
    return pa.Table.from_pylist([{n: getattr(d, n) for n in names} for d in decisions], schema=DECISION_SCHEMA)
