"""Account of a source's raw input: what it met in units of its own, and what became of each unit.

A unit is a file of a folder, a line of a table, a member of a tar, a record of a WARC file, an image of a page. It is
accounted for by a candidate, by a decision, or by a name that says what it is instead (a header line, a hidden file).
What is left over is unaccounted: the input has something of which the build says nothing, and a gate holds it
(`publish.max_unaccounted`).

Each part of a source keeps an account of its own, which is committed in its record; the sum over a source's parts is
small, whatever the input.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.rows.decisions import Decision
from pipeline.rows.records import Candidate

ACCOUNT = "account"
"""In the `info` of extract's records: the account of the part, as JSON."""

EXAMPLES = 3
"""Places of unaccounted units that an account keeps."""

MOST_NAMED = 4
"""Names of other units that people are shown."""


class Named(enum.StrEnum):
    """Units that are neither candidates nor decisions, by what they are, in English and Chinese. A source may use other
    names too."""

    zh: str

    def __new__(cls, name: str, zh: str) -> Named:
        own = str.__new__(cls, name)
        own._value_, own.zh = name, zh
        return own

    HIDDEN = "hidden files", "隐藏文件"
    BESIDE = "texts of pictures", "图片的文本"
    ALONE = "texts without a picture", "没有图片的文本"
    DOCUMENT = "documents", "文档"
    TABLE = "tables", "表格"
    HEADER = "header lines", "表头行"
    BLANK = "blank lines", "空行"
    LINK = "folders and links", "目录与链接"
    MEMBER = "other members of samples", "样本的其他成员"
    METADATA = "metadata of tars", "元数据"
    OTHER_RECORD = "requests and metadata", "请求与元数据"
    CONVERSION = "conversions of other records", "其他记录的转换"
    OFF_WEB = "records of no web address", "非网页地址的记录"
    PICTURE = "pictures in WARC files", "WARC 中的图片"
    REVISIT = "repeated records", "重复记录"
    REPEATED = "repeated pictures", "重复图片"
    WITHOUT_PICTURE = "pages without pictures", "没有图片的页面"
    FALLBACK = "copies for readers without scripts", "noscript 中的副本"
    UNSHOWN = "images that are never shown", "从不显示的图像"
    OUTSIDE = "images outside the article", "正文之外的图像"
    BACKGROUND = "backgrounds of elements", "元素的背景图"
    EMBEDDED = "pictures of other elements than img", "img 以外元素的图像"
    OTHER_PAGE = "pages not chosen", "未选取的页面"


@dataclass
class Units:
    """Counts of one unit, and of what became of it.

    met: all of it. candidates, decisions: units of which one was made. named: others by what they are.
    examples: places of unaccounted units, never their content, which a takedown would have to find.
    """

    met: int = 0
    candidates: int = 0
    decisions: int = 0
    named: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def unaccounted(self) -> int:
        """Units that neither a candidate nor a decision nor a name accounts for."""
        return self.met - self.candidates - self.decisions - self.named.total()

    @property
    def share(self) -> float:
        """Unaccounted share of all units, 0 to 1."""
        return self.unaccounted / self.met if self.met else 0.0

    def others(self) -> str:
        """The most frequent names with their counts, for people; "" for none."""
        return ", ".join(f"{count:,} {what}" for what, count in self.named.most_common(MOST_NAMED))

    def missed(self, unit: str) -> str:
        """`5 of 4,000 lines are neither candidates nor decisions, for example ...`; "" if all are accounted for."""
        if not self.unaccounted:
            return ""
        examples = f", for example {', '.join(self.examples)}" if self.examples else ""
        return f"{self.unaccounted:,} of {self.met:,} {unit} are neither candidates nor decisions{examples}"

    def take(self, entries: Sequence[Candidate | Decision], count: int = 1, where: str = "") -> None:
        """Account for units by what was made of them; without any entry they stay unaccounted.

        where: the place of the units, for people.
        """
        for entry in entries:
            if isinstance(entry, Candidate):
                self.candidates += count
                return
        if entries:
            self.decisions += count
        else:
            self.miss(where)

    def miss(self, where: str) -> None:
        """Note the place of a unit that nothing accounts for."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(where[:200])

    def add(self, other: Units) -> None:
        """Add what another part met."""
        self.met += other.met
        self.candidates += other.candidates
        self.decisions += other.decisions
        self.named.update(other.named)
        self.examples = (self.examples + other.examples)[:EXAMPLES]


class Account:
    """Account of one part of a source, by unit, in the order in which the units were first asked for."""

    def __init__(self, units: Mapping[str, Units] | None = None) -> None:
        self._units = dict(units or {})

    def __getitem__(self, unit: str) -> Units:
        return self._units.setdefault(unit, Units())

    def __iter__(self) -> Iterator[tuple[str, Units]]:
        """(unit, what was met of it), without units of which nothing was."""
        return ((unit, units) for unit, units in self._units.items() if units.met)

    @property
    def unaccounted(self) -> int:
        """Unaccounted units of every kind."""
        return sum(units.unaccounted for _, units in self)

    def add(self, other: Account) -> None:
        """Add what another part met."""
        for unit, units in other:
            self[unit].add(units)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, for a record."""
        return {
            unit: {**vars(units), "named": dict(units.named.most_common()), "unaccounted": units.unaccounted}
            for unit, units in self
        }

    @staticmethod
    def of_json(values: Mapping[str, Mapping[str, Any]]) -> Account:
        units = Account()
        for unit, own in values.items():
            counts = {name: own[name] for name in ("met", "candidates", "decisions")}
            units[unit].add(Units(**counts, named=Counter(own["named"]), examples=own["examples"]))
        return units
