"""Section `gates`: the gates as publish asks them, with what is wrong."""

from __future__ import annotations

from typing import Any

from pipeline.report.gates import Gate
from pipeline.report.sections.gates import row_of

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


def test_a_row_says_what_is_wrong() -> None:
    row = row_of(Gate("min_samples", "3", "≥ 5", ("3 samples were kept, the spec requires 5",)))
    assert row == {
        "name": "min_samples",
        "found": "3",
        "wanted": "≥ 5",
        "holds": False,
        "faults": ["3 samples were kept, the spec requires 5"],
    }
    assert row_of(Gate("min_samples", "5", "≥ 5"))["faults"] == []


def test_min_samples_counts_the_dataset(grown: Weeks) -> None:
    for (_, report), samples in zip(grown, ("12", "15"), strict=True):
        assert {gate["name"]: gate["found"] for gate in report["gates"]}["min_samples"] == samples
