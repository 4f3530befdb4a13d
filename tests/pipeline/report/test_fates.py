"""fates: smallest keys, groups and ids are those of all rows, however they are cut and merged."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import order_key
from pipeline.report.fates import Groups, Ids, Place, Smallest, keys_of
from pipeline.report.figures import trim


def cut(rows: Sequence[int], ends: Sequence[int]) -> list[Sequence[int]]:
    """The same rows in neighbouring parts."""
    borders = [0, *sorted(end % (len(rows) + 1) for end in ends), len(rows)]
    return [rows[start:end] for start, end in itertools.pairwise(borders)]


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 30), max_size=4), st.integers(0, 8))
def test_the_smallest_of_parts_merged_are_the_smallest_of_all_and_of_equal_ones_the_earliest(
    keys: list[int], ends: list[int], count: int
) -> None:
    expected = [Place((1, f"{at:02d}"), at, str(at), "") for _, at in sorted((key, at) for at, key in enumerate(keys))]
    parts = []
    for numbers in cut(range(len(keys)), ends):
        parts.append(Smallest(count))
        for at in numbers:
            row = pa.table({"at": [at], "id": [str(at)], "fetch_id": [""]})
            parts[-1].add(np.array([keys[at]], np.uint64), (1, f"{at:02d}"), row)
    for order in (parts, parts[::-1]):
        merged = Smallest(count)
        for part in order:
            merged.merge(part.rows())
        assert merged.places() == expected[:count]


@given(st.lists(st.text("0123456789abcdef", max_size=64), max_size=5), st.integers(-3, 2**31))
def test_keys_of_many_are_those_of_each(ids: list[str], seed: int) -> None:
    assert keys_of(ids, seed).tolist() == [int(order_key(one, seed), 16) for one in ids]


@given(st.lists(st.integers(0, 12), max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_groups_are_counted_as_by_a_counter_and_cut_as_one(leaders: list[int], ends: list[int]) -> None:
    for limit in (1_000, 4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.report.figures.COUNTER_LIMIT", limit)
            parts = []
            for own in cut(leaders, ends):
                parts.append(Groups())
                parts[-1].add(pa.chunked_array([[f"{one:02d}" for one in own]], pa.string()))
            merged = Groups()
            for part in parts:
                merged.merge(part.table())
            expected = Counter(f"{one:02d}" for one in leaders)
            if limit == 4:
                trim(expected)
                assert merged.table().num_rows <= limit
            else:
                assert merged.sizes() == Counter(count + 1 for count in expected.values())
                ranked = sorted(expected.items(), key=lambda item: (-item[1], item[0]))
                assert list(merged.largest(3).items()) == ranked[:3]
            whole = Groups()
            whole.add(pa.chunked_array([[f"{one:02d}" for one in leaders]], pa.string()))
            assert dict(zip(*whole.table().to_pydict().values(), strict=True)) == expected


def test_a_million_ids_that_are_never_shown_take_few_bytes_each() -> None:
    ids = Ids()
    tracemalloc.start()
    try:
        for part in range(10):
            ids.update(hashlib.sha256(f"{part} {n}".encode()).hexdigest() for n in range(5_000))
        assert hashlib.sha256(b"7 4999").hexdigest() in ids
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10 * 50_000, "8 bytes, and a little for what holds them"
    assert all(hashlib.sha256(f"{n % 10} {n}".encode()).hexdigest() in ids for n in range(5_000))
    assert not any(hashlib.sha256(f"{n}".encode()).hexdigest() in ids for n in range(5_000))
    ids.update(["", "f" * 64])
    assert "f" * 64 in ids
    assert "" not in ids
    assert "f" * 64 not in Ids()
    others = Ids()
    others.merge(ids.heads())
    assert hashlib.sha256(b"7 4999").hexdigest() in others
