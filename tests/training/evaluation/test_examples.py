"""Examples of an evaluation: which queries are shown, and how large their pictures are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.evaluation import examples as examples_module
from training.evaluation.benchmarks import BenchmarkPicture


def test_queries_are_drawn_from_hits_and_misses_alike_and_bounded() -> None:
    rank = np.array([1, 2, 0, 1, 7] * 40)
    chosen = examples_module.choose_examples(rank)
    assert chosen == examples_module.choose_examples(rank)
    assert [int(rank[i] > 1) for i in chosen] == [0] * examples_module.HITS + [1] * examples_module.MISSES
    assert chosen[: examples_module.HITS] != np.flatnonzero(rank == 1)[: examples_module.HITS].tolist()
    asks = np.arange(200) >= 190
    assert set(examples_module.choose_examples(rank, asks)) == {i for i in range(190, 200) if rank[i]}


def test_thumbnails_are_small_and_stop_at_their_number(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    files = sorted((folder / "train").rglob("*.jpg"))[:9]
    pictures = [BenchmarkPicture(str(n), file) for n, file in enumerate(files)] + [BenchmarkPicture("bad", b"none")]
    monkeypatch.setattr(examples_module, "PICTURES", 4)
    found = examples_module.thumbnails(pictures, ["bad", "3", "5", "3", "8", "1"])
    assert set(found) == {"3", "5", "8"}, "four are tried, one of them is none"
    assert all(len(uri) < 20_000 for uri in found.values())
