"""Terminal output where there is no terminal: one plain line each, whatever paths and pages hold."""

from __future__ import annotations

import pytest

from pipeline.commands.terminal import Bars, say, show, table_of
from pipeline.store.build_json import Cost, StageResult


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "/data/[red]/out" + "x" * 200
    say(line)
    assert capsys.readouterr().err == line + "\n"


def test_a_table_has_a_line_for_each_row_and_no_rules(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of("funnel", "stage", "kept")
    table.add_row("fetch", "1,200")
    show(table)
    assert [line.split() for line in capsys.readouterr().err.splitlines()] == [
        ["funnel"],
        ["stage", "kept"],
        ["fetch", "1,200"],
    ]


def test_a_long_stage_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bars() as bars:
        bars.update("fetch", 1, 3)
        assert capsys.readouterr().err == "", "EVERY_S has not passed"
        monkeypatch.setattr(Bars, "EVERY_S", 0.0)
        bars.update("fetch", 2, 3)
        assert capsys.readouterr().err == "fetch    2 of 3 partitions\n"
        bars.done(StageResult("fetch", False, 3, 2, 1.25, {}, Cost()))
        bars.done(StageResult("measure", True, 3, 0, 0.0, {}, Cost()))
    assert capsys.readouterr().err == "fetch    2 of 3 partitions, 1.2 s\nmeasure  already done, 0.0 s\n"
