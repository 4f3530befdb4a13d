"""microblog: posts as JSON lines, each with its pictures. The text of a post applies to all its pictures.

Options name the parts of a post by paths: `pics[].large.url` is the `url` of `large` of each entry of `pics`. If there
are several paths, the first that leads to a value counts; the defaults fit posts as Weibo's interfaces return them.
Markup, links, "view all" marks and reposted parts (`//@name: ...`) are removed from the text; `#topics#` become tags.

Limits: one file is one part of the extract stage; a repost counts with its own words only.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from data_specs.shard import Text
from pipeline.account import Account, Named
from pipeline.errors import BrokenFile
from pipeline.files.inputs import Lines, LongLine, faults, writable
from pipeline.records import Candidate, Decision, DropReason, drop, encodable
from pipeline.sources import Decoding, FileSource
from pipeline.sources._text_files import opened
from pipeline.texts.cleaning import clean
from pipeline.urls import canonical_url, split_userinfo

_TOPIC = re.compile(r"#([^#\n]{1,40})#")
_NOISE = re.compile(r"<br ?/?>|<[^>]{1,2000}>|https?://t\.cn/\w+|网页链接|(?:\.\.\.|…)?\s*(?:展开)?全文c?\s*$|\u200b")
_REPOST = re.compile(r"//@[^:：]{1,40}[:：].*", re.S)


class Fields(BaseModel):
    """Paths to the parts of a post."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: tuple[str, ...] = Field(("mid", "idstr", "id"), description="ID of the post")
    text: tuple[str, ...] = Field(("longText.longTextContent", "raw_text", "text", "content"), description="its text")
    images: tuple[str, ...] = Field(
        ("pics[].large.url", "pic_infos.*.largest.url", "pics[].url", "images[]", "pics[]"), description="picture URLs"
    )
    page_url: tuple[str, ...] = Field(("url", "page_url", "scheme"), description="URL of the post's page")
    tags: tuple[str, ...] = Field(("tags[]", "topics[]"), description="tags in addition to the #topics# in the text")


class Microblog(FileSource):
    """Posts of a microblog as JSON lines."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "posts/*.jsonl"}]})

    fields: Fields = Field(Fields(), description="paths to the fields of a post")

    ROWS: ClassVar[str] = "posts"

    def entries_of(self, number: int, file: str, account: Account) -> Iterator[Candidate | Decision]:
        """A candidate for each picture of each post; a Decision for a post that has none. Raises SourceError."""
        lines = account["lines"]
        try:
            decoding = Decoding("UTF-8")
            with opened(file, "utf-8-sig") as (f, _):
                try:
                    for at, line in Lines(f).numbered():
                        row = f"{writable(file.rpartition('/')[2])}, row {at}"
                        lines.met += 1
                        if isinstance(line, str) and not line.strip():
                            lines.named[Named.BLANK] += 1
                            continue
                        post = line if isinstance(line, LongLine) else decoding.fault(line) or line
                        yield from self.entries(row, at, partial(self._post, post, row, at), lines)
                except faults() as e:
                    raise self.unread(file, e, f.reached) from None
            decoding.end()
        except faults() as e:
            raise self.unread(file, e) from None
        except UnicodeError as e:
            raise BrokenFile(file, f"source {self.name}: not UTF-8 ({e})") from None

    def _post(self, line: str | Exception, row: str, number: int) -> Iterator[Candidate | Decision]:
        """The candidates of a line, or Decisions that say what is wrong with it. Raises what is in place of a line."""
        if isinstance(line, Exception):
            raise line
        try:
            post = json.loads(line)
        except (ValueError, RecursionError) as e:
            yield self._broken(row, number, DropReason.BAD_ROW, f"{row}: invalid JSON ({e})")
            return
        if not isinstance(post, dict):
            yield self._broken(row, number, DropReason.BAD_ROW, f"{row}: not a JSON object")
            return
        raw = _first(post, self.fields.text)
        topics = dict.fromkeys(clean(t) for t in (*_TOPIC.findall(raw), *_all(post, self.fields.tags)))
        own = " ".join(_REPOST.sub("", raw).split())  # in a run of white space the pattern retries at each character
        words = clean(html.unescape(_NOISE.sub(" ", own)))
        texts = ([Text("content", words)] if words else []) + [Text("tag", topic) for topic in topics if topic]
        images = _all(post, self.fields.images)
        if not images:
            yield self._broken(row, number, DropReason.BAD_ROW, f"{row}: no picture")
        page = _web(_first(post, self.fields.page_url))
        origin = _first(post, self.fields.id) or page or row
        for image in dict.fromkeys(images):
            try:
                bare, userinfo = split_userinfo(f"https:{image}" if image.startswith("//") else image)
                url = canonical_url(bare)
            except ValueError as e:
                yield self._broken(f"{row}, {image[:200]}", number, DropReason.BAD_URL, f"{row}: {e}", image)
                continue
            candidate = Candidate(
                self.name, self.source_kind, origin, page, url, tuple(texts), number, userinfo=userinfo
            )
            yield candidate if texts else drop(candidate, "extract", DropReason.NO_TEXT, row)

    def _broken(self, row: str, number: int, reason: DropReason, evidence: str, url: str = "") -> Decision:
        """Returns the Decision about a post, or a picture of it, that is not a candidate."""
        return drop(
            Candidate(self.name, self.source_kind, row, "", url[:2000], (), number), "extract", reason, evidence
        )


def _web(url: str) -> str:
    """Returns the canonical form of a web address; "" for anything else."""
    try:
        return canonical_url(url) if url else ""
    except ValueError:
        return ""


def _first(post: dict[str, Any], paths: tuple[str, ...]) -> str:
    return next(iter(_all(post, paths)), "")


def _all(post: dict[str, Any], paths: tuple[str, ...]) -> list[str]:
    """Strings (and numbers, as strings) at the first of several paths that leads to any."""
    for path in paths:
        values: list[Any] = [post]
        for step in path.split("."):
            name, many = step.removesuffix("[]"), step.endswith("[]")
            if name == "*":
                values = [v for value in values if isinstance(value, dict) for v in value.values()]
            else:
                values = [value[name] for value in values if isinstance(value, dict) and name in value]
            if many:
                values = [v for value in values if isinstance(value, list) for v in value]
        strings = [
            encodable(str(v))
            for v in values
            if isinstance(v, (str, int)) and not isinstance(v, bool) and str(v).strip()
        ]
        if strings:
            return strings
    return []
