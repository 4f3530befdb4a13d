"""Section `balance`: counts before and after are those of the texts themselves, and the page says them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.report.sections.balance import balance
from pipeline.store.build import Build
from tests import curated
from tests.drawn import blobs, encoded

STAGES = ("measure", "filter", "dedup", "curate")
TEXTS = [f"故宫{'雪景' if i < 3 else '的一角'}，第{i}幅" for i in range(30)] + ["黄山的云", "海边的人"]


@pytest.mark.slow
def test_it_says_what_was_frequent_and_what_is_left_of_it(
    fetched_build: Callable[..., Build], got: Any, run_stage: Any, material: Any, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("故宫\n雪景\n黄山\n泰山\n", encoding="utf-8")
    images = [got(f"i{i}", encoded(Image.fromarray(blobs(i, (320, 240)))), text) for i, text in enumerate(TEXTS)]
    build = fetched_build(images, parts=2, balance={"entries": "words.txt", "threshold": 6}, base=str(tmp_path))
    run_stage(build, *STAGES)
    kept = [row["texts"][0]["text"] for row in curated.kept(build)]
    palace = sum("故宫" in text for text in kept)
    said = balance(build, material(build).tables)
    assert said is not None
    assert said["frequent"] == [{"entry": "故宫", "before": 30, "after": palace}]
    assert (said["entries"], said["matched_entries"], said["tail_entries"], said["more"]) == (4, 3, 2, 0)
    assert (said["pairs"], said["matched"], said["kept"]) == (32, 31, len(kept))
    assert said["head_share"] == [pytest.approx(30 / 34, abs=1e-4), pytest.approx(palace / (palace + 4), abs=1e-4)]
