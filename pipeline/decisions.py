"""Decisions on captures and candidates: kept, or dropped at a stage for reasons; and the reasons."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pyarrow as pa

from pipeline.records import Candidate, columns_of, encodable, sha256_hex
from pipeline.urls import without_userinfo


class DropReason(enum.StrEnum):
    """Why a capture or candidate was dropped. One word each; the evidence is in the Decision."""

    # crawl
    ROBOTS_DISALLOWED = "robots_disallowed"
    ROBOTS_UNREACHABLE = "robots_unreachable"
    OPT_OUT = "opt_out"  # noai, noimageai, noindex, noml ... in a header or a meta tag; text and data mining reserved
    EGRESS_REFUSED = "egress_refused"  # scheme or address that may not be reached
    HTTP_STATUS = "http_status"
    TIMEOUT = "timeout"
    DNS = "dns"  # its host has no address
    CONNECTION = "connection"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_LARGE = "too_large"
    BAD_RESPONSE = "bad_response"  # no HTTP, a header that is malformed or too long, a body that cannot be decoded
    NOT_HTML = "not_html"
    OVER_BUDGET = "over_budget"
    TRAP = "trap"  # a page that differs from earlier ones in its numbers only
    BROKEN_FILE = "broken_file"  # a file of a source of which nothing can be read, or nothing more
    UNREADABLE = "unreadable"  # a parser failed on it, or took too long; at any stage that reads what others wrote
    # extract
    BAD_CHARSET = "bad_charset"
    BAD_URL = "bad_url"
    BAD_ROW = "bad_row"  # a row of a table that cannot be read
    DATA_URI = "data_uri"
    SPACER = "spacer"  # icon, spacer, tracking pixel
    NO_TEXT = "no_text"
    REPEATED_ON_PAGE = "repeated_on_page"
    FALLBACK_TEXT = "fallback_text"  # better texts were removed than `admit.max_text_rank` allows
    LIST_COVER = "list_cover"  # stands in a list of articles; the article has it too
    CAP_PER_PAGE = "cap_per_page"  # of images
    CAP_PER_HOST = "cap_per_host"  # of images on the pages of a host
    # admit
    FORGOTTEN = "forgotten"
    SAME_CANDIDATE = "same_candidate"
    CAP_PER_IMAGE_URL = "cap_per_image_url"
    CAP_PER_IMAGE_HOST = "cap_per_image_host"
    TEXT_TOO_SHORT = "text_too_short"
    TEXT_TOO_LONG = "text_too_long"
    LOW_HAN_SHARE = "low_han_share"
    NOT_CHINESE = "not_chinese"
    BOILERPLATE = "boilerplate"
    REPETITION = "repetition"
    ADVERTISEMENT = "advertisement"
    LISTED_WORD = "listed_word"  # a word of a lexicon that the spec names
    PERSONAL_DATA = "personal_data"
    NO_NOUN = "no_noun"  # fewer nouns than asked for
    FEW_CONTENT_WORDS = "few_content_words"
    STOP_WORDS = "stop_words"  # mostly stop words
    TEXT_ENTROPY = "text_entropy"  # its words say little
    UNKNOWN_CHARACTERS = "unknown_characters"
    PERPLEXITY = "perplexity"  # too likely, or too unlikely, to a language model
    # fetch and measure
    EMPTY_BODY = "empty_body"
    NOT_AN_IMAGE = "not_an_image"
    UNREADABLE_FORMAT = "unreadable_format"  # a picture in a format whose reader is not installed
    TOO_MANY_PIXELS = "too_many_pixels"
    CORRUPT_IMAGE = "corrupt_image"
    NOT_STORED = "not_stored"  # STORE lacks its bytes, and this build sends no request
    # filter
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_ASPECT = "image_aspect"
    IMAGE_BLANK = "image_blank"
    IMAGE_BLURRED = "image_blurred"
    IMAGE_ENTROPY = "image_entropy"  # of few grey levels
    IMAGE_ANIMATED = "image_animated"
    # dedup
    KNOWN = "known"  # an earlier build decided on its image: no drop, a fate of its own
    SAME_IMAGE = "same_image"  # same bytes as an earlier kept one
    NEAR_IMAGE = "near_image"
    PLACEHOLDER = "placeholder"  # one picture under many different texts
    CAP_PER_TEXT = "cap_per_text"
    CAP_PER_DOMAIN = "cap_per_domain"
    OTHER_SPLIT = "other_split"  # each of its texts stands in another split than its image
    # curate: screen
    NSFW = "nsfw"
    TEXT_HEAVY = "text_heavy"
    QR_CODE = "qr_code"
    FACES = "faces"  # more than allowed
    COLOURFULNESS = "colourfulness"  # too little, or too much
    LOW_DETAIL = "low_detail"  # enlarged, or out of focus: less detail than its size promises
    # curate: watermark
    WATERMARK = "watermark"  # it carries the mark that many pictures of its host have
    # curate: pair_score
    PAIR_SCORE_LOW = "pair_score_low"  # picture and text fit too badly
    PAIR_SCORE_HIGH = "pair_score_high"  # too well: often a picture of its own caption
    BELOW_TOP_SHARE = "below_top_share"  # others of its source fit better
    # curate: semantic_dedup
    SEMANTIC_DUPLICATE = "semantic_duplicate"  # its image shows what that of an earlier kept pair shows
    # curate: balance
    OVER_REPRESENTED = "over_represented"  # all its concepts are frequent, and its id is not among the share kept
    NO_CONCEPT = "no_concept"


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
