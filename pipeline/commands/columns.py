"""Guesses the meaning of a table's columns: the image's URL, its page, an ID, and texts by kind.

A guess goes by content first and by name second: a column of web addresses is a URL whatever it is called, and only
its name and the endings of its paths tell whether it is the image's or the page's. Each guess says why, so that
a reader of the spec can judge it.

Limits: of several columns of texts without a telling name all count as captions, unless most of their cells are empty.
A column of FEW_CELLS and more, most of which have the same text, is a remark and not a caption.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_specs.shard import TextKind
from pipeline.filters.han_share import HAN
from pipeline.pictures.formats import SUFFIXES
from pipeline.sources._text_files import NoText, cell_text

MOST = 0.8
"""Share of the filled cells of a column that must be what the column is taken for."""

SOME = 0.3
"""Share of the filled cells that must hold Chinese characters in a column of texts."""

FEW_CELLS = 10
"""Filled cells below which a text may be that of most of them."""

_CELL = 2_000
"""Characters of a cell that are looked at."""

_URL = re.compile(r"(?:https?:)?//[^\s/]\S*", re.I)
_IMAGE_NAME = re.compile(r"ima?ge?|pic(?:ture)?|photo|thumb|src|图|照片", re.I)
_PAGE_NAME = re.compile(r"page|refer|source|site|web|origin|网页|页面|来源|原文", re.I)
_ID_NAME = re.compile(r"(?:^|_)(?:id|key|uuid|编号)$", re.I)
_KINDS: tuple[tuple[TextKind, str], ...] = (
    ("alt", r"(?:^|_)alt"),
    ("surrounding", r"sur(?:round|_?text)|context|上下文"),
    ("abstract", r"abstract|summary|摘要|简介"),
    ("title", r"title|headline|标题|题目|品名"),
    ("content", r"content|body|article|正文|内容"),
    ("tag", r"tag|keyword|label|标签|关键词"),
    ("caption", r"caption|desc|text|sentence|zh|cn|说明|描述|图注|文本|标注"),
)
"""Kinds of text by what the name of a column holds, the first that fits."""


@dataclass(frozen=True)
class Guess:
    """The option `columns` of a `url_table`, with one line of reasons per column.

    paths: a column of paths of pictures, which no `url_table` reads; "" if missing. remarks: those lines of `why`
    that say why a column of texts is not a caption.
    """

    columns: dict[str, Any]
    why: tuple[str, ...]
    paths: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def has_images(self) -> bool:
        return "image_url" in self.columns

    @property
    def has_texts(self) -> bool:
        return bool(self.columns.get("texts"))


@dataclass(frozen=True)
class _Column:
    name: str
    cells: tuple[str, ...]  # those that are filled, as text
    rows: int

    def share(self, pattern: re.Pattern[str]) -> float:
        """Share of the filled cells in which the pattern occurs."""
        return sum(1 for cell in self.cells if pattern.search(cell)) / max(len(self.cells), 1)

    @property
    def remark(self) -> str:
        """Reason for which the column is not one of captions; "" if it may be one."""
        text, times = Counter(self.cells).most_common(1)[0]
        if len(self.cells) >= FEW_CELLS and 2 * times > len(self.cells):
            return f"{times:,} of {len(self.cells):,} cells contain the same text, {text[:20]}"
        if 2 * len(self.cells) < self.rows and not _kind_named(self.name):
            return f"{self.rows - len(self.cells):,} of {self.rows:,} cells are empty"
        return ""

    @property
    def urls(self) -> float:
        return sum(1 for cell in self.cells if _URL.fullmatch(cell)) / max(len(self.cells), 1)

    @property
    def files(self) -> float:
        """Share of the filled cells whose path ends as a picture's does."""
        paths = (re.split(r"[?#]", cell)[0].lower() for cell in self.cells)
        return sum(1 for path in paths if path.endswith(SUFFIXES)) / max(len(self.cells), 1)


def guess_columns(rows: Sequence[Mapping[str, Any]]) -> Guess:
    """Returns a guess at the columns of these rows. One without `image_url` or `texts` found no such column."""
    columns = [_column(name, rows) for name in dict.fromkeys(name for row in rows for name in row)]
    urls = [column for column in columns if column.cells and column.urls >= MOST]
    chosen: dict[str, Any] = {}
    why: list[str] = []
    image = max(urls, key=_image_likeness, default=None)
    if image is not None:
        chosen["image_url"] = image.name
        shares = f"{image.urls:.0%} are URLs, {image.files:.0%} have the extension of a picture"
        why.append(f"column {image.name} is the image's URL: {shares}")
    page = next((c for c in urls if c is not image and (_PAGE_NAME.search(c.name) or c.files < 0.2)), None)
    if page is not None:
        chosen["page_url"] = page.name
        why.append(f"column {page.name} is the page's URL, by its name or because its URLs are not pictures")
    others = [column for column in columns if column.cells and column not in urls]
    own = next((c for c in others if _ID_NAME.search(c.name) and len(set(c.cells)) == len(rows)), None)
    if own is not None:
        chosen["id"] = own.name
        why.append(f"column {own.name} is the row's ID, by its name and because every value is unique")
    texts, remarks, reasons = _texts([column for column in others if column is not own and column.files < MOST])
    if texts:
        chosen["texts"] = texts
    used = {column.name for column in (image, page, own) if column is not None}
    used |= {name for names in texts.values() for name in ([names] if isinstance(names, str) else names)}
    left = [column.name for column in columns if column.name not in used]
    unused = [f"unused columns: {', '.join(left)}"] if left else []
    paths = next((column.name for column in others if column.files >= MOST), "")
    return Guess(chosen, (*why, *reasons, *remarks, *unused), paths, tuple(remarks))


def _column(name: str, rows: Sequence[Mapping[str, Any]]) -> _Column:
    cells = []
    for row in rows:
        with contextlib.suppress(NoText, UnicodeDecodeError):  # it holds no text
            if text := cell_text(row.get(name)):
                cells.append(text[:_CELL])
    return _Column(name, tuple(cells), len(rows))


def _image_likeness(column: _Column) -> float:
    named = (2 if _IMAGE_NAME.search(column.name) else 0) - (2 if _PAGE_NAME.search(column.name) else 0)
    return named + column.files


def _texts(columns: Sequence[_Column]) -> tuple[dict[TextKind, str | list[str]], list[str], list[str]]:
    """(kind of text -> its column or columns, why others are not captions, why) of those columns that hold texts.

    Columns with Chinese characters; only if there is none, those whose names say that they are texts.
    """
    han = [column for column in columns if column.share(HAN) >= SOME]
    chosen = han or [column for column in columns if _kind_named(column.name) and _words(column)]
    kinds: dict[TextKind, list[str]] = {}
    why: list[str] = []
    remarks = [f"column {column.name} is not a caption: {column.remark}" for column in chosen if column.remark]
    chosen = [column for column in chosen if not column.remark]
    for column in chosen:
        kind = _kind_named(column.name)
        kinds.setdefault(kind or "caption", []).append(column.name)
        lengths = sorted(map(len, column.cells))
        said = "by its name" if kind else "by default"
        about = f"{column.share(HAN):.0%} Chinese, median length {lengths[len(lengths) // 2]}"
        why.append(f"{column.name} is of kind {kind or 'caption'} {said} ({about})")
    named = {kind: names[0] if len(names) == 1 else names for kind, names in kinds.items()}
    return named, ["; ".join(remarks)] * bool(remarks), [f"texts: {'; '.join(why)}"] * bool(why)


def _kind_named(name: str) -> TextKind | None:
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name, re.I)), None)


def _words(column: _Column) -> bool:
    """True if a column holds words and not numbers or ids."""
    return column.share(re.compile(r"[^\W\d_]{2,}\W+[^\W\d_]{2,}")) >= SOME
