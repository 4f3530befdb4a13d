"""Facets of the page, by which candidates are counted and chosen, as SQL expressions over the catalog's columns.

Facets of the decisions themselves are there at once. Those that need a join (`preparation`) come when the index is
ready. Bins of sizes are those of the report's histogram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_specs.build import SpecError
from pipeline.report.measures import MEASURES, bin_of
from pipeline.report.translations import KINDS, en, zh
from pipeline.store.build import Stages

MOST_VALUES = 200
"""Values of one facet that a request may choose, and that are shown."""

WORDS_LENGTH = 2_000
"""Characters of a search: the address of a page may be one."""

_FIXED = {
    "kept": ("kept", "保留"),
    "dropped": ("dropped", "丢弃"),
    "known": ("already known", "已在数据集中"),
    "candidate": ("pictures", "图片"),
    "capture": ("pages", "网页"),
    "new": ("new", "新增"),
    "seen": ("also in the baseline", "基线中已有"),
    "train": ("train", "训练集"),
    "dev": ("dev", "开发集"),
    "val": ("val", "验证集"),
    "": ("unknown", "未知"),
    **KINDS,
}

_CLUSTER = ((1, "1", "1"), (2, "2", "2"), (3, "3–5", "3–5"), (6, "6–20", "6–20"), (21, "21–100", "21–100"))
_MANY = (101, "more than 100", "100 以上")


@dataclass(frozen=True)
class Facet:
    """One facet. column: SQL over the catalog's columns. prepared: it needs the index. edges, labels: of a number that
    is counted in bins, the last one open; a value of the facet is then the number of its bin, "" where none is known.
    order: "count" (largest first) or "given"."""

    name: str
    column: str
    en: str
    zh: str
    prepared: bool = False
    edges: tuple[float, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    order: str = "count"

    @property
    def expression(self) -> str:
        """SQL of the facet's value, as text."""
        value = f"({bin_of(self.column, self.edges)})::VARCHAR" if self.edges else self.column
        return f"coalesce({value}, '')"

    def words(self, value: str, stages: Stages) -> tuple[str, str]:
        if self.labels and value.isdigit() and int(value) < len(self.labels):
            return self.labels[int(value)]
        if self.name == "reason" and not value:
            return "kept", "保留"
        if self.name in ("stage", "reason"):
            return en(value), zh(value, stages)
        if self.name in ("source", "build"):
            return value, value
        return _FIXED.get(value, (value, value))


def facets() -> dict[str, Facet]:
    """All facets by name, in the order of the page."""
    side, many = MEASURES["short_side"], (*_CLUSTER, _MANY)
    sides = tuple((label, label) for label in side.labels)
    clusters = tuple((en_, zh_) for _, en_, zh_ in many)
    every = [
        Facet("fate", "fate", "Outcome", "去向", order="given"),
        Facet("reason", "reason", "Reason", "原因"),
        Facet("stage", "stage", "Stage", "阶段", order="given"),
        Facet("source", "source", "Source", "来源"),
        Facet("build", "build", "Build", "构建"),
        Facet("new", "new", "Since the baseline", "与基线相比", True, order="given"),
        Facet("kind", "kind", "Kind of the primary text", "主文本类型", True),
        Facet("split", "split", "Split", "划分", True, order="given"),
        Facet("short_side", "least(width, height)", side.title, side.title_zh, True, tuple(map(float, side.edges)),
              sides, "given"),
        Facet("cluster", "cluster", "Size of the group of duplicates", "重复组大小", True,
              tuple(float(least) for least, *_ in many), clusters, "given"),
        Facet("subject", "subject", "Subject", "决定对象", order="given"),
    ]  # fmt: skip
    return {facet.name: facet for facet in every}


SORTS = {
    "": ("pos", "Build order, kept first", "按构建顺序：保留在前"),
    "random": ("hash(pos), pos", "Shuffled", "随机"),
    "large": ("width * height DESC NULLS LAST, pos", "Largest pictures first", "大图在前"),
    "small": ("width * height ASC NULLS LAST, pos", "Smallest pictures first", "小图在前"),
    "cluster": ("cluster DESC NULLS LAST, leader, pos", "Largest groups of duplicates first", "最大的重复组在前"),
}
"""Orders by name: SQL, English, Chinese. Those but "" and random need the index."""


@dataclass(frozen=True)
class Filters:
    """Selection within a place. values: chosen values of facets (any of them; all facets). words: every one must
    stand in a text or an address. leader: candidate_id, of a group of duplicates. sort: a name of SORTS."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: str = ""
    leader: str = ""
    sort: str = ""

    @staticmethod
    def parse(query: Sequence[tuple[str, str]], known: Mapping[str, Facet]) -> Filters:
        """From the pairs of a URL's query; names of no facet are for others. Raises SpecError."""
        values: dict[str, tuple[str, ...]] = {}
        single = {"q": "", "leader": "", "sort": ""}
        for name, value in query:
            if name in single:
                single[name] = value
            elif name in known:
                values[name] = tuple(dict.fromkeys((*values.get(name, ()), value)))
        words, leader, sort = single.values()
        if len(words) > WORDS_LENGTH:
            raise SpecError([f"q: at most {WORDS_LENGTH} characters"])
        if any(len(own) > MOST_VALUES or any(len(v) > 300 for v in own) for own in values.values()):
            raise SpecError([f"at most {MOST_VALUES} values of a facet"])
        if leader and not (len(leader) == 64 and set(leader) <= set("0123456789abcdef")):
            raise SpecError(["leader: not an id of a candidate (64 hex digits)"])
        if sort not in SORTS:
            raise SpecError([f"sort {sort}: one of {', '.join(filter(None, SORTS))}"])
        return Filters(values, " ".join(words.split()), leader, sort)

    def without_facet(self, name: str) -> Filters:
        """The same but for one facet: what that facet's own counts are counted over."""
        return Filters({k: v for k, v in self.values.items() if k != name}, self.words, self.leader, self.sort)
