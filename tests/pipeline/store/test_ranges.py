"""Names of ranges of order keys: what is written is read back, and the ranges meet without a gap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.ranges import KeyRange


@given(st.integers(1, 300), st.data())
def test_a_name_is_read_back(of: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, of - 1))
    last = data.draw(st.integers(first, of - 1))
    run = KeyRange(first, last, of, run=True)
    assert KeyRange.of_partition(str(run)) == run
    assert [KeyRange.of_partition(str(part)) for part in run.parts()] == run.parts()
    assert (run.parts()[0].bounds[0], run.parts()[-1].bounds[1]) == run.bounds


@given(st.integers(1, 300), st.integers(0, (1 << 64) - 1))
def test_each_key_lies_in_one_range(of: int, number: int) -> None:
    key = f"{number:016x}"
    here = [part for part in KeyRange.cut(of) if part.meets(key, key)]
    assert len(here) == 1
    assert here[0].bounds[0] <= key < here[0].bounds[1]


def test_names_are_those_that_builds_have_on_disk() -> None:
    assert [str(part) for part in KeyRange.cut(2)] == ["00000-of-00002", "00001-of-00002"]
    assert str(KeyRange(3, 5, 10, run=True)) == "00003-00005-of-00010"


@pytest.mark.parametrize("name", ["all", "site-00000", "train-000000", "00001-of-", "1-of-2"])
def test_other_partitions_are_no_ranges(name: str) -> None:
    assert KeyRange.parse(name) is None
    with pytest.raises(ValueError, match="does not name a range"):
        KeyRange.of_partition(name)
