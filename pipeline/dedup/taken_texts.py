"""Texts of duplicates that their leaders take over, and placeholders: pictures under too many different texts."""

from __future__ import annotations

import pyarrow as pa

from data_specs.build import Dedup
from pipeline.files.digests import DIGEST
from pipeline.records import TEXTS_TYPE

COPY_SCHEMA = pa.schema([("position", pa.int32()), ("texts", TEXTS_TYPE), ("text_ids", pa.list_(DIGEST))])
"""Texts of the copies of a leader: `position` is the leader's."""


class TakenTexts:
    """Which texts of duplicates the leaders of one run take over, and which of these leaders are placeholders.

    Everything is by the position of the leader in the run; `own` are the ids of the leaders' own texts.
    """

    def __init__(self, rules: Dedup, own: dict[int, list[bytes]]) -> None:
        self._rules, self._own = rules, own
        self._known: dict[int, set[bytes]] = {}  # ids of its own texts and of those taken
        self._primary: dict[int, set[bytes]] = {}  # ids of its primary text and of those of its copies
        self._taken: dict[int, list[tuple[int, str, str, str]]] = {}  # (position, kind, text, original)
        self.placeholders: set[int] = set()

    def add(self, rows: pa.Table) -> None:
        """Add duplicates, rows of COPY_SCHEMA in the order of their ranks."""
        for position, texts, ids in zip(*(rows[name].to_pylist() for name in COPY_SCHEMA.names), strict=True):
            if position in self.placeholders:
                continue
            own = self._own[position][: self._rules.max_texts]
            primary = self._primary.setdefault(position, {own[0]})
            primary.add(ids[0])
            if 0 < self._rules.placeholder_texts < len(primary):
                self.placeholders.add(position)
                for of_leader in (self._primary, self._known, self._taken):
                    of_leader.pop(position, None)
            elif self._rules.merge_texts:
                self._take(position, own, texts, ids)

    def _take(self, position: int, own: list[bytes], texts: list[dict[str, str]], ids: list[bytes]) -> None:
        known = self._known.setdefault(position, set(own))
        taken = self._taken.setdefault(position, [])
        for text, name in zip(texts, ids, strict=True):
            if name not in known and len(own) + len(taken) < self._rules.max_texts:
                known.add(name)
                taken.append((position, text["kind"], text["text"], text["original"] or ""))

    def texts(self) -> list[tuple[int, str, str, str]]:
        """(position, kind, text, original) in the order of the leaders."""
        return [text for position in sorted(self._taken) for text in self._taken[position]]
