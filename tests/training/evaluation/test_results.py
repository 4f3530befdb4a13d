"""Lines for people about a task's result."""

from __future__ import annotations

from typing import Any

import pytest

from data_specs.shard import FEWEST_MEASURED as FEW
from training.evaluation.results import first_lines


@pytest.mark.parametrize("count", [FEW - 1, FEW])
def test_a_headline_that_rests_on_few_queries_is_said_with_a_warning(count: int) -> None:
    result: dict[str, Any] = {"protocol": {"line": "demo"}, "headline": "unseen", "in_train": {"either": 3}}
    lines = first_lines({**result, "samples": 90, "seen": {"samples": 3}, "unseen": {"samples": count}})
    few = [f"warning: the unseen figure is based on {count} queries; at least {FEW} are needed"]
    assert lines == ["demo", *(few if count < FEW else [])]
