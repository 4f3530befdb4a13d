"""microblog: posts as JSON lines, each with its pictures. The text of a post applies to all its pictures.

Options name the parts of a post by paths: `pics[].large.url` is the `url` of `large` of each entry of `pics`. If there
are several paths, the first that leads to a value counts, of pictures for each entry of a list by itself. An entry
without a URL is a Decision. The defaults fit posts as Weibo's interfaces return them.
Markup, links, "view all" marks and reposted parts (`//@name: ...`) are removed from the text; `#topics#` become tags.

Limits: one file is one part of the extract stage; a repost counts with its own words only.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from data_specs.shard import Text
from pipeline.errors import BrokenFile
from pipeline.files.damage import Hole
from pipeline.files.inputs import faults, writable
from pipeline.rows.account import Account, Named, Units
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import Candidate, encodable
from pipeline.sources import BAD_LINE, BadLines, Decoding, FileSource, with_size
from pipeline.sources._provenance import web_address
from pipeline.sources._rows import json_rows
from pipeline.sources._text_files import open_rows
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

    VERSION: ClassVar[int] = 3
    ROWS: ClassVar[str] = "posts"

    def entries_of(self, number: int, file: str, account: Account) -> Iterator[Candidate | Decision]:
        """A candidate for each picture of each post; a Decision for a post that has none. Raises SourceError."""
        lines, pictures = account["lines"], account["pictures of posts"]
        bad = BadLines()
        try:
            with open_rows(file, "utf-8-sig") as (f, _):
                try:
                    for at, post, _, _, size in json_rows(f, Decoding("UTF-8")):
                        row = f"{writable(file.rpartition('/')[2])}, row {at}"
                        lines.met += 1
                        if isinstance(post, Named):
                            lines.named[post] += 1
                            continue
                        assert not isinstance(post, Hole)  # of Parquet only
                        units, is_post = Units(), isinstance(post, dict)
                        entries = self.entries(row, at, partial(self._post, post, row, at, units), lines)
                        reasons = (DropReason.UNREADABLE,) if is_post else BAD_LINE
                        entries = with_size(entries, size, reasons)
                        bad.take(entries, "" if is_post else str(post))
                        if len(entries) == units.unaccounted:  # else one Decision is about the post
                            pictures.add(units)
                            for entry in entries:
                                pictures.take([entry])
                        yield from entries
                except faults() as e:
                    raise self.file_error(file, e, f.stored_position) from None
            bad.end(file, self.name)
        except faults() as e:
            raise self.file_error(file, e) from None
        except UnicodeError as e:
            raise BrokenFile(file, f"source {self.name}: not UTF-8 ({e})") from None

    def _post(
        self, post: dict[str, Any] | str | Exception, row: str, number: int, pictures: Units
    ) -> Iterator[Candidate | Decision]:
        """The candidates of a post, or Decisions that say what is wrong with it. Raises what is in place of one.

        pictures: gets the number of pictures, and of those that the post repeats. Each of the others has one entry.
        """
        if isinstance(post, Exception):
            raise post
        if isinstance(post, str):
            yield self._broken(row, number, DropReason.BAD_ROW, f"{row}: {post}")
            return
        raw = _first_string(post, self.fields.text)
        topics = dict.fromkeys(clean(t) for t in (*_TOPIC.findall(raw), *_strings_at(post, self.fields.tags)))
        plain = " ".join(_REPOST.sub("", raw).split())  # in a run of white space the pattern retries at each character
        words = clean(html.unescape(_NOISE.sub(" ", plain)))
        texts = ([Text("content", words)] if words else []) + [Text("tag", topic) for topic in topics if topic]
        images = _pictures(post, self.fields.images)
        if not images:
            yield self._broken(row, number, DropReason.BAD_ROW, f"{row}: no picture")
        page = web_address(_first_string(post, self.fields.page_url))
        origin = _first_string(post, self.fields.id) or page or row
        seen = set[str]()
        for at, image in enumerate(images, 1):
            pictures.met += 1
            if not image:
                what = f"picture {at} has no URL at the paths fields.images"
                yield self._broken(f"{row}, picture {at}", number, DropReason.BAD_ROW, f"{row}: {what}")
                continue
            if image in seen:
                pictures.named[Named.REPEATED] += 1
                continue
            seen.add(image)
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


def _first_string(post: dict[str, Any], paths: tuple[str, ...]) -> str:
    return next(iter(_strings_at(post, paths)), "")


def _strings_at(post: dict[str, Any], paths: tuple[str, ...]) -> list[str]:
    """Strings (and numbers, as strings) at the first of several paths that leads to any."""
    found = (list(filter(None, map(_string, _values(post, tuple(path.split(".")))))) for path in paths)
    return next(filter(None, found), [])


def _pictures(post: dict[str, Any], paths: tuple[str, ...]) -> list[str]:
    """URLs of the pictures of a post: of each entry of a list at the first path that leads to one, or ""."""
    urls = list[str]()
    for steps, ends in _lists_of(paths):
        found = [
            next((url for end in ends for url in map(_string, _values(entry, end)) if url), "")
            for entry in _values(post, steps)
        ]
        urls += found if steps else filter(None, found)
    return urls


@lru_cache(maxsize=100)
def _lists_of(paths: tuple[str, ...]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """The lists that paths lead through, each with the rest of the paths from its entries on; () is the post."""
    lists: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in paths:
        steps = tuple(path.split("."))
        end = max((at for at, step in enumerate(steps, 1) if step == "*" or step.endswith("[]")), default=0)
        lists.setdefault(steps[:end], []).append(steps[end:])
    return list(lists.items())


def _values(value: Any, steps: tuple[str, ...]) -> list[Any]:
    """The values to which steps lead from a value."""
    values = [value]
    for step in steps:
        name, is_list = step.removesuffix("[]"), step.endswith("[]")
        if name == "*":
            values = [v for value in values if isinstance(value, dict) for v in value.values()]
        else:
            values = [value[name] for value in values if isinstance(value, dict) and name in value]
        if is_list:
            values = [v for value in values if isinstance(value, list) for v in value]
    return values


def _string(value: Any) -> str:
    """A string, or a number as a string; "" for anything else, and for white space."""
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
        return ""
    return encodable(str(value))
