"""Commands on published datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_specs.shard import read_manifest
from pipeline import cli


@pytest.mark.slow
def test_the_command_writes_beside_the_build(shards_of: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(shards_of.parent), "--to", "brivl-jsonl", "--detector", "grid", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert Path(answer["out"]) == shards_of.parent / "brivl-jsonl"
    assert answer["rows"] == read_manifest(shards_of).samples
