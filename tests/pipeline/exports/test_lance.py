"""lance, read by pylance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_specs.shard import SPLITS


@pytest.mark.slow
def test_lance_reads_and_filters(exported: Callable[..., Path], rows: dict[str, Any]) -> None:
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    out = exported("lance")
    for split in SPLITS:
        table = lance.dataset(str(out / f"{split}.lance")).to_table(
            columns=["key", "text", "boxes"], filter="width > 200"
        )
        wanted = {k: r["texts"][0]["text"] for k, r in rows.items() if r["split"] == split and r["width"] > 200}
        assert dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)) == wanted
