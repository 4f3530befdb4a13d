"""Splits of kept pairs: what of a dataset is for training, for tuning (dev) and for reporting (val).

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

Limits: builds from before the option note no splits of clusters. Of these a cluster counts as in the split of the first
pair that has its primary text of it, else as in train; what straddles there stays as it is. Clusters of other datasets
(`dedup.across`) have no split here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import SPLITS
from pipeline.dedup import earlier_builds
from pipeline.features import feature_id
from pipeline.files.digests import digests_of, rows_of
from pipeline.matching.holders import NONE, Holders, images_of
from pipeline.records import split_of
from pipeline.store.build import Build
from pipeline.store.identities import Identities

LEFT_OUT = bytes(32)
"""Stands for the leader of a text that its pair must not have."""

TEXTS_LEFT_OUT = "texts_left_out"
OTHER_SPLIT = "other_split"
COUNTS = (TEXTS_LEFT_OUT, OTHER_SPLIT, *(f"moved_{a}_to_{b}" for a in SPLITS for b in SPLITS if a != b))
"""What `shards.apart: texts` counts in the record of `lead`."""


@dataclass(frozen=True)
class Placed:
    """Kept pairs [N] with their splits; the leaders of each one's texts, LEFT_OUT for some; the rows to be dropped.

    text_leaders: None where texts are not held apart, and all stay.
    """

    splits: list[str]
    text_leaders: list[list[bytes]] | None
    dropped: list[int]

    def split_of_texts(self) -> dict[bytes, str]:
        """The split of each cluster that a pair here has a text of, as far as it is the pair's."""
        placed = zip(self.splits, self.text_leaders or (), strict=self.text_leaders is not None)
        return {leader: split for split, leaders in placed for leader in leaders if leader != LEFT_OUT}


def own_splits(spec: BuildSpec, sha256: Sequence[bytes]) -> list[str]:
    """The splits of images by their own bytes."""
    shares = spec.shards.dev_share, spec.shards.val_share
    return [split_of(name.hex(), spec.seed, *shares) for name in sha256]


class Splits:
    """Places kept pairs block by block. `memory`: the holders of the leader pass. Use as a context manager."""

    def __init__(self, build: Build, memory: Holders, holders: int) -> None:
        self._build, self._memory = build, memory
        self.texts_apart = build.spec.shards.apart == "texts"
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0) if self.texts_apart else {})
        self._leaders = Holders(build.spec.dedup, holders) if build.made_from else None

    def __enter__(self) -> Splits:
        if self._leaders is not None:
            # leaders of the last generation, of which each has its split's number for a place
            names = [own.identities for own in self._build.made_from]
            earlier_builds.learn_splits(self._leaders, Identities(self._build.store), names, feature_id())
        return self

    def __exit__(self, *error: object) -> None:
        if self._leaders is not None:
            self._leaders.__exit__(*error)

    def of(
        self, kept: pa.Table, leaders_of: Callable[[], list[list[bytes]]], known: Sequence[str] | None = None
    ) -> Placed:
        """Place some kept pairs, rows of RUN_SCHEMA [N], whose texts the pass has entered into its memory.

        leaders_of: returns the leaders of each one's texts. known: splits by their own bytes, where they are known.
        """
        own, inherited = self._by_image(kept, known)
        if not self.texts_apart:
            return Placed([other or split for split, other in zip(own, inherited, strict=True)], None, [])
        text_leaders = leaders_of()
        asked = list(dict.fromkeys(leader for leaders in text_leaders for leader in leaders))
        placed_in = dict(zip(asked, self._memory.text_splits(asked), strict=True))
        before = {leader for leader, split in placed_in.items() if split}
        splits, remaining, dropped = list[str](), list[list[bytes]](), list[int]()
        for row, (split, other, leaders) in enumerate(zip(own, inherited, text_leaders, strict=True)):
            placed = other or next((placed_in[leader] for leader in leaders if placed_in[leader]), "") or split
            here = [leader if placed_in[leader] in ("", placed) else LEFT_OUT for leader in leaders]
            placed_in.update({leader: placed for leader in here if leader != LEFT_OUT})
            splits.append(placed)
            remaining.append(here)
            self._count(split if not other else placed, placed, here)
            if leaders and here.count(LEFT_OUT) == len(here):
                dropped.append(row)
        self._memory.place_texts({n: split for n, split in placed_in.items() if split and n not in before})
        self.counts[OTHER_SPLIT] += len(dropped)
        return Placed(splits, remaining, dropped)

    def admits(self, leaders: Sequence[bytes], splits: Sequence[str]) -> list[bool]:
        """Which texts of duplicates, by their leaders, pairs of these splits may take over."""
        if not self.texts_apart:
            return [True] * len(leaders)
        taken = [own == split for own, split in zip(self._memory.text_splits(leaders), splits, strict=True)]
        self.counts[TEXTS_LEFT_OUT] += taken.count(False)
        return taken

    def _by_image(self, kept: pa.Table, known: Sequence[str] | None) -> tuple[Sequence[str], Sequence[str]]:
        """For each pair the split by its own bytes, and the one it inherits, "" for none."""
        own = known if known is not None else own_splits(self._build.spec, rows_of(digests_of(kept["sha256"])))
        if self._leaders is None or not own:
            return own, [""] * len(own)
        images = images_of(kept)
        same, alike = self._leaders.same(images.sha256), self._leaders.alike(images)
        first = np.where(same.number != NONE, same.place, np.where(alike.number != NONE, alike.place, -1))
        return own, [SPLITS[number] if number >= 0 else "" for number in first.tolist()]

    def _count(self, hashed: str, placed: str, leaders: Sequence[bytes]) -> None:
        self.counts[TEXTS_LEFT_OUT] += leaders.count(LEFT_OUT)
        if hashed != placed:
            self.counts[f"moved_{hashed}_to_{placed}"] += 1
