"""The pass over texts that were removed from candidates that stayed: counts, with examples of what `admit` removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import REMOVED
from pipeline.store.build import Build
from pipeline.store.partitions import Record

Group = tuple[str, str, str]
"""Stage, kind of text, reason."""

EXAMPLES = 3
"""Examples of a group."""


class RemovedTexts:
    """counts: removed texts by group. examples: evidence of the first ones of a group, by the text."""

    def __init__(self) -> None:
        self.counts: Counter[Group] = Counter()
        self.examples: dict[Group, dict[str, str]] = {}

    def add(self, build: Build, record: Record) -> None:
        if record.stage not in ("extract", "admit") or "parquet" not in record.files:
            return
        lists = build.stage(record.stage).table(record, columns=[REMOVED])[REMOVED]
        texts = pc.list_flatten(lists)
        kinds, reasons = (pc.struct_field(texts, name).to_pylist() for name in ("kind", "reason"))
        groups = [(record.stage, kind, reason) for kind, reason in zip(kinds, reasons, strict=True)]
        self._merge(Counter(groups), {})
        if record.stage == "admit":  # in those of extract nothing was masked yet
            self._show(texts, groups)

    def _show(self, texts: pa.ChunkedArray, groups: list[Group]) -> None:
        """Look for examples of groups that have too few. groups [N]: of each text."""
        short = {group for group in set(groups) if len(self.examples[group]) < EXAMPLES}
        for at, group in enumerate(groups):
            if group in short and len(self.examples[group]) < EXAMPLES:
                text = texts[at].as_py()
                self.examples[group].setdefault(text["text"][:60], text["evidence"])

    def _merge(self, counts: Mapping[Group, int], examples: dict[Group, dict[str, str]]) -> None:
        for group, count in counts.items():
            self.counts[group] += count
            shown = self.examples.setdefault(group, {})
            for text, evidence in examples.get(group, {}).items():
                if len(shown) < EXAMPLES:
                    shown.setdefault(text, evidence)

    def state(self) -> dict[str, Any]:
        rows = [[*group, count, self.examples[group]] for group, count in self.counts.items()]
        return {"removed": rows}

    def merge(self, state: dict[str, Any]) -> None:
        for stage, kind, reason, count, examples in state["removed"]:
            group = stage, kind, reason
            self._merge({group: count}, {group: examples})
