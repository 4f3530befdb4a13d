"""Splits of kept pairs: for training (train), tuning (dev) and reporting (val).

The split of a pair is a keyed hash of its image's bytes, so image clusters never straddle two splits: of each one pair
is kept. In a build that begins a generation it is inherited: from the first leader of the last generation that has the
same bytes or looks alike, whether or not that is kept again. So the split of a group of copies stays where it was
although another of them leads it now.

With `shards.apart: texts` text clusters do not straddle either. A cluster is in the split of the first kept pair with a
text of it, in the order of ranks, earlier builds first; their splits are kept in STORE. A pair goes where the first of
its texts' clusters is that has a split, and by its own hash if none has. Then:

- its texts of clusters in other splits are left out of it; a pair with no text left is dropped (`other_split`), which
  takes an inherited split, or copies that were in two splits when the option was set;
- it takes over only texts of duplicates whose clusters have its split already: what was merged decides nothing, so
  increments and one build over everything agree.

Limits: clusters of other datasets (`dedup.across`) do not have a split here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_specs.shard import SPLITS

TEXTS_LEFT_OUT = "texts_left_out"
OTHER_SPLIT = "other_split"
COUNTS = (TEXTS_LEFT_OUT, OTHER_SPLIT, *(f"moved_{a}_to_{b}" for a in SPLITS for b in SPLITS if a != b))
"""Counts of `shards.apart: texts` in the record of `leaders`."""


class TextSplits:
    """Splits of text clusters, by the nodes that lead them, in a build with `shards.apart: texts`."""

    def __init__(self, earlier: dict[int, str]) -> None:
        """earlier: those of clusters that earlier builds began."""
        self._split_of = dict(earlier)
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))

    def assign(self, hashed: str, inherited: str, leaders: Sequence[int]) -> tuple[str, list[bool]]:
        """Returns the split of the next kept pair by rank, and which of its texts it may have.

        hashed: the split by its image's bytes. inherited: "" for none. leaders: nodes of its texts' clusters.
        """
        own = (self._split_of[leader] for leader in leaders if self._split_of.get(leader))
        placed = inherited or next(own, "") or hashed
        stay = [self._split_of.get(leader, "") in ("", placed) for leader in leaders]
        self._split_of.update((leader, placed) for leader, stays in zip(leaders, stay, strict=True) if stays)
        self.counts[TEXTS_LEFT_OUT] += stay.count(False)
        if not inherited and placed != hashed:
            self.counts[f"moved_{hashed}_to_{placed}"] += 1
        if leaders and not any(stay):
            self.counts[OTHER_SPLIT] += 1
        return placed, stay

    def admits(self, leader: int, split: str) -> bool:
        """Returns whether a pair of a split may take over a text of a cluster."""
        admitted = self._split_of.get(leader) == split
        self.counts[TEXTS_LEFT_OUT] += not admitted
        return admitted
