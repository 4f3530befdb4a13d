"""A published dataset is opened by its build's folder or by its shard folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.shard import ContractError, read_manifest
from pipeline.store.dataset import Dataset


@pytest.mark.slow
def test_both_folders_open_the_same_dataset(shards_of: Path) -> None:
    by_shards, by_build = Dataset.open(shards_of), Dataset.open(shards_of.parent)
    assert by_shards.manifest == by_build.manifest == read_manifest(shards_of)
    assert by_shards.shards.url == by_build.shards.url == str(shards_of)
    assert by_shards.build is None
    assert by_build.build is not None
    assert by_build.build.url == str(shards_of.parent)


def test_a_build_that_is_not_published_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=f"^{tmp_path}/manifest.json: .*not a dataset"):
        Dataset.open(tmp_path)
    (tmp_path / "build.json").write_text("{}")
    with pytest.raises(ContractError, match=f"^{tmp_path}/shards/manifest.json: .*not a dataset"):
        Dataset.open(tmp_path)
