"""Damage to a published dataset whose digests hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.shard import Manifest, content_digest

Change = Callable[[list[dict[str, Any]]], None]


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """reseal(folder): make the manifest match the files again, so that only their content can be at fault."""
    return _reseal


@pytest.fixture
def edit() -> Callable[[Path, Change], None]:
    """edit(path, change): write a Parquet file again, after `change` was applied to its rows."""
    return _edit


def _reseal(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_bytes())
    for shard in raw["shards"]:
        for file in (shard["tar"], shard["parquet"], *shard["regions"].values()):
            data = (folder / file["path"]).read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    raw["content_digest"] = content_digest(Manifest.model_validate(raw).shards)
    (folder / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")


def _edit(path: Path, change: Change) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
