"""Texts of duplicates that their leaders take over, and placeholders: pictures under too many different texts."""

from __future__ import annotations

from collections.abc import Iterable

from data_specs.build import Dedup


class MergedTexts:
    """Texts of duplicates that leaders take over, and leaders that are placeholders, by numbers of pairs and texts.

    Equal texts have one number.
    """

    def __init__(self, rules: Dedup) -> None:
        self._rules = rules
        self._known: dict[int, set[int]] = {}  # its own texts and those taken
        self._primary: dict[int, set[int]] = {}  # its primary text and those of its copies
        self._taken: dict[int, list[tuple[int, int]]] = {}
        self._own: dict[int, int] = {}
        self.placeholders: set[int] = set()

    def add(self, leader: int, own: Iterable[int], copy: int, texts: list[int]) -> None:
        """Add the next copy by rank of a leader. own: the leader's texts that count, primary first."""
        if leader in self.placeholders:
            return
        known = self._known.get(leader)
        if known is None:
            counted = list(own)
            known = self._known[leader] = set(counted)
            self._primary[leader], self._own[leader] = {counted[0]}, len(counted)
        primary = self._primary[leader]
        primary.add(texts[0])
        if 0 < self._rules.placeholder_texts < len(primary):
            self.placeholders.add(leader)
            self._taken.pop(leader, None)
        elif self._rules.merge_texts:
            taken = self._taken.setdefault(leader, [])
            for at, text in enumerate(texts):
                if text not in known and self._own[leader] + len(taken) < self._rules.max_texts:
                    known.add(text)
                    taken.append((copy, at))

    def by_leader(self) -> dict[int, list[tuple[int, int]]]:
        """Taken texts by leader: (copy, place among its texts), in the order in which they were taken."""
        return {leader: texts for leader, texts in self._taken.items() if texts}
