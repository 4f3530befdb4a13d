"""Where shards are cut: against the plainest way to say it, and the same whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.publish import release, verify
from pipeline.stages import STAGES, _boundaries, shard
from pipeline.store.build import Build

pytestmark = pytest.mark.slow

Run = Callable[[Build, str], None]


@dataclass(frozen=True)
class _Record:
    partition: str
    counts: dict[str, int]


def plainly(sizes: list[int], most: int, limit: int) -> list[list[int]]:
    """Row by row: a new shard where the next row would break a limit."""
    shards: list[list[int]] = []
    for row, size in enumerate(sizes):
        full = not shards or len(shards[-1]) == most
        if full or (limit and sum(sizes[i] for i in shards[-1]) + size > limit):
            shards.append([])
        shards[-1].append(row)
    return shards


@given(
    st.lists(st.lists(st.integers(1, 50), max_size=12), max_size=6), st.integers(1, 9), st.sampled_from([0, 1, 40, 90])
)
def test_cuts_are_those_of_the_plain_rule(synthetic: Any, parts: list[list[int]], most: int, limit: int) -> None:
    options = {"samples_per_shard": most, "bytes_per_shard": limit}
    build = Build(synthetic.spec(shards=options), "/nowhere", None, "b", "1", stages=STAGES)  # type: ignore[arg-type]
    records = [(_Record(str(i), {"train": len(part)}), np.array(part, np.int64)) for i, part in enumerate(parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_boundaries, "_sizes", lambda build, split: iter(records))
        cuts = list(_boundaries._cuts(build, "train"))
    starts = np.cumsum([0, *map(len, parts)])
    rows = [[int(starts[int(p)]) + i for p, low, high in cut.runs for i in range(low, high)] for cut in cuts]
    assert rows == plainly([size for part in parts for size in part], most, limit)


def test_shards_end_at_their_bytes_and_hold_what_they_held(tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    limit = 12_000
    whole, items = synthetic.make(tmp_path / "whole")
    build, _ = synthetic.make(tmp_path / "cut", shards={"samples_per_shard": 8, "bytes_per_shard": limit})
    size = {item.candidate.candidate_id: len(item.data) for item in items}
    for one in (whole, build):
        run_stage(one, "shard")
    release.publish(build)
    place = Path(build.out) / "shards"
    assert verify.verify(place) == []
    names = {split: sorted(path.stem for path in place.glob(f"{split}-*.tar")) for split in ("train", "dev", "val")}
    for split, here in names.items():
        ids = [pq.read_table(place / f"{name}.parquet")["candidate_id"].to_pylist() for name in here]
        old = sorted((Path(whole.out) / "shards").glob(f"{split}-*.parquet"))
        before = [name for path in old for name in pq.read_table(path)["candidate_id"].to_pylist()]
        assert [name for shard in ids for name in shard] == before
        sizes = [size[name] for name in before]
        assert [len(shard) for shard in ids] == [len(shard) for shard in plainly(sizes, 8, limit)]
    assert len(names["train"]) > 3


@pytest.mark.drill(2)
def test_shards_are_the_same_in_whatever_order_they_are_packed(tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    tars = []
    for name in ("a", "b"):
        build, _ = synthetic.make(tmp_path / name, shards={"samples_per_shard": 5, "bytes_per_shard": 9_000})
        run_stage(build, "shard.plan")
        partitions = shard.partitions(build)
        for partition in partitions if name == "a" else reversed(partitions):
            shard.run_partition(build, partition)
        tars.append({p.name: p.read_bytes() for p in (Path(build.out) / "shards").glob("*.tar")})
    assert tars[0] == tars[1]
    assert len(tars[0]) > 5
