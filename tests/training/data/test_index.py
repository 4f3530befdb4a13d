"""Datasets: which manifests and detectors are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_specs.shard import ContractError
from training.data.index import open_dataset

MakeShards = Callable[..., Path]


def test_a_newer_manifest_is_refused_with_the_way_out(make_shards: MakeShards) -> None:
    manifest = make_shards()
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(ContractError, match=r"manifest.json: schema version 2 is newer .* pip install -U wenlan"):
        open_dataset([str(manifest)], "train")


def test_no_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"manifest.json: cannot be read"):
        open_dataset([str(tmp_path)], "train")


def test_an_unknown_detector_is_named_with_those_there(make_shards: MakeShards) -> None:
    manifest = make_shards(detector="yolo")
    with pytest.raises(ContractError, match="no regions of detector 'rcnn'; it has: yolo"):
        open_dataset([str(manifest)], "train", detector="rcnn")
