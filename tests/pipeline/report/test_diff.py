"""Diff: what differs between two published datasets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_specs.shard import ContractError
from pipeline.report.diff import changes, diff
from pipeline.store.build import Build

Run = Callable[[Build, str], None]


@pytest.mark.slow
def test_diff_of_a_build_with_itself_is_empty_and_of_another_packing_says_so(two: list[Build]) -> None:
    same = diff(two[0].out, two[0].out)
    assert same["same"]
    assert same["added"]["count"] == same["removed"]["count"] == len(same["spec"]) == 0
    other = diff(two[0].out, two[1].out)
    assert not other["same"]
    assert (other["added"]["count"], other["removed"]["count"]) == (0, 0)
    assert {aspect: keys["count"] for aspect, keys in other["changed"].items()} == {"image": 0, "texts": 0, "split": 0}
    assert other["spec"] == [{"path": "shards.samples_per_shard", "before": 8, "now": 20}]
    assert other["shards"]["removed"] == ["train-000001.tar", "train-000002.tar"]
    with pytest.raises(ContractError, match="a build without a manifest is not a dataset"):
        diff(two[0].out, two[0].store.url)


@pytest.mark.drill(2)
def test_diff_names_what_a_takedown_removed(two: list[Build], synthetic: Any) -> None:
    from pipeline.takedown.forget import Request, forget

    item = next(i for i in synthetic.items() if i.stage == "shard" and i.candidate.page_url)
    copy = Path(two[0].out).with_name("copy")
    shutil.copytree(two[0].out, copy)
    forget(two[0].store, [two[0]], Request(urls=[item.candidate.image_url]))
    changes = diff(str(copy), two[0].out)
    assert changes["removed"] == {"count": 1, "keys": [item.candidate.candidate_id[:32]]}
    assert changes["b"]["revision"] == 1
    assert {row["name"] for row in changes["reasons"]} >= {"forgotten", "kept"}


def test_changes_of_nested_values() -> None:
    a, b = (
        {"base": "x", "f": [{"n": 1}, {"n": 2}], "s": {"k": 1}},
        {"base": "y", "f": [{"n": 1}, {"n": 3}], "s": {"k": 1}},
    )
    assert changes(a, b) == [{"path": "f[1].n", "before": 2, "now": 3}]
    assert changes({"l": [1]}, {"l": [1, 2]}) == [{"path": "l", "before": [1], "now": [1, 2]}]
