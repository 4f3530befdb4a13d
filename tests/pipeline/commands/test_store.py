"""Commands on STORE where no build is needed: what they refuse, and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["forget", "--url", "http://a.test/1.jpg", "--distance", "17"], "--distance 17: 0 to 16 bits of 64"),
        (["gc", "--keep", "-1"], "--keep -1: a number of builds, 0 for all of them"),
        (["regions", "prune"], "regions prune: say which: --detector ID, or --before DATE"),
        (["regions", "prune", "--before", "May"], "--before May: is no date such as 2026-01-31"),
    ],
)
def test_bad_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert cli.main([*words, "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"wenlan-data: {said}"]


def test_a_takedown_without_builds_is_kept_for_future_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["forget", "--store", str(tmp_path / "store"), "--url", "http://a.test/1.jpg"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().err.splitlines() == ["no builds found"]
    assert list(tmp_path.rglob("forgotten/*.json")) == []
    assert cli.main(command) == 0
    said = "no builds found; matching content will be rejected in future builds"
    assert capsys.readouterr().err.splitlines() == [said]
    assert len(list(tmp_path.rglob("forgotten/*.json"))) == 1


def test_an_empty_store_has_nothing_to_free_and_no_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gc", "--store", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["deleted"] == []
    assert printed.err == "0 bytes freed\n"
    assert cli.main(["regions", "stats", "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"detectors": [], "removed": False}
