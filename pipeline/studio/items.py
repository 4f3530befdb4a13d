"""One candidate in words, in English and Chinese: its fate, every reason with its evidence, leader, regions, history.

Evidence is what the stages wrote when they decided; `explain` of the command line shows the same. What may not be shown
(`pipeline.studio.images.withheld`) is left out here, so that no page can show it.
"""

from __future__ import annotations

from typing import Any

from data_specs.command.printable import printable
from data_specs.shard import KEY_LENGTH
from pipeline.report import earlier_samples
from pipeline.report.explain import trace
from pipeline.report.translations import KINDS, en, evidence_zh, zh
from pipeline.store.build import Build, Stages
from pipeline.store.subjects import subject_of
from pipeline.store.takedowns import Takedowns
from pipeline.studio.catalog import Catalog
from pipeline.studio.images import NoPicture, Pictures, Row, withheld_reason
from pipeline.urls import host_names, shown

FOUND = 60
"""Candidates that are answered of one address: a page may hold hundreds."""

TEXT = 2_000
"""Characters of a text that are shown."""

Values = dict[str, Any]


class Items:
    """Candidates as the page shows them."""

    def __init__(self, catalog: Catalog, pictures: Pictures, takedowns: Takedowns, stages: Stages) -> None:
        self._catalog, self._pictures, self._takedowns, self._stages = catalog, pictures, takedowns, stages

    def briefs(self, positions: list[int]) -> list[Values]:
        return [self.brief(row) for row in self._catalog.rows(positions)]

    def brief(self, row: Row) -> Values:
        """A row: fate and reasons in words, addresses and text unless they are withheld."""
        hidden = withheld_reason(row, self._takedowns)
        reasons = row["reasons"] or ([row["reason"]] if row["reason"] else [])
        fate = "kept" if row["kept"] else "known" if row["reason"] == "known" else "dropped"
        evidence = "" if hidden else printable(row["evidence"])
        return {
            "pos": row["pos"],
            "id": row["id"],
            "key": row["id"][:KEY_LENGTH],
            "subject": row["subject"],
            "build": row["build"],
            "source": row["source"],
            "stage": self._reason_words(row["stage"]),
            "fate": fate,
            "reasons": [self._reason_words(name) for name in reasons],
            "evidence": {"en": evidence, "zh": evidence_zh(evidence)},
            "duplicate_of": row["duplicate_of"],
            "pictured": self._pictures.may_have(row),
            "withheld": None if hidden is None else {"en": hidden[0], "zh": hidden[1]},
            "text": "" if hidden else printable(row["text"]),
            "url": "" if hidden else shown(row["url"]),
            "page_url": "" if hidden else shown(row["page_url"]),
        }

    def _reason_words(self, name: str) -> Values:
        return {"name": name, "en": en(name), "zh": zh(name, self._stages)}

    def detail(self, row: Row) -> Values:
        """Returns the third pane's first content: the row, its picture with regions, and its leader."""
        return {**self.brief(row), "picture": self._picture(row), "leader": self._leader(row)}

    def _picture(self, row: Row) -> Values:
        """Sides and regions of the picture; or why there is none."""
        try:
            thumb = self._pictures.thumb(row, 960)
        except NoPicture as e:
            return {"why": {"en": e.en, "zh": e.zh}}
        sides = {"width": thumb.width, "height": thumb.height, "sha256": thumb.sha256}
        return {**sides, "regions": self._pictures.stored_boxes(row)}

    def _leader(self, row: Row) -> Values | None:
        """Returns the leader of a candidate: a row of this place, or a sample that an earlier build holds."""
        leader = row["duplicate_of"]
        if not leader or leader == row["id"]:
            return None
        place = self._catalog.positions_of([leader]).get(leader)
        if place is not None:
            own = self._catalog.rows([place])
            if own and own[0]["kept"]:
                return {**self.brief(own[0]), "held": None}
        build = self._catalog.source(row["pos"]).build
        holder = None if build is None else earlier_samples.holders(build, {leader}).get(leader)
        if holder is None:
            return {"id": leader, "held": None, "pos": place, "unknown": True}
        held = {"build": holder.build_id, "dataset": holder.dataset, "key": holder.key, "release": holder.release}
        for sample, _ in earlier_samples.samples({leader: holder}):
            return {**self.brief({**sample, "build": holder.build_id, "pos": row["pos"]}), "pos": None, "held": held}
        return {"id": leader, "held": held, "pos": None, "unknown": True}

    def history(self, row: Row) -> Values:
        """All texts of a candidate, those that were taken off it with the reason, and what each stage noted."""
        build = self._catalog.source(row["pos"]).build
        if build is None or not row["fetch_id"] or withheld_reason(row, self._takedowns):
            return {"texts": [], "removed": [], "stages": []}
        texts: list[Values] = []
        removed: list[Values] = []
        stages, known = [], dict[str, Any]()
        for stage, seen in trace(build, row["id"], row["fetch_id"]):
            if seen.get("texts"):
                texts = seen["texts"]
            removed += seen.get("removed") or []
            new = {k: _plain(v) for k, v in seen.items() if k not in _NO_FIGURES and known.get(k) != v}
            known |= seen
            stages.append({**self._reason_words(stage), "new": new})
        return {
            "texts": [_text(text) for text in texts],
            "removed": [self._removed(t) for t in removed],
            "stages": stages,
        }

    def _removed(self, text: Values) -> Values:
        evidence = printable(text.get("evidence") or "")
        return {
            **_text(text),
            "reason": self._reason_words(text["reason"]),
            "evidence": {"en": evidence, "zh": evidence_zh(evidence)},
        }

    def rows_or_reasons(self, named: str, builds: tuple[Build, ...]) -> Values:
        """Returns the rows of an address, a key or a file; without rows, the decisions that explain its absence.

        Raises SpecError for a name that matches nothing.
        """
        subject = subject_of(named, builds)
        places = self._catalog.find(sorted(subject.urls), sorted(subject.fetch_ids), subject.prefix, FOUND + 1)
        answer: Values = {"tried": subject.tried, "rows": self.briefs(places[:FOUND]), "more": len(places) > FOUND}
        if not places:
            answer["nothing"] = self._unknown_reason(named.strip(), sorted(subject.urls))
        return answer

    def _unknown_reason(self, named: str, urls: list[str]) -> Values:
        """Why an address may be unknown here."""
        if any(self._takedowns.takedown_reason(url, url) for url in urls):
            return {"en": "It was taken down; later builds refuse it.", "zh": "已下架，不会再次进入数据集。"}
        hosts = [name for url in urls if url.startswith("http") for name in host_names(url)[:1]]
        if not hosts:
            return {
                "en": "No picture, page or candidate has this name.",
                "zh": "没有以此命名的图片、网页或候选。",
            }
        sql = "SELECT count(*) FROM decisions WHERE contains(url, ?) OR contains(page_url, ?)"
        count = self._catalog.query(sql, [f"//{hosts[0]}", f"//{hosts[0]}"])[0][0]
        if not count:
            return {"en": f"Nothing was found on {hosts[0]}: no source of the spec covers it, or no page links to it.",
                    "zh": f"没有遇到 {hosts[0]} 的内容：规格中的来源未指向该网站，或没有页面链接到它。"}  # fmt: skip
        return {"en": f"This address was not met, although {count:,} candidates or pages of {hosts[0]} were. No page "
                      "that was read shows a picture with this address: it may be loaded by a script, be new, or be "
                      "spelled otherwise.",
                "zh": f"没有遇到此地址，但遇到了 {hosts[0]} 的 {count:,} 个候选或网页。读取过的网页中没有此地址的图片："
                      "可能由脚本加载、较新，或写法不同。"}  # fmt: skip


_NO_FIGURES = {"texts", "removed", "partition", "signature", "phash", "text_leaders"}


def _text(text: Values) -> Values:
    kind = text["kind"]
    words = KINDS.get(kind, (kind, kind))
    return {"kind": {"name": kind, "en": words[0], "zh": words[1]}, "text": printable(text["text"][:TEXT]),
            "original": printable((text.get("original") or "")[:TEXT])}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    return (
        printable(shown(value))
        if isinstance(value, str)
        else value
        if isinstance(value, (int, bool))
        else str(value)[:200]
    )
